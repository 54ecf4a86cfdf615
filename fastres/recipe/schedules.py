"""Schedules of the learning rate."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from fastres.recipe.fields import NotNegative, Rate, Table
from fastres.recipe.kinds import Kinds

SCHEDULES = Kinds(default="cosine")


class ScheduleConfig(Table):
    """Any schedule."""

    if TYPE_CHECKING:
        name: str
    per: Literal["step", "epoch"] = "step"
    """Whether the learning rate moves at every step or once an epoch."""
    warmup_epochs: NotNegative = 0.0
    """Epochs, fractions allowed, over which the rate rises linearly from nearly 0; the rest follows after them."""


@SCHEDULES.register
class ConstantConfig(ScheduleConfig):
    """The same rate throughout."""

    name: Literal["constant"] = "constant"
    """The kind of schedule."""


@SCHEDULES.register
class LinearConfig(ScheduleConfig):
    """A straight line from 1 to `final`."""

    name: Literal["linear"] = "linear"
    """The kind of schedule."""
    final: NotNegative = 0.0
    """Factor of the learning rate at the end."""


@SCHEDULES.register
class CosineConfig(ScheduleConfig):
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2017, without restarts)."""

    name: Literal["cosine"] = "cosine"
    """The kind of schedule."""
    final: NotNegative = 0.0
    """Factor of the learning rate at the end."""


@SCHEDULES.register
class OneCycleConfig(ScheduleConfig):
    """Up and down again in half cosines (Smith, Topin 2018): torch's OneCycleLR, which ends one step earlier, without
    its momentum cycle."""

    name: Literal["one_cycle"] = "one_cycle"
    """The kind of schedule."""
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the run at which the rate is highest."""
    start: NotNegative = 0.04
    """Factor of the learning rate at the start."""
    final: NotNegative = 4e-6
    """Factor of the learning rate at the end."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs > 0:
            raise ValueError("one_cycle warms up by itself: set peak and start instead of warmup_epochs")
        return self


@SCHEDULES.register
class StepConfig(ScheduleConfig):
    """The rate is multiplied by `gamma` at each milestone."""

    name: Literal["step"] = "step"
    """The kind of schedule."""
    milestones: list[NotNegative]
    """Epochs, fractions allowed, at which the rate drops."""
    gamma: Rate = 0.1
    """Factor of each drop."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sorted(self.milestones) != self.milestones:
            raise ValueError("milestones must rise")
        return self


@SCHEDULES.register
class KnotsConfig(ScheduleConfig):
    """Straight lines through given points."""

    name: Literal["knots"] = "knots"
    """The kind of schedule."""
    points: Annotated[list[Annotated[list[NotNegative], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    """Pairs of an epoch, fractions allowed, and the learning rate's factor there: [[0, 0.2], [2, 1], [7.5, 0]] rises
    for two epochs and decays to 0 at the middle of the eighth. Two points of one epoch are a jump; before the first
    point and after the last one the factor is theirs."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        epochs = [epoch for epoch, _ in self.points]
        if sorted(epochs) != epochs:
            raise ValueError("the epochs of points must rise")
        if self.warmup_epochs > 0:
            raise ValueError("knots warm up by themselves: start points at a low factor instead of warmup_epochs")
        return self
