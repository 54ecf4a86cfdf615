"""Sweeps: many runs of one recipe that differ in named keys."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fastres.recipe.fields import Table

# A name is a folder and a cell of a table. Without a dot it meets neither sweep.json nor study.db, without an equals
# sign no name that a grid makes.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]{0,59}$")]


class Point(Table):
    """Keys that belong together, under a name."""

    name: Name
    """Name of the point, for folder and table: letters, digits, `_`, `+` and `-`."""
    set: dict[str, Any] = {}
    """Keys of the recipe, such as `"optimizer.lr" = 0.1`, and their values; `""` is the default, as in `--set`."""


class Sweep(Table):
    """Many runs of one recipe, each a point: every one of `points` with every combination of the lists of `grid`."""

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Keys of the recipe, such as `"train.seed" = [0, 1, 2]`, with the values that each takes."""
    points: list[Point] = []
    """Named sets of keys that change together, such as an optimizer with a learning rate of its own."""
    metric: Literal["test_accuracy", "test_loss", "val_accuracy", "val_loss"] = "test_accuracy"
    """What the table is sorted by: of the weights that a run kept."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.grid or self.points):
            raise ValueError('a sweep needs points: give it a grid, such as "train.seed" = [0, 1], or points')
        names = [point.name for point in self.points]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two points are named '{twice}': rename one")
        return self
