"""roofline.json. Rates are operations or bytes a second."""

from typing import Annotated, Literal

from pydantic import Field

from fastres.runs.environment import Environment
from fastres.utils.json_files import Count, Entry, File

Quantity = Annotated[float, Field(ge=0)]
"""Without the bound of Amount, which a GPU's arithmetic is about to reach."""

Kind = Literal["augmentation", "convolutions", "BN and activation", "optimizer", "whole step"]


class State(Entry):
    """Clocks, temperature and power of a GPU."""

    query: str
    values: str | None


class Machine(Environment):
    """The machine that was measured, whose `device` is its model."""

    capability: str | None = None
    multiprocessors: Count | None = None
    cache_bytes: Count
    memory_bytes_gpu: Count | None = None
    state: State | None = None


class MatrixRate(Entry):
    """The best product of square matrices."""

    what: str
    precision: str
    side: Count
    microseconds: Quantity
    quartiles_microseconds: list[Quantity]
    operations_per_second: Quantity
    method: str


class Point(Entry):
    """A part of the step in the figure."""

    name: str
    kind: Kind
    operations: int
    bytes: int
    seconds: Quantity
    quartiles_seconds: tuple[Quantity, Quantity]
    method: str
    intensity: Quantity
    """Operations a byte."""
    operations_per_second: Quantity
    products: str
    """The precision whose matrix products bound its arithmetic."""
    roof: Quantity
    """The most that its ceilings allow."""
    share: Quantity
    """Of its roof."""
    sets: Count
    """Buffers that took turns."""


class Roofline(File):
    """roofline.json."""

    recipe: str
    set: list[str]
    batch_size: Count
    precision: str
    machine: Machine
    memory: dict[str, Quantity]
    """Of each pass."""
    products: dict[str, MatrixRate]
    points: list[Point]
    above: list[str]
    """Names of the points above their roofs."""
    contention: str | None = None
    """A line where the machine had other work before."""
