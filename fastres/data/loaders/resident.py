"""The resident loader: the whole store lies on the device (on the CPU: memory-mapped), a batch is a list of rows."""

import warnings
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.data.loaders.base import LOADERS, Batch, Loader, Rows
from fastres.data.store.decoded import Dataset


def on_device(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """The store as a tensor on `device`: a copy there on CUDA, the same memory on the CPU."""
    with warnings.catch_warnings():
        # torch warns that a read-only map could be written through the tensor; nothing writes to a source.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images).to(device)


@LOADERS.register("resident")
class ResidentLoader(Loader):
    """Batches of a store that fits into memory: no pixel moves before the augmentation reads it.

    `source` is uint8 [M, H, W, 3] on the device, as `on_device` brings it there; loaders may share one. The other
    arguments are those of `Loader`.
    """

    reads_encoded = False

    @classmethod
    def open_pixels(cls, dataset: Dataset, device: torch.device | str, *, quiet: bool) -> dict[str, Any]:
        return {name: on_device(part.images, device) for name, part in dataset.parts.items()}

    def __init__(
        self,
        source: Tensor,
        labels: NDArray[np.int64],
        subset: Rows,
        batch_size: int,
        *,
        workers: int | None = None,  # there is nothing to read ahead
        **options: Any,
    ) -> None:
        super().__init__(labels, subset, batch_size, **{**options, "device": source.device})
        self.source = source

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        for _, indices, labels in self._steps(epoch, first_step):
            yield Batch(self.source, indices, labels, indices)

    def close(self) -> None:
        """Let go of the store."""
        super().close()
        self.source = self.source[:0].clone()
