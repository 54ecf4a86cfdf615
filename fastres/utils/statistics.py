"""Inference from a sample of runs on the mean of all possible ones: Student's t distribution and two uses of it.

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

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Student's interval for the mean of all possible values."""
        if self.sd is None:
            return None
        reach = quantile(confidence, self.count - 1) * self.sd / math.sqrt(self.count)
        return self.mean - reach, self.mean + reach

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
