"""The registry of data sets that a recipe can name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastres.data.store.decoded import Writer
from fastres.utils.registry import Registry


@dataclass(frozen=True)
class NamedSet:
    """A data set of 32-pixel images under a name of its own."""

    classes: int
    train: int
    """Training images."""
    test: int
    """Test images."""
    build: Callable[[Path, Writer, bool], tuple[str, ...]]
    """Write the arrays with the writer, quietly or not, and return the classes; the folder is that of downloads."""
    version: str = ""
    """Changes when the pixels do, whose prepared stores are then rebuilt."""


SETS: Registry[str, NamedSet] = Registry("data set")
"""By the name that recipes use."""
