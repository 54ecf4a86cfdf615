"""Blur: out of focus, behind glass, of motion, of zooming."""

import functools
import math

import numpy as np

from fastres.evaluation.corruptions.draws import Array, Draws
from fastres.evaluation.corruptions.sampling import gaussian, mirrored, separable, streak, zoom_matrix
from fastres.evaluation.corruptions.values import Pixels, scale, to_bytes, to_unit


def defocus_blur(images: Pixels, constants: tuple[float, float], draws: Draws) -> Pixels:
    """Convolution with a disk, smoothed by a Gaussian; (radius, sigma) in pixels of 32. The image goes on beyond its
    border as its mirror image, without the outermost pixel twice."""
    kernel = disk(*constants, scale(images))
    values, reach = to_unit(images), len(kernel) // 2
    height, width = images.shape[1:3]
    rows, columns = (mirrored(np.arange(-reach, side + reach), side, edge_twice=False) for side in (height, width))
    padded = values[:, rows][:, :, columns]
    result = np.zeros_like(values)
    for down, right in zip(*np.nonzero(kernel), strict=True):
        result += kernel[down, right] * padded[:, down : down + height, right : right + width]
    return to_bytes(result)


@functools.lru_cache(16)
def disk(radius: float, sigma: float, factor: float = 1.0) -> Array:
    """float32 [2r + 1, 2r + 1] of sum 1: the pixels within factor·radius of the middle, smoothed by a Gaussian of
    factor·sigma that is cut off after one pixel of 32. Weights below 10⁻⁶ are left out."""
    radius, sigma, cut = factor * radius, factor * sigma, round(factor)
    reach = math.floor(radius) + cut
    square = np.arange(-reach, reach + 1) ** 2
    inside = (square[:, None] + square <= radius**2).astype(np.float64)
    weights = np.exp(-0.5 * (np.arange(-cut, cut + 1) / sigma) ** 2)
    weights /= weights.sum()
    smooth = np.zeros((2 * reach + 1, 2 * reach + 1))
    for step, weight in zip(range(-cut, cut + 1), weights, strict=True):
        smooth += weight * np.eye(2 * reach + 1, k=step)
    kernel = smooth @ inside @ smooth
    kernel[kernel < 1e-6 * kernel.sum()] = 0
    return (kernel / kernel.sum()).astype(np.float32)


def glass_blur(images: Pixels, constants: tuple[float, int, int], draws: Draws) -> Pixels:
    """Pixels take the colour of others nearby, between two Gaussian filters; (sigma and reach in pixels of 32, times).

    The paper swaps pixels. Its generator overwrites one of the two before it reads it, which amounts to this: a pixel
    becomes the one at an offset drawn from -reach to reach - 1, down and across. The first reach + 1 rows and columns
    and the last reach - 1 stay.
    """
    sigma, reach, repetitions = constants
    factor = scale(images)
    sigma, reach = factor * sigma, round(factor * reach)
    values = gaussian(to_unit(images), sigma)
    count, height, width = images.shape[:3]
    rows, columns = np.arange(reach + 1, height - reach + 1), np.arange(reach + 1, width - reach + 1)
    every = np.arange(count)[:, None, None]
    size, inside = (len(rows), len(columns)), np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for repetition in range(repetitions):
        down, right = (draws.below(2 * reach, size, 2 * repetition + axis) - reach for axis in (0, 1))
        moved = values.copy()
        moved[inside] = values[every, rows[:, None] + down, columns + right]
        values = moved
    return to_bytes(gaussian(values, sigma))


def motion_blur(images: Pixels, constants: tuple[float, float], draws: Draws) -> Pixels:
    """A streak at an angle between -45° and 45° to the rows; (radius, sigma) in pixels of 32."""
    radius, sigma = (scale(images) * length for length in constants)
    return to_bytes(streak(to_unit(images), radius, sigma, draws.between(-45, 45, ())))


def zoom_blur(images: Pixels, steps: int, draws: Draws) -> Pixels:
    """Mean of the image and of its middle enlarged by 1, 1.01, … in `steps` steps. Enlarged sides are
    whole pixels, as published: 8 pixels enlarged by 1.06, the most at severity 1, are 8."""
    height, width = images.shape[1:3]
    values = to_unit(images)
    total = values.copy()
    for step in range(steps):
        total += separable(values, zoom_matrix(height, 1 + step / 100), zoom_matrix(width, 1 + step / 100))
    return to_bytes(total / np.float32(steps + 1))
