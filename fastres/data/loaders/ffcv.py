"""The FFCV loader: batches of a beton (see data/beton.py) through FFCV's own loader and pipeline, iterated by us.

FFCV's `Loader` reads the file and puts its pipeline together; its iterator is not used. That one leaves its consumer
waiting forever when its thread fails, writes new batches into buffers of batches still in use, and leaves threads
behind when it is left early. Here each batch is one call of the pipeline in a thread of `prefetch`, into new memory.

FFCV would also compile its pipeline for 7 to 14 seconds at every start. Here the pipeline's one operation is compiled
code that is kept on disk (ffcv_decode.py), and FFCV's compiler is told to leave it alone.

On two cores, 50,000 images of 32 pixels in batches of 512, medians of runs one after the other: 1.8 to 2.2 million
images a second of pixels, where FFCV's own loader gives 1.6 to 1.7 million, and 190,000 of JPEG files, as FFCV's does
without checksums and exact decoding. From import to first batch 0.5 s beyond torch and Numba; where nothing is cached
yet, 0.6 s for pixels and 0.8 s for JPEG files.
"""

import weakref
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.data.compat.ffcv import changing, import_ffcv, replaced, turbojpeg
from fastres.data.loaders.base import LOADERS, ReadingLoader, Rows
from fastres.data.loaders.paging import Paging
from fastres.data.store import ffcv_decode
from fastres.data.store.beton import Beton, prepare
from fastres.data.store.decoded import Dataset
from fastres.errors import UserError
from fastres.utils.prefetch import prefetch


class BetonPixels:
    """A beton, mapped, with FFCV's pipeline for it, for any number of threads. Its file is closed when it is collected.

    Raises UserError without FFCV.
    """

    def __init__(self, beton: Beton) -> None:
        self.beton = beton
        self._loader = _ffcv_loader(beton)
        self._metadata = self._loader.reader.metadata
        self._stages, _ = self._loader.code
        self._file = self._loader.memory_manager.schedule_epoch([])
        self._file.__enter__()
        self._paging = Paging(self._file.state[0])
        # FFCV's objects refer to each other: without this, the file would stay mapped until they are collected.
        weakref.finalize(self, setattr, self._file, "mmap", None)

    def read(self, rows: Rows, *, pinned: bool = False) -> Tensor:
        """The images `rows`: uint8 [B, H, W, 3] in memory of their own. Raises UserError for one that is damaged."""
        side, state = self.beton.side, self._file.state
        if state[0]._mmap.size() < self.beton.size:  # the kernel kills a process that reads what is no longer there
            raise UserError(f"{self.beton.path} was cut short while it was read:\n{_remedy(self.beton)}")
        out = torch.empty((len(rows), side, side, 3), dtype=torch.uint8, pin_memory=pinned)
        if self._paging.active:
            self._paging.announce(self.beton.starts[rows], self.beton.sizes[rows])
        for code, (result,) in self._stages:
            code(
                batch_indices=rows,
                metadata=self._metadata,
                storage_state=state,
                **{f"memory_{result}": out.numpy(), f"shared_memory_{result}": None},
            )
        return out


_opened: WeakValueDictionary[Beton, BetonPixels] = WeakValueDictionary()


def beton_pixels(beton: Beton) -> BetonPixels:
    """The `BetonPixels` of `beton`: one for all loaders that read it at a time."""
    with changing:
        pixels = _opened.get(beton)
        if pixels is None:
            pixels = _opened[beton] = BetonPixels(beton)
        return pixels


