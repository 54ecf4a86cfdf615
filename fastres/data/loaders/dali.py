"""The DALI loader: pixels or image files go through an NVIDIA DALI pipeline, on a GPU, or without one or its driver.

What pixels an image has is for Pillow to say, as `encoded.decode` does. On the CPU DALI gives the same ones, bit for
bit, for JPEG and PNG files of the store's size: of 60,000 CIFAR-10 JPEGs not one pixel differs, nor in progressive,
grey, palette and deliberately damaged files. Elsewhere it does not, so that these files are decoded by Pillow in the
reading threads, and pass through DALI as the PPM files that they then are:

- Files of another size. DALI's antialiased bicubic filter differs from Pillow's by up to 10 of 255 (0.05 to 0.4 on
  average): it weighs pixels beyond the border otherwise, and does not round between its two passes. On two cores it is
  about as fast: 990 against 1,195 images a second from 256 × 256, 697 against 637 from 500 × 375.
- Files with 16 bits (by 1), alpha (DALI drops it) or a colour that is transparent; CMYK files, to be on the safe side.
- Files with Exif, or with a marker out of its place. Where a header is wrong for DALI's own parser, DALI 2.4 mostly
  ends the process by a segmentation fault, so that it is shown none that `_same_in_dali` has not walked through.

On a GPU, nvJPEG decodes JPEG files with another transform; by how much its pixels differ is not measured yet.
"""

import ctypes
import functools
import importlib
import os
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from struct import unpack_from
from types import ModuleType
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastres.data.loaders.base import LOADERS, ReadingLoader, Rows
from fastres.data.loaders.paging import Paging
from fastres.data.store.encoded import load_decoders
from fastres.errors import UserError
from fastres.utils.prefetch import prefetch

_QUEUE = 3  # batches that DALI has begun: one that is taken and two that are under way while the consumer works
_READ_AHEAD = 2  # batches of bytes that wait for DALI, beyond the one that it copies

Read = tuple[Rows, Any]
"""The rows of a batch, and what DALI is fed: one array of pixels, or a list of files as uint8 arrays."""


@functools.cache
def import_dali() -> ModuleType:
    """The package `nvidia.dali`. Raises UserError, with the line that installs it, where it is missing or broken."""
    try:
        with warnings.catch_warnings():
            # It announces which versions of Python and CUDA it will no longer support: nothing a training can change.
            warnings.simplefilter("ignore")
            dali = importlib.import_module("nvidia.dali")
            importlib.import_module("nvidia.dali.fn")
    except ModuleNotFoundError as error:
        raise UserError("the DALI loader needs NVIDIA DALI: `pip install 'fastres[dali]'`") from error
    except (ImportError, OSError) as error:
        raise UserError(
            f"NVIDIA DALI cannot be imported ({str(error)[:120]}):\n`pip install --force-reinstall 'fastres[dali]'`"
        ) from error
    return dali


