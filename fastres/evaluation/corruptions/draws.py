"""Random draws of a shifted test set: words of Philox-4x32-10 by counter, of seed, kind and the image's index alone.

The key is (seed, 1), where training's augmentation has (seed, 0); the counter is (index, concern, kind, block). The
severity is no part of it: at every severity an image gets the same angle, the same pattern of noise or the same fog,
and what differs between two severities is their strength.
"""

import functools
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fastres.augment.philox import philox_4x32

LEVELS = 2**16
"""Equally likely levels of what is drawn through a table of quantiles, one for each 16-bit half of a word."""

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Draws:
    """Random numbers for one kind of shift of n images; each `concern` of a kind, 0 by default, has its own."""

    seed: int
    """Below 2³²."""
    kind: int
    """Number of the kind."""
    indices: NDArray[np.int64]
    """int64 [n], 0 to 2³² - 1: positions of the images in their test set."""

    def random_bits(self, count: int, concern: int = 0) -> NDArray[np.uint32]:
        """uint32 [n, count]."""
        blocks = np.arange(-(-count // 4))
        random_bits = philox_4x32((self.indices[:, None], concern, self.kind, blocks), (self.seed, 1))
        return np.ascontiguousarray(random_bits.transpose(1, 2, 0).reshape(len(self.indices), -1)[:, :count])

    def halves(self, count: int) -> NDArray[np.uint16]:
        """uint16 [n, count]: of each word the low half, then the high one."""
        random_bits = self.random_bits(-(-count // 2)).astype("<u4", copy=False)
        return random_bits.view("<u2")[:, :count]

    def uniform(self, shape: tuple[int, ...], concern: int = 0) -> Array:
        """float32 [n, *shape] in [0, 1): the top 24 bits of a word each, which float32 holds exactly."""
        random_bits = self.random_bits(int(np.prod(shape)), concern)
        return ((random_bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)).reshape(-1, *shape)

    def between(self, low: float, high: float, shape: tuple[int, ...], concern: int = 0) -> Array:
        """float32 [n, *shape], uniform in [low, high)."""
        return self.uniform(shape, concern) * np.float32(high - low) + np.float32(low)

    def below(self, limit: int, shape: tuple[int, ...], concern: int = 0) -> NDArray[np.int64]:
        """int64 [n, *shape]: integers from 0 to limit - 1, for limits of up to 2¹⁶."""
        return (self.uniform(shape, concern) * np.float32(limit)).astype(np.int64)

    def normal(self, shape: tuple[int, ...]) -> Array:
        """float32 [n, *shape] of the standard normal distribution, in 65,536 levels up to ±4.3."""
        return normal_quantiles()[self.halves(int(np.prod(shape)))].reshape(-1, *shape)


@functools.cache
def middles() -> NDArray[np.float64]:
    """float64 [65536]: the probability in the middle of each level."""
    return (np.arange(LEVELS) + 0.5) / LEVELS


@functools.cache
def normal_quantiles() -> Array:
    """float32 [65536]: standard normal quantiles of the levels."""
    lower = np.fromiter(map(NormalDist().inv_cdf, middles()[: LEVELS // 2]), np.float64)
    return np.concatenate([lower, -lower[::-1]]).astype(np.float32)
