"""What a network says of images: classes by name, with their probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from fastres.evaluation.calibration import probabilities
from fastres.runs.schema import Calibration
from fastres.utils.terminal import printable


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What the network says of one image. Printed, it is the three most probable classes."""

    classes: tuple[str, ...]
    """All, in the order of labels."""
    logits: Tensor
    """float32 [classes]: the network's own output, before any temperature."""
    probabilities: Tensor
    """float32 [classes]."""

    def top(self, count: int = 3) -> list[tuple[str, float]]:
        """The `count` most probable classes, or all where there are fewer, most probable first."""
        order = self.logits.argsort(descending=True, stable=True)[:count]
        return [(self.classes[label], self.probabilities[label].item()) for label in order.tolist()]

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """Its probability."""
        return self.top(1)[0][1]

    def __getitem__(self, name: str) -> float:
        """Probability of the class `name`. Raises KeyError where there is none."""
        if name not in self.classes:
            raise KeyError(f"{name!r} is none of the {len(self.classes)} classes")
        return self.probabilities[self.classes.index(name)].item()

    def __str__(self) -> str:
        return ", ".join(f"{printable(name)} {probability:.2%}" for name, probability in self.top())

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class Predictions(Sequence[Prediction]):
    """What the network says of several images, in their order."""

    classes: tuple[str, ...]
    """All, in the order of labels."""
    logits: Tensor
    """float32 [N, classes] on the CPU: the network's own output, before any temperature."""
    calibration: Calibration | None = None
    """Temperature of the probabilities; None where the run is of a version without."""

    @cached_property
    def probabilities(self) -> Tensor:
        """float32 [N, classes], computed in fp64."""
        return probabilities(self.logits, self.calibration)

    @property
    def labels(self) -> list[str]:
        """Name of each image's most probable class."""
        return [
            self.classes[label] for label in self.logits.argsort(dim=1, descending=True, stable=True)[:, 0].tolist()
        ]

    def __len__(self) -> int:
        return len(self.logits)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> "Predictions": ...
    def __getitem__(self, index: int | slice) -> "Prediction | Predictions":
        if isinstance(index, slice):
            return Predictions(self.classes, self.logits[index], self.calibration)
        return Prediction(self.classes, self.logits[index], self.probabilities[index])

    def __iter__(self) -> Iterator[Prediction]:
        return map(self.__getitem__, range(len(self)))

    @staticmethod
    def joined(parts: "Sequence[Predictions]") -> "Predictions":
        """`parts`, at least one, of the same network as one."""
        return Predictions(parts[0].classes, torch.cat([part.logits for part in parts]), parts[0].calibration)