@LOADERS.register("dali")
class DaliLoader(ReadingLoader):
    """Batches that pass through a DALI pipeline, in the order of order.py.

    `pixels` is uint8 [M, H, W, 3], memory-mapped, or `EncodedImages`; the other arguments are those of
    `ReadingLoader`. `workers` is both the number of DALI's threads and of those that read for it. Raises UserError
    where DALI is not installed.

    A pipeline takes 3 ms to build on a CPU, and more on a GPU, where decoders are set up: one that has come to the end
    of its epoch serves the next. One whose iterator was left early is taken apart, with what it had under way.
    """

    package = "nvidia.dali"

    def __init__(self, pixels: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(pixels, *arguments, **options)
        self.workers = max(1, self.workers)
        import_dali()
        self._encoded = not isinstance(pixels, np.ndarray)
        self._paging = Paging(pixels)
        self._idle: _Pipeline | None = None
        # Reading is Python's work for the most part: two threads that do it at once take the GIL from each other, and
        # deliver 21,000 files a second where one delivers 34,000. Others decode with Pillow meanwhile.
        self._reading = threading.Lock()
        _loaders.add(self)

    def _read(self, batches: Sequence[Rows]) -> Generator[Tensor, None, None]:
        if not batches:
            return
        if self._encoded:
            load_decoders()
        read = self._files if self._encoded else self._gathered
        with closing(prefetch(read, batches, threads=self.workers, depth=_READ_AHEAD)) as arriving:
            pipeline, self._idle = self._idle or self._built(_Feed()), None
            feed = pipeline.feed
            pipeline.start(arriving)
            while True:
                try:
                    images = pipeline.next()
                except StopIteration:
                    break
                except RuntimeError as error:
                    lost = feed.lost()
                    pipeline = self._built(feed)
                    yield from self._without_dali(lost, error)
                    continue
                yield images
            if feed.failure is not None:
                raise feed.failure
        self._idle = None if self._closed else pipeline

    def _gathered(self, rows: Rows) -> Read:
        self._paging.announce_rows(rows)
        with self._reading:
            return rows, np.take(self.pixels, rows, axis=0)

    def _files(self, rows: Rows) -> Read:
        """The files of `rows`; where DALI would give one other pixels, its pixels as a PPM file."""
        _, height, width, _ = self.pixels.shape
        with self._reading:
            files: list[bytes] = [self.pixels.read(row) for row in rows.tolist()]
            others = [at for at, data in enumerate(files) if not _same_in_dali(data, height, width)]
        for at in others:
            files[at] = b"P6 %d %d 255\n" % (width, height) + self.pixels.decode([int(rows[at])]).tobytes()
        return rows, [np.frombuffer(data, np.uint8) for data in files]

    def _without_dali(self, batches: Sequence[Rows], error: RuntimeError) -> Iterator[Tensor]:
        """The `batches` that were under way when DALI failed, decoded by Pillow.

        DALI is strict where Pillow is not: with a wrong checksum in a PNG file, say. An error of one image costs all
        batches that are under way, and DALI does not say which it was.
        """
        if not self._encoded or "decoders.image" not in str(error):
            reason = str(error).strip().splitlines()[-1][:160]
            raise UserError(f"DALI failed ({reason}):\nchoose another loader with data.loader") from error
        for rows in batches:
            yield torch.from_numpy(self.pixels.decode(rows)).to(self.device)

    def _built(self, feed: "_Feed") -> "_Pipeline":
        return _Pipeline(feed, self.batch_size, self.workers, self.device, self._encoded)

    def close(self) -> None:
        """End every iterator, its threads and its pipeline."""
        super().close()
        self._idle = None

    def after_fork(self) -> None:
        """Begin anew, in a child that was forked: what another thread held stays held, and no pipeline runs."""
        self._idle, self._reading = None, threading.Lock()


class _Feed:
    """Callback of DALI for each batch, whenever its queue has room."""

    def __init__(self) -> None:
        self.arriving: Iterator[Read] = iter(())
        self.pending: deque[Rows] = deque()
        """The batches that were fed and have not come out yet."""
        self.failure: Exception | None = None
        """Exception of reading the batch after these. It is kept until they have been delivered: raised at
        once, it would come out of DALI at a batch before its own."""

    def __call__(self) -> Any:
        if self.failure is not None:
            raise StopIteration
        try:
            rows, data = next(self.arriving)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise StopIteration from None
        self.pending.append(rows)
        return data

    def lost(self) -> list[Rows]:
        """The batches that will not come out, because their pipeline failed; pending no longer."""
        lost = list(self.pending)
        self.pending.clear()
        return lost


class _Pipeline:
    """A DALI pipeline from `feed` to uint8 [B, H, W, 3] on `device`; its threads end with it."""

    def __init__(self, feed: _Feed, batch_size: int, threads: int, device: torch.device, encoded: bool) -> None:
        dali = import_dali()
        self.feed = feed
        self._device = device
        on_gpu = device.type == "cuda"
        index = (torch.cuda.current_device() if device.index is None else device.index) if on_gpu else None
        queue = {"prefetch_queue_depth": _QUEUE}
        self._dali = dali.Pipeline(batch_size=batch_size, num_threads=threads, device_id=index, **queue)
        fn, types = dali.fn, dali.types
        with self._dali:
            # DALI copies what it is fed. Without the copy (no_copy) it would read memory that is ours to keep alive,
            # through every error.
            shape: dict[str, Any] = {"ndim": 1} if encoded else {"layout": "HWC"}
            images = fn.external_source(source=feed, dtype=types.UINT8, **shape)
            if encoded:
                images = fn.decoders.image(
                    images,
                    device="mixed" if on_gpu else "cpu",
                    output_type=types.RGB,
                    adjust_orientation=False,
                    jpeg_fancy_upsampling=True,  # as libjpeg, also where nvJPEG decodes
                )
            elif on_gpu:
                images = images.gpu()
            self._dali.set_outputs(images)
        self._dali.build()
        _pipelines.add(self)

    def abandon(self) -> None:
        """Never take it apart, which would wait for its threads: a forked child does not have them."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._dali._pipe))
        self._dali._pipe = None

    def start(self, arriving: Iterator[Read]) -> None:
        """Begin with the batches of `arriving`, after the end of those before."""
        self.feed.arriving, self.feed.failure = arriving, None
        self._dali.reset()

    def next(self) -> Tensor:
        """The next batch, in memory of its own. Raises StopIteration after the last, RuntimeError where DALI fails."""
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        self._dali.schedule_run()  # the first time in an epoch as often as the queue is long
        (outputs,) = self._dali.share_outputs(stream)
        images = from_dlpack(outputs.as_tensor())
        if stream is not None:
            # A tensor of torch's own, which whoever uses it on another stream can have recorded there. DALI's is bound
            # to this stream: it is used again only behind this copy.
            images = images.clone()
        # On the CPU the tensor is DALI's buffer, which the default executor gives away and never uses again.
        self._dali.release_outputs()
        self.feed.pending.popleft()
        return images


_pipelines: WeakSet[_Pipeline] = WeakSet()
_loaders: WeakSet[DaliLoader] = WeakSet()


def _after_fork() -> None:
    for pipeline in list(_pipelines):
        pipeline.abandon()
    for loader in list(_loaders):
        loader.after_fork()


os.register_at_fork(after_in_child=_after_fork)


_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive
# JFIF, APP2 to APP15, quantisation and Huffman tables, restart interval, comment. Not APP1, which is Exif.
_SEGMENTS = frozenset((0xE0, *range(0xE2, 0xF0), 0xDB, 0xC4, 0xDD, 0xFE))
_START_OF_SCAN = 0xDA


def _same_in_dali(data: bytes, height: int, width: int) -> bool:
    """Whether DALI gives the image file `data`, which Pillow can decode, the pixels that Pillow does.

    Follows the headers as far as DALI's parsers do. Takes 2 µs for a JPEG file, a tenth of its decoding.
    """
    if data.startswith(_JPEG):
        return _same_jpeg(data, height, width)
    if not data.startswith(_PNG):
        return False
    columns, rows, depth, colour, compression, filters, interlace = unpack_from(">IIBBBBB", data, 16)
    if (rows, columns) != (height, width) or depth > 8 or colour not in (0, 2, 3):  # grey, RGB, palette
        return False
    if compression or filters or interlace > 1:
        return False
    at = 33
    while at + 8 <= len(data):
        size, kind = unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return True
        if kind in (b"tRNS", b"eXIf"):
            return False
        at += 12 + size
    return False


def _same_jpeg(data: bytes, height: int, width: int) -> bool:
    at, seen = 2, False
    while at + 10 <= len(data):
        start, kind, size = unpack_from(">BBH", data, at)
        if start != 0xFF:
            return False
        if kind == _START_OF_SCAN:
            return seen
        if kind in _FRAMES:
            depth, rows, columns, channels = unpack_from(">BHHB", data, at + 4)
            if seen or depth != 8 or (rows, columns) != (height, width) or channels not in (1, 3):
                return False
            seen = True
        elif kind not in _SEGMENTS:
            return False
        at += 2 + size
    return False
