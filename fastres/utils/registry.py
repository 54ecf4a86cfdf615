"""Registries: what is known under a key, to which any module adds its own."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Registry(dict[Key, Value]):
    """A dictionary that decorators fill, and that says what is missing, such as "optimizer", where a key is unknown."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def register(self, key: Key) -> Callable[[Any], Any]:
        """A decorator that keeps what it decorates under `key`."""

        def keep(value: Any) -> Any:
            self[key] = value
            return value

        return keep

    def __missing__(self, key: Key) -> Value:
        asked, *known = (each.__name__ if isinstance(each, type) else repr(each) for each in (key, *self))
        raise LookupError(f"no {self.what} is registered for {asked}, only for {', '.join(known)}")
