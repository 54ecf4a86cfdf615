"""The resident loader: the whole store lies on the device (on the CPU: memory-mapped), a batch is a list of rows."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.data.order import epoch_order


@dataclass(frozen=True)
class Batch:
    """What a loader yields: a source of pixels and the rows of it that make the batch."""

    source: Tensor
    """uint8 [M, H, W, 3]: the whole store here; other loaders give the batch's own buffer."""
    rows: Tensor
    """int64 [B]: rows of `source`."""
    labels: Tensor
    """int64 [B]."""
    indices: Tensor
    """int64 [B]: positions in the data set, which key the augmentation."""


def on_device(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """The store as a tensor on `device`: a copy there on CUDA, the same memory on the CPU."""
    with warnings.catch_warnings():
        # torch warns that a read-only map could be written through the tensor; nothing writes to a source.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images).to(device)


class ResidentLoader:
    """Batches of a store that fits into memory.

    Args:
        source: uint8 [M, H, W, 3] on the device, as `on_device` brings it there; loaders may share one.
        labels: int64 [M].
        subset: int64 [N], the positions that belong to this part (train or validation).
        seed: shuffles each epoch by (seed, epoch); None keeps the order of `subset`.
        drop_last: leave out the partial batch.
    """

    def __init__(
        self,
        source: Tensor,
        labels: NDArray[np.int64],
        subset: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.source, self.device = source, source.device
        self.labels = torch.from_numpy(np.array(labels, dtype=np.int64)).to(self.device)
        self.subset = np.asarray(subset, dtype=np.int64)
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.subset), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def batches(self, epoch: int = 0, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (counted from 0) from its step `first_step` on; what comes before is never touched."""
        order = self.subset
        if self.seed is not None:
            order = order[epoch_order(self.seed, epoch, len(order))]
        rows = torch.from_numpy(order).to(self.device)
        for step in range(first_step, len(self)):
            chosen = rows[step * self.batch_size : (step + 1) * self.batch_size]
            yield Batch(self.source, chosen, self.labels[chosen], chosen)

    def close(self) -> None:
        """Let go of the store."""
        self.source = self.source[:0]

    def __enter__(self) -> "ResidentLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
