"""Inference from a sample of runs on the mean of all possible ones: Student's t distribution and its uses.

Probabilities come from the finite series for whole degrees of freedom in Abramowitz and Stegun, "Handbook of
Mathematical Functions" (1964), 26.7.3 and 26.7.4; their absolute error is some 1e-15.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def central(t: float, degrees: int) -> float:
    """A(t | degrees): the probability that a t variable lies between −|t| and |t|."""
    if degrees < 1:
        raise ValueError(f"a t distribution has at least one degree of freedom, not {degrees}")
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    # Terms cosᵏ, each with (k − 1)/k of the one before; k = 3, 5, … under odd degrees, 2, 4, … under even ones.
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    return min(1.0, 2 / math.pi * (angle + sine * total) if odd else sine * total)


def tail(t: float, degrees: int) -> float:
    """The probability that a t variable is at least `t`."""
    half = (1 - central(t, degrees)) / 2
    return half if t >= 0 else 1 - half


def quantile(confidence: float, degrees: int) -> float:
    """The t ≥ 0 within which, on both sides of 0, a t variable lies with probability `confidence` (0 to below 1)."""
    if not 0 <= confidence < 1:
        raise ValueError(f"a confidence is at least 0 and below 1, not {confidence}")
    low, high = 0.0, 1.0
    while central(high, degrees) < confidence:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if central(middle, degrees) < confidence else (low, middle)
    return high


TWO_SEEDS = "two seeds say little (t is 12.7 with one degree of freedom)"
"""Stands beside the interval of a mean over two seeds."""


@dataclass(frozen=True)
class Sample:
    """Mean and spread of independent, roughly normal values; what takes two of them is None for a single one."""

    count: int
    mean: float
    sd: float | None
    """Standard deviation, estimated with count − 1."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """The sample `values`, of at least one. Sums are exact, so that equal values have a deviation of 0."""
        return cls(len(values), statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)

    @classmethod
    def of_known(cls, values: Iterable[float | None]) -> "Sample | None":
        """The sample of those values that are not None; None without any."""
        known = [value for value in values if value is not None]
        return cls.of(known) if known else None

    def interval(
        self, confidence: float = 0.95, *, low: float = -math.inf, high: float = math.inf
    ) -> tuple[float, float] | None:
        """Student's interval for the mean of all possible values, which lie between `low` and `high`.

        Between two bounds it is formed on the scale of the logit, so that it stays there. Of shares with the mean p and
        its standard error e = SD/√n the ends are expit(logit(p) ± t·e/(p(1 − p))), logit(p) = ln(p/(1 − p)), whose
        error is that by the delta method: "xlogit" of `svyciprop` in R's package survey (Lumley), SUDAAN's way with
        proportions. Above `low` alone the scale is that of the logarithm: m·exp(± t·e/m) for a mean m above it. A mean
        that is a bound, such as 0% or 100%, is one of equal values, and of those the interval is that point: without a
        spread there is nothing to tell how far the mean may be.
        """
        if self.sd is None:
            return None
        reach = quantile(confidence, self.count - 1) * self.sd / math.sqrt(self.count)
        if low == -math.inf:
            return self.mean - reach, self.mean + reach
        above, below = self.mean - low, high - self.mean
        if not reach or min(above, below) <= 0:
            return self.mean, self.mean
        if high == math.inf:
            factor = math.exp(reach / above)
            return low + above / factor, low + above * factor
        factor = math.exp(reach * (high - low) / (above * below))
        first, last = (low + (high - low) * above / (above + below * by) for by in (factor, 1 / factor))
        # The mean lies within by definition; rounding may put it 1e-16 outside where the spread is as small.
        return min(first, self.mean), max(last, self.mean)

    def p_above(self, target: float) -> float | None:
        """One-sided p of "the mean of all possible values is above `target`": how probable a sample mean at least this
        far above it would be if it were not. None also where all values are equal: there is no t without a spread."""
        if not self.sd:
            return None
        return tail((self.mean - target) / (self.sd / math.sqrt(self.count)), self.count - 1)


def wilson(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a fraction `correct` of `total` (Wilson 1927); z = 1.96 gives 95%.

    It covers the choice of the test images alone. Unlike the normal approximation it stays within 0 to 1 and is not
    empty where all or none are correct. Without any image it is (0, 1).
    """
    if total == 0:
        return 0.0, 1.0
    fraction, square = correct / total, z * z / total
    centre = (fraction + square / 2) / (1 + square)
    reach = z * math.sqrt(fraction * (1 - fraction) / total + square / (4 * total)) / (1 + square)
    # The fraction lies within by definition; rounding may put it 1e-16 outside where all or none are correct.
    return max(0.0, min(fraction, centre - reach)), min(1.0, max(fraction, centre + reach))
