"""Names that the library had before, all in one file; they keep working and are in no documentation.

fastres.recipe.Augment, .Mix and all other tables    now AugmentConfig, MixConfig, …
Augment.unmixed, Augment.plain                       now Augment.augment, Augment.normalize
fastres.data.torchvision_cpu                         now fastres.data.compat.torchvision
"""

import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def table(name: str, module: Mapping[str, Any]) -> Any:
    """The recipe table `name` by its name with Config, of the names in `module`. Raises AttributeError without one."""
    if f"{name}Config" not in module:
        raise AttributeError(f"module '{module['__name__']}' has no attribute '{name}'")
    return module[f"{name}Config"]


class Method:
    """A method under the name it had: `unmixed = Method("augment")` in the class that has `augment`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        """The method that stands for it now, bound to `instance` where there is one."""
        return getattr(owner if instance is None else instance, self._name)


class _Module(ModuleType):
    """A module under the name it had, loaded when one of its names is asked for."""

    def __init__(self, name: str, load: Callable[[], ModuleType]) -> None:
        super().__init__(name)
        self._load = load

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system looks for loads nothing
            raise AttributeError(name)
        return getattr(self._load(), name)


def module(name: str, load: Callable[[], ModuleType]) -> ModuleType:
    """What `import name` finds from now on: the module that `load` returns."""
    return sys.modules.setdefault(name, _Module(name, load))
