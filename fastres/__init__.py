"""fastres: train small-image ResNets fast and report honestly.

`fastres.Recipe.load(path, overrides)` reads a recipe and `fastres.train(recipe)` runs it. `fastres.data` opens data
sets, `fastres.augment` augments, `fastres.models` builds networks. Nothing heavy is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

from fastres._version import __version__

if TYPE_CHECKING:
    from fastres.errors import UserError
    from fastres.recipe import Recipe
    from fastres.training import RunResult, train

__all__ = ["Recipe", "RunResult", "UserError", "__version__", "train"]

_HOMES = {
    "Recipe": "fastres.recipe",
    "RunResult": "fastres.training",
    "UserError": "fastres.errors",
    "train": "fastres.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastres' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
