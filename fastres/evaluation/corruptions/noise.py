"""Noise: Gaussian, shot and impulse."""

import functools

import numpy as np
from numpy.typing import NDArray

from fastres.evaluation.corruptions.draws import LEVELS, Draws, middles
from fastres.evaluation.corruptions.values import Pixels, to_bytes, to_unit


def gaussian_noise(images: Pixels, sigma: float, draws: Draws) -> Pixels:
    """Normal noise of standard deviation `sigma`, where white is 1, for each value."""
    return to_bytes(to_unit(images) + np.float32(sigma) * draws.normal(images.shape[1:]))


def shot_noise(images: Pixels, photons: float, draws: Draws) -> Pixels:
    """Each value counts photons, Poisson distributed, of which white has `photons` on average."""
    table = _poisson_levels(photons)
    return table[images, draws.halves(images[0].size).reshape(images.shape)]


@functools.lru_cache(1)
def _poisson_levels(photons: float) -> NDArray[np.uint8]:
    """uint8 [256, 65536]: the value that each value becomes at each level of probability; 16 MB."""
    most = int(photons + 10 * photons**0.5 + 20)  # ten standard deviations above the mean of white
    counts = np.arange(most + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    bytes_of = to_bytes((counts / photons).astype(np.float32))
    table = np.empty((256, LEVELS), np.uint8)
    table[0] = 0
    for value in range(1, 256):
        mean = photons * value / 255
        cumulated = np.cumsum(np.exp(counts * np.log(mean) - mean - log_factorial))
        table[value] = bytes_of[np.minimum(np.searchsorted(cumulated, middles()), most)]
    return table


def impulse_noise(images: Pixels, amount: float, draws: Draws) -> Pixels:
    """Each value becomes, with probability `amount`, white or black, with equal chances: salt and pepper."""
    chance = draws.uniform(images.shape[1:])
    result = np.where(chance < np.float32(amount), np.uint8(0), images)
    result[chance < np.float32(amount / 2)] = 255
    return result