def _ffcv_loader(beton: Beton) -> Any:
    """FFCV's `Loader` on `beton`, with our decoder as its whole pipeline."""
    ffcv = import_ffcv()
    ffcv_decode.bind(turbojpeg())

    operation, traversal = ffcv.pipeline.operation.Operation, ffcv.traversal_order.base.TraversalOrder
    mapping = ffcv.memory_managers.OSCacheManager

    class Decoder(operation):  # type: ignore[misc, valid-type]  # FFCV has no types
        def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
            shape = (beton.side, beton.side, 3)
            state = replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("u1"))
            return state, ffcv.pipeline.allocation_query.AllocationQuery(shape, np.dtype("u1"))

        def generate_code(self) -> Any:
            return partial(_decode, beton)

    class Order(traversal):  # type: ignore[misc, valid-type]
        """All rows, once. `Loader` calls the instance that it is given; a class it refuses."""

        def __init__(self) -> None:
            pass

        def __call__(self, loader: Any) -> "Order":
            return self

        def sample_order(self, epoch: int) -> Rows:
            return np.arange(len(beton))  # which rows make a batch is said anew for each: see FfcvLoader

    class Mapped(mapping):  # type: ignore[misc, valid-type]
        """Without the tables of all samples that only FFCV's other manager needs: 5 µs and 0.5 KB a sample."""

        def __init__(self, reader: Any) -> None:
            self.reader, self.ptrs, self.sizes = reader, np.empty(0, np.uint64), np.empty(0, np.uint64)
            self.context = ffcv.memory_managers.os_cache.OSCacheContext(self)

    compiler = ffcv.pipeline.compiler.Compiler
    with (
        changing,
        replaced(compiler, is_enabled=False, num_threads=1, set_num_threads=lambda count: None),
        replaced(ffcv.loader.loader, OSCacheManager=Mapped),
    ):
        return ffcv.Loader(
            str(beton.path),
            batch_size=1,
            num_workers=1,
            os_cache=True,
            order=Order(),
            seed=0,  # unused, but otherwise drawn from NumPy's global generator
            pipelines={"image": ffcv.pipeline.PipelineSpec("image", decoder=Decoder()), "label": None},
        )


def _decode(
    beton: Beton,
    rows: Rows,
    out: NDArray[np.uint8],
    metadata: NDArray[np.void],
    state: tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64]],
) -> NDArray[np.uint8]:
    """Code of the operation that decodes, as FFCV calls it; `beton` is bound."""
    flat, mapped = out.reshape(len(rows), -1), state[0].view(np.ndarray)
    if beton.sums is None:
        failed, failure = ffcv_decode.copy_rows(mapped, beton.starts, rows, flat), ffcv_decode.OUTSIDE
    else:
        failed, failure = ffcv_decode.decode_rows(
            mapped, beton.starts, beton.sizes, beton.encoded, beton.sums, rows, beton.side, flat
        )
    if failed < 0:
        return out
    row = int(rows[failed])
    if failure == ffcv_decode.OUTSIDE:
        raise IndexError(f"there is no sample {row} in {beton.path}, which has {len(beton)}")
    if failure == ffcv_decode.NO_DECODER:
        raise MemoryError("libturbojpeg made no decompressor")
    what = "was changed: its checksum is another" if failure == ffcv_decode.CHANGED else "cannot be decoded"
    raise UserError(f"sample {row} of {beton.path} {what}:\n{_remedy(beton)}")


def _remedy(beton: Beton) -> str:
    return f"delete {beton.path.parent} and make it anew by {beton.command}"


@LOADERS.register("ffcv")
class FfcvLoader(ReadingLoader):
    """Batches of a beton, `pixels`; the other arguments are `ReadingLoader`'s.

    `workers` threads read, at least one, at most twice as many batches ahead. Loaders of one `Beton` share its file.
    Raises UserError without FFCV.
    """

    package = "ffcv"

    @classmethod
    def open_pixels(cls, dataset: Dataset, device: torch.device | str, *, quiet: bool) -> dict[str, Any]:
        """The betons of the parts, prepared if there are none."""
        return dict(prepare(dataset, quiet=quiet).parts)

    def __init__(self, pixels: Beton, *arguments: Any, **options: Any) -> None:
        super().__init__(pixels, *arguments, **options)
        self._images: BetonPixels | None = beton_pixels(pixels)

    def _read(self, batches: Sequence[Rows]) -> Generator[Tensor, None, None]:
        assert self._images is not None  # a closed loader has no batches
        threads = max(1, self.workers)
        read = partial(self._images.read, pinned=self.device.type == "cuda")
        return prefetch(read, batches, threads=threads, depth=2 * threads)

    def close(self) -> None:
        """End every iterator and its threads, and let go of the file."""
        super().close()
        self._images = None
