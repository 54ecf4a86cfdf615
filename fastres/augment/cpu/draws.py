"""draws.py once more, compiled with Numba: the draws of a range of samples, without NumPy's cost for small batches.

Everything that this module's compiled functions call stands in this file: Numba's cache on disk compares the
modification time of one file only. Arithmetic is in 64-bit integers, where nothing overflows, and single fp32 products.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastres.augment.draws import ATTEMPTS, COLOUR, CROP, ERASE, GEOMETRY, HUE_BITS, NOISE, Draws, Plan
from fastres.augment.tables import LEVELS, BoxTables
from fastres.utils.numba_cache import cached_njit

COLUMNS = 23
"""Entries of a sample's row: the fields of Draws in their order, cutout and erase with four each."""

Rows = NDArray[np.int32]

_compiled: Any = cached_njit()


def rows(draws: Draws) -> Rows:
    """Draws as int32 [N, COLUMNS], as `draw_range` fills them."""
    return np.concatenate([np.atleast_2d(np.asarray(array, np.int32)) for array in vars(draws).values()]).T.copy()


def pack(plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """A plan as arrays, which compiled code takes: whole numbers, probabilities, tables [6, LEVELS]."""
    numbers = np.array(
        [
            *plan.size,
            plan.crop is not None,
            *plan.crop_fallback,
            plan.translate,
            ("none", "random", "alternating").index(plan.flip),
            *plan.factor_low,
            *plan.factor_levels,
            plan.hue_reach,
            plan.cutout,
            plan.erase is not None,
        ],
        dtype=np.int64,
    )
    chances = np.array([*plan.chances.values()], dtype=np.float32)
    nothing = np.zeros((3, LEVELS), dtype=np.float32)
    return numbers, chances, np.concatenate([_stack(plan.crop, nothing), _stack(plan.erase, nothing)])


def _stack(tables: BoxTables | None, nothing: NDArray[np.float32]) -> NDArray[np.float32]:
    return nothing if tables is None else np.stack([tables.twice_side, tables.widen, tables.narrow])


@_compiled
def philox(index, epoch, stream, block, seed):  # type: ignore[no-untyped-def]
    """philox.philox_4x32 of one counter: four uint64 that hold 32-bit words."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = np.uint64(index), np.uint64(epoch), np.uint64(stream), np.uint64(block)
    k0, k1 = np.uint64(seed), np.uint64(0)
    for _ in range(10):
        left, right = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (right >> shift) ^ c1 ^ k0, right & low, (left >> shift) ^ c3 ^ k1, left & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


@_compiled
def _uniform(word):  # type: ignore[no-untyped-def]
    return np.float32(word >> np.uint64(8)) * np.float32(2.0**-24)


@_compiled
def _below(word, bound):  # type: ignore[no-untyped-def]
    return np.int64(_uniform(word) * np.float32(bound))


@_compiled
def _box(sample, epoch, stream, block, seed, height, width, tables, erasing, row, at):  # type: ignore[no-untyped-def]
    """Write top, left, height, width of the first box that fits to row[at:at + 4], and say whether there was one."""
    for attempt in range(ATTEMPTS):
        w0, w1, w2, w3 = philox(sample, epoch, stream, block + attempt, seed)
        side, ratio = tables[0, w0 >> np.uint64(20)], w1 >> np.uint64(20)
        wide = (np.int64(side * tables[1, ratio]) + 1) >> 1
        narrow = (np.int64(side * tables[2, ratio]) + 1) >> 1
        if erasing:
            tall, broad = wide, narrow
            fits = tall < height and broad < width
        else:
            tall, broad = narrow, wide
            fits = 0 < tall <= height and 0 < broad <= width
        if fits:
            row[at], row[at + 1] = _below(w2, height - tall + 1), _below(w3, width - broad + 1)
            row[at + 2], row[at + 3] = tall, broad
            return True
    return False


@_compiled
def draw_range(indices, seed, epoch, numbers, chances, tables, out):  # type: ignore[no-untyped-def]
    """draws.draw into int32 [N, COLUMNS] for the dataset indices int64 [N]."""
    height, width, translate, flipping = numbers[0], numbers[1], numbers[7], numbers[8]
    hue_reach, cutout = numbers[15], numbers[16]
    for n in range(len(indices)):
        sample, row = indices[n], out[n]
        row[:] = 0
        for k in range(4):
            row[k] = numbers[3 + k]
        if numbers[2]:
            _box(sample, epoch, CROP, 0, seed, height, width, tables[:3], False, row, 0)
        w0, w1, w2, w3 = philox(sample, epoch, GEOMETRY, 0, seed)
        row[4], row[5] = _below(w0, 2 * translate + 1) - translate, _below(w1, 2 * translate + 1) - translate
        if flipping == 2:
            w0, w1, w2, w3 = philox(sample, 0, GEOMETRY, 0, seed)
            row[6] = np.int64(_uniform(w2) < np.float32(0.5)) ^ (epoch & 1)
        elif flipping == 1:
            row[6] = _uniform(w2) < np.float32(0.5)
        w0, w1, w2, w3 = philox(sample, epoch, COLOUR, 0, seed)
        row[7], row[13], row[14] = _uniform(w0) < chances[0], _uniform(w2) < chances[1], _uniform(w3) < chances[2]
        row[8] = _below(w1, 24)
        w0, w1, w2, w3 = philox(sample, epoch, COLOUR, 1, seed)
        row[9], row[10] = numbers[9] + _below(w0, numbers[12]), numbers[10] + _below(w1, numbers[13])
        row[11] = numbers[11] + _below(w2, numbers[14])
        shift = _below(w3, 2 * hue_reach + 1) - hue_reach
        row[12] = (-(-shift >> HUE_BITS) if shift < 0 else shift >> HUE_BITS) & 255
        if cutout or numbers[17]:
            w0, w1, w2, w3 = philox(sample, epoch, ERASE, 0, seed)
            if cutout:
                top, left = _below(w1, height) - cutout // 2, _below(w2, width) - cutout // 2
                row[15], row[16] = min(max(top, 0), height), min(max(left, 0), width)
                row[17], row[18] = min(max(top + cutout, 0), height), min(max(left + cutout, 0), width)
            if (
                numbers[17]
                and _uniform(w0) < chances[3]
                and _box(sample, epoch, ERASE, 1, seed, height, width, tables[3:], True, row, 19)
            ):
                row[21] += row[19]
                row[22] += row[20]


@_compiled
def noise_range(indices, seed, epoch, table, strength, out):  # type: ignore[no-untyped-def]
    """reference.noise into fp32 [N, H·W·3]."""
    for n in range(len(indices)):
        for pixel in range(out.shape[1] // 3):
            w0, w1, w2, _ = philox(indices[n], epoch, NOISE, pixel, seed)
            out[n, 3 * pixel] = table[w0 >> np.uint64(20)] * strength[0]
            out[n, 3 * pixel + 1] = table[w1 >> np.uint64(20)] * strength[1]
            out[n, 3 * pixel + 2] = table[w2 >> np.uint64(20)] * strength[2]
