"""Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3), the plain reference.

A counter-based generator has no state to carry: the words are a function of key and counter. Keyed by (seed, epoch,
dataset index, stream), a sample gets the same draws in whatever batch, loader or resumed run it comes up.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox_4x32(counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds of Philox-4x32: four words a counter, uint32 [4, *shape]; counter words, below 2³², broadcast."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    k0, k1 = key
    for _ in range(10):
        # 32×32 → 64-bit products: the high half is mixed with key and counter, the low half goes on as it is.
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (right >> _SHIFT) ^ c1 ^ np.uint64(k0),
            right & _LOW,
            (left >> _SHIFT) ^ c3 ^ np.uint64(k1),
            left & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def uniforms(seed: int, epoch: int, indices: NDArray[np.int64], stream: int) -> NDArray[np.float32]:
    """Four uniform draws in [0, 1) a sample, float32 [4, N]: the top 24 bits of each word, which is exact."""
    random_bits = philox_4x32((indices, epoch, stream, 0), (seed, 0))
    return (random_bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
