"""Advice to the kernel (madvise) on a mapped file that is larger than memory.

When a page is missing the kernel reads 128 KB around it. While a file fits into memory that fills the cache soon. Where
it does not, each image of a shuffled epoch, 3 KB at 32 pixels, costs 128 KB of reading, at every epoch: with 2 GB of
images in 1 GB of memory, a disk that reads 1 GB a second was busy with 8,000 images a second. Such a file is read at
random, with nothing around, and the pages of a whole batch are announced at once, so that the disk has more to do at a
time than one page for each thread: 70,000 to 88,000 images a second.
"""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastres.utils.machine import usable_memory

CACHE_SHARE = 0.5
"""The part of memory that the page cache is taken to have for one file."""


class Paging:
    """Advice on one array of a memory-mapped file; for a file that fits into memory, or no map, it does nothing."""

    def __init__(self, array: Any) -> None:
        self._map: mmap.mmap | None = None
        mapped = getattr(array, "_mmap", None)  # of a np.memmap, and of views of one
        if mapped is not None and array.nbytes > CACHE_SHARE * usable_memory():
            mapped.madvise(mmap.MADV_RANDOM)
            self._map, self._row_bytes = mapped, array.strides[0]
            begin = np.frombuffer(mapped, np.uint8, 1).__array_interface__["data"][0]
            self._offset = array.__array_interface__["data"][0] - begin

    @property
    def active(self) -> bool:
        """Whether the file is larger than memory."""
        return self._map is not None

    def announce(self, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        """Let the kernel begin to read bytes [start, start + size) of the array, for each of them."""
        if self._map is None:
            return
        first = starts + self._offset
        pages = first // mmap.PAGESIZE * mmap.PAGESIZE
        for page, length in zip(pages.tolist(), (first + sizes - pages).tolist(), strict=True):
            self._map.madvise(mmap.MADV_WILLNEED, page, length)

    def announce_rows(self, rows: NDArray[np.int64]) -> None:
        """`announce` for rows of the array, which is contiguous."""
        if self._map is not None:
            self.announce(rows * self._row_bytes, np.full(len(rows), self._row_bytes))
