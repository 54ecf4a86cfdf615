"""Pillow's resampling of 8-bit images as tables of integers (Pillow, src/libImaging/Resample.c).

Pillow resizes in two passes, across and then down, with 8-bit pixels between them. A pass weighs neighbouring pixels
with coefficients that it rounds to 22 fractional bits, adds one half and shifts: integers throughout, so that tables of
the coefficients give its bits on every device. A crop that grows back to its image's size is never reduced; then a
pixel has two neighbours on an axis (bilinear) or four (bicubic), and a table needs the crop's side alone.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRACTION = 22
"""Fractional bits of the coefficients: 32 less 8 for the pixel and 2 for overshooting."""
TAPS = {"bilinear": 2, "bicubic": 4}
"""Pixels along one axis that a result depends on."""


@dataclass(frozen=True, eq=False)
class Taps:
    """Enlarging `side` pixels, 1 ≤ side ≤ S, to S: for pixel x of the result, with T taps,

        clip((2²¹ + Σ_t pixel[min(first[side, x] + t, side - 1)] · weight[side, x, t]) >> 22, 0, 255)

    all in int32. From T pixels on no index passes side - 1. side = S gives the pixels back.
    """

    first: NDArray[np.int32]
    """[S + 1, S]; row 0 is unused."""
    weight: NDArray[np.int32]
    """[S + 1, S, T], of sum 2²² but for rounding; 0 where the crop has no further pixel."""


@functools.cache
def taps(size: int, interpolation: str) -> Taps:
    """Tables for one axis of images of `size` pixels; 4·(T + 1)·size² bytes: 20 KB for 32, 20 MB for 1024."""
    count = TAPS[interpolation]
    first = np.zeros((size + 1, size), dtype=np.int32)
    weight = np.zeros((size + 1, size, count), dtype=np.int32)
    for side in range(1, size + 1):
        centre = (np.arange(size) + 0.5) * (side / size)
        start = np.maximum((centre - count / 2 + 0.5).astype(np.int64), 0)
        stop = np.minimum((centre + count / 2 + 0.5).astype(np.int64), side)
        # One more than the taps: rounding of `centre` can let in a pixel at the filter's edge, of weight 0.
        position = start[:, None] + np.arange(count + 1)
        weights = _filter(np.abs(position - centre[:, None] + 0.5), interpolation) * (position < stop[:, None])
        weights /= weights.sum(axis=1, keepdims=True)
        fixed = np.trunc(weights * 2**FRACTION + np.copysign(0.5, weights)).astype(np.int32)
        # A window of the right length that ends at the last pixel, or that leaves out the pixel of weight 0.
        moved = np.minimum(start + (fixed[:, count] != 0), max(side - count, 0))
        for tap in range(count):
            source = moved + tap - start
            inside = (source >= 0) & (source <= count)
            weight[side, :, tap] = np.where(inside, fixed[np.arange(size), np.clip(source, 0, count)], 0)
        first[side] = moved
    return Taps(first, weight)


def _filter(distance: NDArray[np.float64], interpolation: str) -> NDArray[np.float64]:
    """The filter at a distance from the centre, in pixels (Keys 1981 with a = -1/2 for bicubic)."""
    x = distance
    if interpolation == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
