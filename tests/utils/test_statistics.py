"""Student's t against printed tables and against integration of its density."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastres.utils.statistics import Sample, central, quantile, tail

# Two-sided quantiles as tables of the t distribution print them: degrees, confidence, t.
TABLE = [
    (1, 0.95, 12.706),
    (2, 0.95, 4.3027),
    (3, 0.95, 3.1824),
    (4, 0.95, 2.7764),
    (5, 0.90, 2.0150),
    (5, 0.99, 4.0321),
    (9, 0.95, 2.2622),
    (10, 0.95, 2.2281),
    (19, 0.95, 2.0930),
    (20, 0.99, 2.8453),
    (29, 0.95, 2.0452),
    (30, 0.95, 2.0423),
    (60, 0.95, 2.0003),
    (120, 0.95, 1.9799),
]


@pytest.mark.parametrize(("degrees", "confidence", "t"), TABLE)
def test_quantiles_of_the_tables(degrees: int, confidence: float, t: float) -> None:
    assert quantile(confidence, degrees) == pytest.approx(t, abs=6e-4 if degrees == 1 else 6e-5)
    assert tail(quantile(confidence, degrees), degrees) == pytest.approx((1 - confidence) / 2, abs=1e-14)


def test_many_degrees_are_nearly_the_normal_distribution() -> None:
    assert quantile(0.95, 10_000) == pytest.approx(1.959964 * (1 + (1.96**2 + 1) / 40_000), abs=1e-6)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8, 24, 199])
@pytest.mark.parametrize("t", [0.3, 1.7, 5.0])
def test_the_series_is_the_integral_of_the_density(degrees: int, t: float) -> None:
    """Simpson's rule with 4,000 intervals: its error is far below 1e-11 here."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    count = 4000
    total = 0.0
    for place in range(count + 1):
        weight = 1 if place in (0, count) else 4 if place % 2 else 2
        total += weight * (1 + (place * t / count) ** 2 / degrees) ** (-(degrees + 1) / 2)
    assert central(t, degrees) == pytest.approx(2 * scale * total * t / count / 3, abs=1e-11)


def test_tails_on_both_sides() -> None:
    assert tail(0.0, 7) == 0.5
    assert tail(-1.3, 7) + tail(1.3, 7) == 1
    assert tail(1e9, 7) == pytest.approx(0, abs=1e-14)
    assert central(math.inf, 3) == 1


def test_a_sample() -> None:
    """Gosset's own example (1908): hours of sleep gained by ten patients; t = 0.75 / (1.7890 / √10) = 1.3257."""
    gained = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    sample = Sample.of(gained)
    assert (sample.count, sample.mean) == (10, pytest.approx(0.75))
    assert sample.sd == pytest.approx(1.789010, abs=1e-6)
    low, high = sample.interval() or (0.0, 0.0)
    assert (low, high) == (pytest.approx(-0.5297804, abs=1e-6), pytest.approx(2.0297804, abs=1e-6))
    assert sample.p_above(0.0) == pytest.approx(0.1087989, abs=1e-6)
    assert sample.p_above(0.75) == 0.5
    above = sample.p_above(2.0)
    assert above is not None and above > 0.95


def test_samples_that_say_nothing_of_the_spread() -> None:
    single = Sample.of([0.94])
    assert (single.mean, single.sd, single.interval(), single.p_above(0.9)) == (0.94, None, None, None)
    equal = Sample.of([0.1] * 3)
    assert (equal.mean, equal.sd, equal.interval(), equal.p_above(0.0)) == (0.1, 0.0, (0.1, 0.1), None)


def test_an_interval_of_shares_by_hand() -> None:
    """p = 0.9, e = 0.05, t(2) = 4.3027: ln 9 ± 4.3027 · 0.05 / 0.09 = 2.1972 ± 2.3904. Five decimals by hand."""
    sample = Sample(3, 0.9, 0.05 * math.sqrt(3))
    assert sample.interval(low=0, high=1) == pytest.approx((0.45187, 0.98992), abs=1e-5)
    # Twice as far between bounds that are twice as far apart.
    differences = Sample(3, 0.8, 0.1 * math.sqrt(3)).interval(low=-1, high=1)
    assert differences == pytest.approx((2 * 0.45187 - 1, 2 * 0.98992 - 1), abs=2e-5)
    # ln 0.5 ± 4.3027 · 0.05 / 0.5.
    assert Sample(3, 0.5, 0.05 * math.sqrt(3)).interval(low=0) == pytest.approx((0.32516, 0.76883), abs=1e-5)


def test_a_narrow_interval_of_shares_is_the_plain_one() -> None:
    sample = Sample.of([0.9401, 0.9402, 0.9399, 0.9400])
    # The scales differ by the square of the interval's half width, 0.0002, over the distance to the bound, 0.06.
    assert sample.interval(low=0, high=1) == pytest.approx(sample.interval(), abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_that_are_all_nothing_or_all_have_that_point_as_interval(share: float) -> None:
    assert Sample.of([share] * 3).interval(low=0, high=1) == (share, share)
    assert Sample.of([share, 0.5]).interval(low=0, high=1) != (share, share)
    assert Sample.of([share]).interval(low=0, high=1) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_an_interval_of_shares_holds_the_mean_and_only_shares(shares: list[float]) -> None:
    sample = Sample.of(shares)
    low, high = sample.interval(low=0, high=1) or (2.0, 2.0)
    assert 0 <= low <= sample.mean <= high <= 1
    above, most = sample.interval(low=0) or (2.0, 2.0)
    assert 0 <= above <= sample.mean <= most


@pytest.mark.parametrize("wrong", [lambda: central(1.0, 0), lambda: quantile(1.0, 3), lambda: quantile(-0.1, 3)])
def test_what_has_no_answer(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"degree|confidence"):
        wrong()  # type: ignore[operator]
