"""Tables that the draws share on every device, built once in fp64 and rounded once to fp32.

Where a draw needs a root, an exponential or the inverse of a distribution function, a device would bring its own
rounding. Instead the top twelve bits of a random word choose one of 4,096 equally likely values, each the quantile at
the middle of its interval. A drawn quantity then differs from its continuous law by at most 1/8,192 in probability,
which is below what a test of 10⁵ draws can see, and is the same number on every device.
"""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVELS = 4096
"""Entries of each table; the top twelve bits of a word are the index: `word >> 20`."""

_MIDDLES = (np.arange(LEVELS) + 0.5) / LEVELS


@dataclass(frozen=True, eq=False)
class BoxTables:
    """Sides of a random box of given share of the image and given aspect ratio: with s and r two table indices,

        width  = (⌊twice_side[s] · widen[r]⌋ + 1) >> 1        height = (⌊twice_side[s] · narrow[r]⌋ + 1) >> 1

    that is √(area·ratio) and √(area/ratio) to the nearest pixel: one fp32 product each, with nothing to fuse.
    """

    twice_side: NDArray[np.float32]
    """[LEVELS], 2·√(H·W·share), share uniform."""
    widen: NDArray[np.float32]
    """[LEVELS], √ratio, log ratio uniform."""
    narrow: NDArray[np.float32]
    """[LEVELS], 1/√ratio of the same ratio."""


def box_tables(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> BoxTables:
    """Tables for images of `size` (H, W), shares between the two of `scale` and ratios between the two of `ratio`."""
    fractions = scale[0] + (scale[1] - scale[0]) * _MIDDLES
    log_ratio = math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * _MIDDLES
    return BoxTables(
        (2 * np.sqrt(size[0] * size[1] * fractions)).astype(np.float32),
        np.exp(log_ratio / 2).astype(np.float32),
        np.exp(-log_ratio / 2).astype(np.float32),
    )


@functools.cache
def normal_table() -> NDArray[np.float32]:
    """[LEVELS], quantiles of the standard normal distribution, between ±3.67, scaled by 1.0003 to unit variance."""
    quantile = NormalDist().inv_cdf
    upper = np.array([quantile(middle) for middle in _MIDDLES[LEVELS // 2 :]])
    values = np.concatenate([-upper[::-1], upper])
    return (values / values.std()).astype(np.float32)


@functools.cache
def beta_table(alpha: float) -> NDArray[np.float32]:
    """[LEVELS], quantiles of Beta(alpha, alpha), alpha > 0, to fp32's last digit.

    The distribution function on the lower half is the positive series x^a (1-x)^a / (a·B(a, a)) · Σ Π (2a+j)/(a+1+j)·x
    (Abramowitz and Stegun, 26.5.4), inverted by bisection over log (2x)^a, which is moderate however small alpha is;
    the upper half is its mirror image.
    """
    wanted = np.log(_MIDDLES[: LEVELS // 2])
    log_scale = math.lgamma(2 * alpha) - 2 * math.lgamma(alpha) - math.log(alpha)
    terms = math.ceil(80 + 20 * math.sqrt(alpha))  # the rest of the series is below 2⁻⁵³ of its sum
    ratios = [(2 * alpha + term) / (alpha + 1 + term) for term in range(terms)]
    low, high = np.full_like(wanted, -80.0), np.zeros_like(wanted)  # alpha = 1000 needs -36
    with np.errstate(under="ignore"):  # alpha = 0.001 has quantiles below fp64's least number
        for _ in range(60):
            middle = (low + high) / 2
            x = np.exp(middle / alpha) / 2
            total, term = np.ones_like(x), np.ones_like(x)
            for ratio in ratios:
                term *= ratio * x
                total += term
            log_share = middle - alpha * math.log(2) + alpha * np.log1p(-x) + log_scale + np.log(total)
            low, high = np.where(log_share < wanted, middle, low), np.where(log_share < wanted, high, middle)
        lower = np.exp((low + high) / (2 * alpha)) / 2
        return np.concatenate([lower, 1 - lower[::-1]]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class MixTables:
    """Tables of a batch's mixing, looked up by the level of λ."""

    weight: NDArray[np.float32]
    """[LEVELS], λ: quantiles of Beta(alpha, alpha)."""
    half_side: NDArray[np.float32]
    """[LEVELS], √(1-λ)/2: half of CutMix's side, as a share of the image's."""


@functools.cache
def mix_tables(alpha: float) -> MixTables:
    """Tables for Beta(alpha, alpha)."""
    weight = beta_table(alpha)
    return MixTables(weight, (np.sqrt(1 - weight.astype(np.float64)) / 2).astype(np.float32))
