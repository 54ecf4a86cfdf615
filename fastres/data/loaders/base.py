"""The base of all loaders: order, shards, labels, the way to the device, an end that leaves nothing behind."""

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.data.order import epoch_rows
from fastres.data.store.decoded import Dataset
from fastres.utils.registry import Registry

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """A batch as loaders yield it: a source of pixels and the rows of it that make the batch."""

    source: Tensor
    """uint8 [M, H, W, 3] on the device: the whole store where it is resident, else this batch's own images. What is
    written into a resident one stays in this process: all batches of its loaders see it, the store's file does not."""
    rows: Tensor
    """int64 [B]: rows of `source`. This and the following are the batch's own: write into them as you like."""
    labels: Tensor
    """int64 [B]."""
    indices: Tensor
    """int64 [B]: positions in the data set, which key the augmentation."""


class Loader(ABC):
    """Batches of one part of a data set, in the order of order.py: every loader delivers the same ones.

    Args:
        labels: int64 [M], of the whole part.
        subset: int64 [N], the positions in it that are delivered (train or validation).
        batch_size: images in a batch; the last one of an epoch may have fewer.
        seed: shuffles each epoch by (seed, epoch); None keeps the order of `subset`.
        drop_last: leave out the partial batch.
        rank, ranks: deliver one of `ranks` shards: disjoint, equally long, and together at each step the batch that
            one loader of `ranks` times the batch size delivers. What does not divide is left out of that epoch.
        device: where batches arrive.

    A loader is a context manager. `close`, or leaving an iterator early, ends its threads and processes. Iterated, it
    delivers an epoch, and each time the next one; `batches` delivers any. It belongs to the process that made it: it
    cannot be pickled, and a forked child begins iterators of its own.

    A subclass that recipes can name takes, before these arguments, the pixels of the part as `open_pixels` gives them.
    """

    package: ClassVar[str | None] = None
    """What has to be installed for it besides."""
    reads_encoded: ClassVar[bool] = True
    """Whether it reads JPEG and PNG files too."""

    @classmethod
    def open_pixels(cls, dataset: Dataset, device: torch.device | str, *, quiet: bool) -> dict[str, Any]:
        """Pixels of each part, by its name, as this loader reads them; loaders of one part share them."""
        return {name: part.images for name, part in dataset.parts.items()}

    def __init__(
        self,
        labels: NDArray[np.int64],
        subset: Rows,
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch of {batch_size} images")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} is none of 0 to {ranks - 1}")
        self.device = torch.device(device)
        self.labels = torch.from_numpy(np.array(labels, dtype=np.int64)).to(self.device)
        self.subset = np.array(subset, dtype=np.int64)
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self.rank, self.ranks = rank, ranks
        self._live: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()
        self._closed = False
        self._next_epoch = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.subset) // self.ranks, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def epoch_rows(self, epoch: int) -> Rows:
        """int64: all positions of this shard in `epoch`, in the order of delivery, the partial batch included."""
        return epoch_rows(self.subset, self.seed, epoch, self.rank, self.ranks).copy()  # it may be `subset` itself

    def _steps(self, epoch: int, first_step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each step from `first_step` on, int64 [B] of their own: positions on the CPU, on the device, labels there.

        One copy to the device and one gather of labels for all steps: on a CPU, two operations a step cost as much as a
        fifth of copying the images of a batch of 512; on a GPU a copy a step would make the host wait.
        """
        rows, indices, labels = self._table(epoch, first_step)
        if not len(rows):
            return []
        size = self.batch_size
        return list(zip(rows.split(size), indices.split(size), labels.split(size), strict=True))

    def table(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Rows and labels of all the epoch's batches, one after the other, int64 [N] each, on the device."""
        return self._table(epoch, 0)[1:]

    def _table(self, epoch: int, first_step: int) -> tuple[Tensor, Tensor, Tensor]:
        """int64 [N] of all steps from `first_step` on: positions on the CPU, the same on the device, labels there. The
        host does not wait for the copy."""
        rows = torch.from_numpy(self.epoch_rows(epoch)[first_step * self.batch_size : len(self) * self.batch_size])
        pinned = rows.pin_memory() if self.device.type == "cuda" else rows
        indices = pinned.to(self.device, non_blocking=True) if self.device.type == "cuda" else rows.clone()
        return rows, indices, self.labels[indices]

    def batches(self, epoch: int = 0, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (counted from 0) from its step `first_step` on; what comes before is never read.

        What was yielded stays as it is. Raises UserError, naming the sample, where one cannot be read or decoded.
        """
        if self._closed:
            raise ValueError("the loader is closed")
        generator = self._in_this_process(epoch, first_step)
        self._live.add(generator)
        return generator

    def __iter__(self) -> Iterator[Batch]:
        """The batches of epoch 0, at the next time those of epoch 1, and so on, whatever `batches` is asked for."""
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.batches(epoch)

    def _in_this_process(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        """`_batches`, which a forked child of this process cannot go on with: threads and queues stayed here."""
        process = os.getpid()
        with closing(self._batches(epoch, first_step)) as batches:
            for batch in batches:
                yield batch
                if os.getpid() != process:
                    raise RuntimeError(
                        "this iterator belongs to the process that began it, of which this one is a fork: begin one "
                        "here with `batches`"
                    )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied, as its threads, processes and memory are those of "
            "this process: open the data set and call `make_loader` where batches are needed"
        )

    @abstractmethod
    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]: ...

    def close(self) -> None:
        """End every iterator, and with it its threads and processes. Closing twice does nothing."""
        self._closed = True
        for generator in list(self._live):
            generator.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


LOADERS: Registry[str, type[Loader]] = Registry("loader")
"""By the name that recipes use."""


class ReadingLoader(Loader):
    """A loader that reads each batch into memory of the batch's own; how it reads is a subclass's `_read`.

    Args:
        pixels: where the images are: of which kind is each subclass's to say.
        workers: threads or processes that read ahead; by default as many as this process may use cores.
        arguments: those of `Loader`.
    """

    def __init__(self, pixels: Any, *arguments: Any, workers: int | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pixels = pixels
        self.workers = len(os.sched_getaffinity(0)) if workers is None else workers

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        steps = self._steps(epoch, first_step)
        batch_rows = [rows.numpy() for rows, _, _ in steps]
        count = sum(map(len, batch_rows))  # one operation for all steps, here too
        places = (torch.arange(count, device=self.device) % self.batch_size).split(self.batch_size)
        with closing(self._read(batch_rows)) as read, closing(to_device(read, self.device)) as arriving:
            for (_, indices, labels), rows, pixels in zip(steps, places if steps else (), arriving, strict=True):
                yield Batch(pixels, rows, labels, indices)

    @abstractmethod
    def _read(self, batches: Sequence[Rows]) -> Generator[Tensor, None, None]:
        """Images uint8 [B, H, W, 3] for each of `batches`, in their order: on the CPU, or already on `self.device`.

        Their memory is theirs alone, and pinned if it can be where `self.device` is CUDA. Closing the generator, at
        any point, ends what it started.
        """


def to_device(batches: Generator[Tensor, None, None], device: torch.device) -> Generator[Tensor, None, None]:
    """Bring each of `batches` to `device`: on CUDA over a stream of its own, one batch ahead of the one in use.

    A batch that is on CUDA already, usable on the current stream, passes.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    prefetch: tuple[Tensor, torch.cuda.Event] | None = None

    def arrived(moved: Tensor, copied: torch.cuda.Event) -> Tensor:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        moved.record_stream(current)  # its memory is the copying stream's: not reused before this one is done
        return moved

    for batch in batches:
        if batch.is_cuda:
            yield batch
            continue
        with torch.cuda.stream(stream):
            # The host's allocator notices the copy and keeps pinned memory until it is over.
            moved = (batch if batch.is_pinned() else batch.pin_memory()).to(device, non_blocking=True)
            event = stream.record_event()
        if prefetch is not None:
            yield arrived(*prefetch)
        prefetch = moved, event
    if prefetch is not None:
        yield arrived(*prefetch)
