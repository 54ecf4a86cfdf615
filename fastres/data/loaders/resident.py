"""The resident loader: the whole store lies on the device (on the CPU: memory-mapped), a batch is a list of rows."""

import mmap
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.data.loaders.base import LOADERS, Batch, Loader, Rows
from fastres.data.store.decoded import Dataset

_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.13 on


def on_device(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """The store as a tensor on `device`, which may be written into: a copy on CUDA; on the CPU the memory of `images`
    or, where that is read-only, a private map of its file, in which a page is copied once it is written to."""
    if torch.device(device).type != "cpu":
        return shared(images).to(device)
    return torch.from_numpy(images if images.flags.writeable else _private(images))


def shared(images: NDArray[np.uint8]) -> Tensor:
    """`images` as a tensor of the same memory, only to be read: to write into a read-only map ends the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)


def _private(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of a read-only array: copied when written to where it is a map of a file that is still there."""
    mapped, name = getattr(images, "_mmap", None), getattr(images, "filename", None)
    if mapped is None or name is None:
        return images.copy()
    begin = np.frombuffer(mapped, np.uint8, 1).__array_interface__["data"][0]
    offset = images.__array_interface__["data"][0] - begin
    start = images.offset - images.offset % mmap.ALLOCATIONGRANULARITY  # type: ignore[attr-defined]
    try:
        with Path(name).open("rb") as file:
            # Not counted as memory that will be needed: the kernel would refuse a store larger than the machine's.
            flags, prot = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            private = mmap.mmap(file.fileno(), len(mapped), flags=flags, prot=prot, offset=start)
    except (OSError, ValueError):  # the store was removed or rebuilt meanwhile: `images` are what was opened
        return images.copy()
    return np.ndarray(images.shape, images.dtype, private, offset, images.strides)


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
        on_cpu = self.device.type == "cpu"
        for positions, indices, labels in self._steps(epoch, first_step):
            yield Batch(self.source, positions if on_cpu else indices.clone(), labels, indices)

    def close(self) -> None:
        """Let go of the store."""
        super().close()
        self.source = self.source[:0].clone()
