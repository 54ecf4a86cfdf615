"""The compiled half of the FFCV loader: the samples of a batch, from a mapped beton to an array of their own.

Each call is one thread's work and releases the interpreter's lock; nothing here is `parallel`, because Numba's
`workqueue` ends a process in which two threads run parallel code. Compiled code is kept on disk (see
augment/cpu/launch.py), which compares this file only: everything that a compiled function calls stands here.

JPEG samples are decoded by libturbojpeg, the library that FFCV is linked with, without its own `imdecode`: that one
keeps two handles, 10 KB, of each thread that ever decoded, and its fast, inexact transform differs from
Pillow's pixels by up to 5 of 255 in 65% of all values (mean 0.99, 10,000 files of CIFAR-10), while the exact one gives
Pillow's pixels bit for bit and is no slower on images of 32 pixels. The library's functions are called by names that
`bind` gives to addresses, so that cached code holds no address of another process.
"""

import ctypes
import functools
from typing import Any

import numpy as np
from llvmlite import binding
from numba import types

from fastres.utils.numba_cache import cached_njit

_compiled: Any = cached_njit()

# TJPF_RGB and TJFLAG_ACCURATEDCT of turbojpeg.h.
_RGB, _EXACT = 0, 4096

_copy: Any = types.ExternalFunction("fastres_memcpy", types.uintp(types.uintp, types.uintp, types.uintp))
_open: Any = types.ExternalFunction("fastres_tjInitDecompress", types.uintp())
_decompress: Any = types.ExternalFunction(
    "fastres_tjDecompress2",
    types.intc(
        types.uintp,  # the decompressor
        types.uintp,  # the file
        types.uintp,  # its bytes
        types.uintp,  # the pixels
        *(types.intc,) * 5,  # width, pitch (0: without gaps), height, order of the channels, flags
    ),
)
_close: Any = types.ExternalFunction("fastres_tjDestroy", types.intc(types.uintp))

OUTSIDE, CHANGED, UNDECODABLE, NO_DECODER = 1, 2, 3, 4
"""Why `decode_rows` stopped."""


@functools.cache
def bind(library: ctypes.CDLL) -> None:
    """Let compiled code call libturbojpeg, which `library` was linked with. To be called before it runs."""
    binding.add_symbol("fastres_memcpy", ctypes.cast(ctypes.CDLL(None).memcpy, ctypes.c_void_p).value)
    for name in ("tjInitDecompress", "tjDecompress2", "tjDestroy"):
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        binding.add_symbol(f"fastres_{name}", address)


@_compiled  # type: ignore[untyped-decorator]
def copy_rows(mapped: Any, starts: Any, rows: Any, out: Any) -> int:
    """Copy the raw samples `rows` (int64 [B]) of the file `mapped` (uint8) to `out` (uint8 [B, bytes of an image]).

    `starts`, int64 [N], has the place of each sample, checked by whoever opened the file. Returns the position in
    `rows` of the first that does not exist, before anything is read; -1: all are copied.
    """
    for position in range(len(rows)):
        if rows[position] < 0 or rows[position] >= len(starts):
            return position
    size = out.shape[1]
    for position in range(len(rows)):
        # An assignment of slices takes six times as long, a loop over bytes thirteen times.
        _copy(out.ctypes.data + position * size, mapped.ctypes.data + starts[rows[position]], size)
    return -1


@_compiled  # type: ignore[untyped-decorator]
def checksum(data: Any) -> Any:
    """A 64-bit sum of uint8 [n]: each word of eight bytes goes in by exclusive or and a multiplication.

    Both are one to one, so that a change within one word never goes unnoticed; other changes do once in 2⁶⁴ times.
    """
    prime = np.uint64(0x9E3779B97F4A7C15)
    total = np.uint64(len(data)) * prime
    whole = len(data) // 8 * 8
    for start in range(0, whole, 8):
        word = np.uint64(0)
        for byte in range(8):
            word |= np.uint64(data[start + byte]) << np.uint64(8 * byte)
        total = (total ^ word) * prime
        total ^= total >> np.uint64(29)
    for position in range(whole, len(data)):
        total = (total ^ np.uint64(data[position])) * prime
    return total ^ (total >> np.uint64(32))


@_compiled  # type: ignore[untyped-decorator]
def decode_rows(
    mapped: Any, starts: Any, sizes: Any, encoded: Any, sums: Any, rows: Any, side: int, out: Any
) -> tuple[int, int]:
    """Check and decode the samples `rows` (int64 [B]) of the file `mapped` (uint8) to `out` (uint8 [B, bytes]).

    `starts` and `sizes`, int64 [N], say where each sample lies; `encoded`, bool [N], whether it is a JPEG file or
    pixels; `sums`, uint64 [N], has its checksum. Returns the position in `rows` of the first that failed, and why;
    (-1, 0): all are there.
    """
    decoder = _open()
    if decoder == 0:
        return 0, NO_DECODER
    failed, why = -1, 0
    for position in range(len(rows)):
        row = rows[position]
        if row < 0 or row >= len(starts):
            failed, why = position, OUTSIDE
            break
        data = mapped[starts[row] : starts[row] + sizes[row]]
        if checksum(data) != sums[row]:
            failed, why = position, CHANGED
            break
        if not encoded[row]:
            _copy(out[position].ctypes.data, data.ctypes.data, len(data))
        elif (
            _decompress(decoder, data.ctypes.data, len(data), out[position].ctypes.data, side, 0, side, _RGB, _EXACT)
            != 0
        ):
            failed, why = position, UNDECODABLE
            break
    _close(decoder)
    return failed, why
