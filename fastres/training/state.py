"""Progress of a run: the contents of a checkpoint besides weights and optimizer."""

from dataclasses import dataclass
from typing import Any

from fastres.engine.compile import Compiled
from fastres.runs.schema import Best


@dataclass
class TrainState:
    """Finished epochs and steps, the best checkpoint so far, and times summed over all interruptions."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the epoch that is under way."""
    best: Best | None = None
    """Of the best checkpoint, where `train.best` is set."""
    seconds: float = 0.0
    """Wall time until the last checkpoint."""
    cold_seconds: float = 0.0
    """Wall time to the end of the first step, compilation included: of this run where it compiled or ran eagerly, else
    of the run that compiled what this one found. 0: unknown, or no step was made yet."""
    warm_seconds: float = 0.0
    """The same of this run, where it found its step compiled; 0 where it did not."""
    images: int = 0
    """Images of all timed steps: all but a process's first of each batch size and phase, which compiles."""
    images_seconds: float = 0.0
    """Seconds of those steps."""
    epoch_seconds: float = 0.0
    """Seconds of all steps of this epoch."""
    epoch_stalled: float = 0.0
    """Seconds of them in which the device waited for data."""
    epoch_images: int = 0
    """Images of this epoch's timed steps."""
    epoch_images_seconds: float = 0.0
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
        """What gave `state`."""
        return cls(**{**state, "best": state["best"] and Best(**state["best"])})
