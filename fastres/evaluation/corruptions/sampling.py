"""Resampling and filtering that several kinds of shift share: float32 arrays [n, H, W, 3] in and out.

What treats rows and columns alike is a matrix for each: `separable` multiplies an image at a time, so that a result
does not depend on the other images of the batch.
"""

import functools
import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fastres.evaluation.corruptions.draws import Array

Positions = NDArray[np.int64]


def mirrored(positions: Positions, size: int, *, edge_twice: bool) -> Positions:
    """Indices 0 to size - 1 that any integer positions mean where an image of `size` pixels goes on as its mirror
    image, in which its outermost pixel comes again (d c b a | a b c d) or not (d c b | a b c d)."""
    period = 2 * size if edge_twice else max(1, 2 * size - 2)
    inside = positions % period
    return np.minimum(inside, period - (1 if edge_twice else 0) - inside)


def separable(images: Array, rows: Array, columns: Array) -> Array:
    """Each channel P [H, W] of each image as rows · P · columnsᵀ; matrices float32 [H', H] and [W', W]."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return np.ascontiguousarray((rows @ planes @ columns.T).transpose(0, 2, 3, 1))


@functools.lru_cache(64)
def gaussian_matrix(size: int, sigma: float, truncate: float, border: str) -> Array:
    """float32 [size, size]: a Gaussian filter, in pixels, cut off at truncate·sigma; beyond the border stands the
    outermost pixel (`edge`) or the mirror image, outermost pixel included (`mirror`)."""
    reach = int(truncate * sigma + 0.5)
    taps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2) if reach else np.ones(1)
    positions = np.arange(size)[:, None] + taps
    at_edge = border == "edge"
    sources = np.clip(positions, 0, size - 1) if at_edge else mirrored(positions, size, edge_twice=True)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], sources), weights / weights.sum())
    return matrix.astype(np.float32)


def gaussian(images: Array, sigma: float, *, truncate: float = 4, border: str = "edge") -> Array:
    """`images` after a Gaussian filter; sigma 0 is none."""
    if sigma == 0:
        return images
    rows, columns = (gaussian_matrix(side, sigma, truncate, border) for side in images.shape[1:3])
    return separable(images, rows, columns)


@functools.lru_cache(1024)
def zoom_matrix(size: int, factor: float) -> Array:
    """float32 [size, size]: the central ⌈size/factor⌉ pixels of an axis, enlarged by linear interpolation between the
    centres of the first and the last, and cut to `size` again; factor ≥ 1."""
    crop = math.ceil(size / factor)
    enlarged = max(size, round(crop * factor))
    first = (size - crop) // 2
    at = np.arange(size) + (enlarged - size) // 2
    source = at * (crop - 1) / max(1, enlarged - 1)
    before = np.minimum(np.floor(source).astype(np.int64), crop - 1)
    fraction = source - before
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size), first + before), 1 - fraction)
    np.add.at(matrix, (np.arange(size), first + np.minimum(before + 1, crop - 1)), fraction)
    return matrix.astype(np.float32)


def zoom(images: Array, factor: float) -> Array:
    """The middle of `images`, enlarged to their size."""
    height, width = images.shape[1:3]
    return separable(images, zoom_matrix(height, factor), zoom_matrix(width, factor))


def bilinear(images: Array, rows: Array, columns: Array, *, edge_twice: bool) -> Array:
    """`images` at the positions `rows` and `columns`, float32 [n, H, W] in pixels, by bilinear interpolation; beyond
    the border stands the mirror image (see `mirrored`)."""
    count, height, width, channels = images.shape
    flat = images.reshape(-1, channels)
    first = (np.arange(count) * (height * width))[:, None, None]
    above, left = np.floor(rows), np.floor(columns)
    down, right = (rows - above)[..., None], (columns - left)[..., None]
    row, column = above.astype(np.int64), left.astype(np.int64)
    starts = [first + mirrored(row + step, height, edge_twice=edge_twice) * width for step in (0, 1)]
    across = [mirrored(column + step, width, edge_twice=edge_twice) for step in (0, 1)]
    upper, lower = (
        flat.take(start + across[0], axis=0) * (1 - right) + flat.take(start + across[1], axis=0) * right
        for start in starts
    )
    return upper * (1 - down) + lower * down


def streak(images: Array, radius: float, sigma: float, angles: Array) -> Array:
    """Motion blur: each pixel becomes the mean of those on the way from it in a direction, weighted by the right half
    of a Gaussian. `angles`, float32 [n] in degrees, turn each image's direction from its rows downwards.

    `radius` and `sigma` are in pixels. The way has 2⌈radius⌉ + 1 pixels, as in ImageMagick's MotionBlurImage, from
    which the published sets come, cut where weights are below 10⁻⁵ of the first. The outermost pixel goes on for ever.
    """
    weights = np.exp(-0.5 * (np.arange(2 * math.ceil(radius) + 1) / sigma) ** 2)
    weights = weights[weights > 1e-5]
    weights /= weights.sum()
    height, width = images.shape[1:3]
    reach = len(weights)
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    windows = np.moveaxis(sliding_window_view(padded, (height, width), axis=(1, 2)), 3, 5)
    turn = np.deg2rad(angles.astype(np.float64))
    every = np.arange(len(images))
    result = np.zeros_like(images)
    for tap, weight in enumerate(weights.astype(np.float32)):
        down, right = (np.rint(tap * part(turn)).astype(np.int64) for part in (np.sin, np.cos))
        result += weight * windows[every, reach + down, reach + right]
    return result
