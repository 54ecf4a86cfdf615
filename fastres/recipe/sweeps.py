"""Sweeps: many runs of one recipe that differ in named keys."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from fastres.recipe.fields import Positive, Table

# A name is a folder and a cell of a table. Without a dot it meets neither sweep.json nor study.db, without an equals
# sign no name that a grid makes.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]{0,59}$")]


class PointConfig(Table):
    """Keys that belong together, under a name."""

    name: Name
    """Name of the point, for folder and table: letters, digits, `_`, `+` and `-`."""
    set: dict[str, Any] = {}
    """Keys of the recipe, such as `"optimizer.lr" = 0.1`, and their values; `""` is the default, as in `--set`."""


Number = Annotated[int | float, Field(allow_inf_nan=False)]


class RangeConfig(Table):
    """Numbers from `low` to `high`, both included: whole ones where both are whole."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: bool = False
    """Whether to search evenly in the logarithm, as suits rates."""
    step: Number | None = None
    """Distance of the values; by default 1 for whole numbers, none for others."""

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        if self.step is not None:
            steps = (self.high - self.low) / self.step if self.step > 0 else 0.5
            if abs(steps - round(steps)) > 1e-9 * max(1, steps):  # 0.1 + 0.2 is not 0.3
                raise ValueError(f"step = {self.step} must be positive and lead from low to high in whole steps")
        return self


# Pydantic names the branch of a union in its errors; loading.py knows these names from keys. Two are of a teacher.
TAGS: dict[str, type[Table] | None] = {"<range>": RangeConfig, "<choices>": None, "<path>": None, "<recipe>": None}
Parameter = Annotated[
    Annotated[RangeConfig, Tag("<range>")] | Annotated[list[Any], Field(min_length=2), Tag("<choices>")],
    Discriminator(lambda value: "<choices>" if isinstance(value, list) else "<range>"),
]


class SearchConfig(Table):
    """A search with Optuna (Akiba et al. 2019) for the values that validate best; needs `pip install
    'fastres[sweep]'`."""

    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Keys of the recipe with what they are searched in: a range, `"optimizer.lr" = { low = 1e-3, high = 0.3, log =
    true }`, or a list of choices, `"optimizer.name" = ["sgd", "adamw"]`."""
    trials: Positive = 20
    """Points to try, pruned and failed ones included; more can be added to a finished search."""
    sampler: Literal["tpe", "random"] = "tpe"
    """`tpe` models which values were good after ten random trials (Bergstra et al. 2011); `random` draws evenly."""
    pruner: Literal["median", "none"] = "median"
    """`median` ends a trial whose best metric is worse after an epoch than the median of the completed trials was then
    (Golovin et al. 2017, section 3.2.2), once there are five of them."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides what the sampler draws; with one worker, a search repeats."""


class SweepConfig(Table):
    """Many runs of one recipe, each a point: every one of `points` with every combination of the lists of `grid`, or
    what `search` finds."""

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Keys of the recipe, such as `"train.seed" = [0, 1, 2]`, with the values that each takes."""
    points: list[PointConfig] = []
    """Named sets of keys that change together, such as an optimizer with a learning rate of its own."""
    search: SearchConfig | None = None
    """Instead of `grid` and `points`: values that a search chooses."""
    metric: Literal["test_accuracy", "test_loss", "val_accuracy", "val_loss"] | None = None
    """Metric, of the weights that a run kept, that the table is sorted by and a search optimises; by default
    `test_accuracy`, for a search `val_accuracy`. A search never goes by test images."""

    @property
    def by(self) -> str:
        """The metric."""
        return self.metric or ("test_accuracy" if self.search is None else "val_accuracy")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.search is None and not (self.grid or self.points):
            raise ValueError('a sweep needs points: give it a grid, such as "train.seed" = [0, 1], points or a search')
        if self.search is not None and (self.grid or self.points):
            raise ValueError("a search chooses its own points: leave out grid and points, or search")
        if self.search is not None and not self.by.startswith("val_"):
            raise ValueError(
                f"a search by {self.by} would fit the test images: set metric to 'val_accuracy' or leave it"
            )
        names = [point.name for point in self.points]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two points are named '{twice}': rename one")
        return self
