"""Registries: what is known under a key, to which any module adds its own."""

from collections.abc import Callable, Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Registered = TypeVar("Registered")


class Registry(dict[Key, Value]):
    """A dictionary that decorators fill, and that says what is missing, such as "optimizer", where a key is unknown."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def register(self, *keys: Key) -> Callable[[Registered], Registered]:
        """A decorator that keeps what it decorates under each of `keys`."""

        def keep(value: Registered) -> Registered:
            self.update(dict.fromkeys(keys, value))  # type: ignore[arg-type]
            return value

        return keep

    def __missing__(self, key: Key) -> Value:
        asked, *known = (each.__name__ if isinstance(each, type) else repr(each) for each in (key, *self))
        raise LookupError(f"no {self.what} is registered for {asked}, only for {', '.join(known)}")
