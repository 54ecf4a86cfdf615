"""Progress of a run: the contents of a checkpoint besides weights and optimizer."""

import json
from dataclasses import dataclass, fields
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor
from torch.optim import Optimizer

from fastres.engine.compile import Compiled
from fastres.runs.schema import Best
from fastres.utils.json_files import Amount, Count


@dataclass
class TrainState:
    """Finished epochs and steps, the best checkpoint so far, and times summed over all interruptions."""

    epoch: Count = 0
    """Finished epochs."""
    step: Count = 0
    """Finished steps of the epoch that is under way."""
    best: Best | None = None
    """Of the best checkpoint, where `train.best` is set."""
    seconds: Amount = 0.0
    """Wall time until the last checkpoint."""
    cold_seconds: Amount = 0.0
    """Wall time to the end of the first step, compilation included: of this run where it compiled or ran eagerly, else
    of the run that compiled what this one found. 0: unknown, or no step was made yet."""
    warm_seconds: Amount = 0.0
    """The same of this run, where it found its step compiled; 0 where it did not."""
    images: Count = 0
    """Images of all timed steps: all but a process's first of each batch size and phase, which compiles."""
    images_seconds: Amount = 0.0
    """Seconds of those steps."""
    epoch_seconds: Amount = 0.0
    """Seconds of all steps of this epoch."""
    epoch_stalled: Amount = 0.0
    """Seconds of them in which the device waited for data."""
    epoch_images: Count = 0
    """Images of this epoch's timed steps."""
    epoch_images_seconds: Amount = 0.0
    """Seconds of those steps."""

    def started(self, seconds: float, step: Compiled) -> None:
        """The first step of this process is done, `seconds` after its start; what compiles it learns how long a start
        took that had to. A resumed run keeps the cold figure that it began with."""
        if step.from_cache:
            self.warm_seconds = seconds
            self.cold_seconds = self.cold_seconds or step.cold_seconds or 0.0
        else:
            self.cold_seconds = self.cold_seconds or seconds
            step.remember(seconds)

    def time_step(self, images: int, seconds: float, *, timed: bool) -> None:
        """Count one step of `images` images."""
        self.epoch_seconds += seconds
        if timed:
            self.images, self.images_seconds = self.images + images, self.images_seconds + seconds
            self.epoch_images += images
            self.epoch_images_seconds += seconds

    def next_epoch(self) -> None:
        """The epoch is over."""
        self.epoch, self.step = self.epoch + 1, 0
        self.epoch_seconds, self.epoch_stalled = 0.0, 0.0
        self.epoch_images, self.epoch_images_seconds = 0, 0.0

    def state(self) -> dict[str, Any]:
        """Plain values, from which `of` makes the same state."""
        return {**vars(self), "best": self.best and self.best.model_dump()}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "TrainState":
        """What gave `state`. Raises ValueError where nothing did."""
        names = {field.name for field in fields(cls)}
        if not isinstance(state, dict) or not {"epoch", "step"} <= state.keys() <= names:
            raise ValueError("it is no progress of a run")
        return TypeAdapter(cls).validate_json(json.dumps(state), strict=True)


def check_alike(own: Any, given: Any) -> None:
    """Raise ValueError where `given`, from a file, has not the keys, types and shapes of `own`."""
    if isinstance(own, Tensor) and isinstance(given, Tensor):
        alike = own.shape == given.shape and own.dtype == given.dtype
    elif isinstance(own, dict) and isinstance(given, dict):
        alike = own.keys() == given.keys()
        for key in own if alike else ():
            check_alike(own[key], given[key])
    else:
        alike = type(own) is type(given)
    if not alike:
        raise ValueError("something is missing, or of another type or shape")


def optimizer_state(optimizer: Optimizer, given: Any) -> dict[str, Any]:
    """`given`, what `optimizer.state_dict` was when it was saved, for `optimizer.load_state_dict`: with the groups
    that `optimizer` has, so that a file sets no rate.

    Raises ValueError where it is of other parameters, and whatever a dictionary of anything makes its reader raise.
    """
    own = optimizer.state_dict()
    if "optimizers" in own:  # several as one
        parts = zip(optimizer.optimizers, given["optimizers"], strict=True)  # type: ignore[attr-defined]
        return {"optimizers": [optimizer_state(*part) for part in parts]}
    if [group["params"] for group in given["param_groups"]] != [group["params"] for group in own["param_groups"]]:
        raise ValueError("it is of other parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not set(given["state"]) <= set(range(len(parameters))):
        raise ValueError("it is of other parameters")
    for index, values in given["state"].items():
        shapes = ((), parameters[index].shape)
        if any(value.shape not in shapes for value in values.values() if isinstance(value, Tensor)):
            raise ValueError("it is of parameters of another shape")
    return {"state": given["state"], "param_groups": own["param_groups"]}
