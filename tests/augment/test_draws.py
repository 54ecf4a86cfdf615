"""Draws: Philox against its published vectors, Numba against NumPy bit for bit, every parameter against its law."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import EVERYTHING, REPORT, SEEDS, SIZES, policies

from fastres import recipe
from fastres.augment.cpu.draws import COLUMNS, draw_range, noise_range, pack, rows
from fastres.augment.draws import (
    COLOUR,
    CROP,
    CUTMIX,
    ERASE,
    GEOMETRY,
    MIX,
    MIXUP,
    NO_MIX,
    NOISE,
    UNIT,
    below,
    chance,
    draw,
    draw_mix,
    plan,
)
from fastres.augment.philox import philox_4x32, uniforms
from fastres.augment.reference import noise
from fastres.augment.tables import beta_table, normal_table

MANY = np.arange(100_000)


def assert_counts(values: np.ndarray, shares: np.ndarray) -> None:
    """χ² of whole numbers 0 … k-1 against their shares. Its mean is k-1 and its deviation √(2k-2); six deviations
    above are passed by chance less than once in 10⁵ times, for few degrees of freedom as well."""
    expected = shares * len(values)
    counts = np.bincount(values, minlength=len(shares))
    assert counts[expected == 0].sum() == 0
    inside = expected > 0
    statistic = ((counts - expected)[inside] ** 2 / expected[inside]).sum()
    freedom = inside.sum() - 1
    assert statistic < freedom + 6 * math.sqrt(2 * freedom) + 6


def assert_law(values: np.ndarray, law: np.ndarray) -> None:
    """Kolmogorov and Smirnov's distance of sorted values to their distribution function. 2.5/√n is passed by chance
    once in 10⁵ times; a table of 4,096 levels adds at most 1/8192."""
    count = len(values)
    steps = np.arange(1, count + 1) / count
    assert np.abs(law - steps).max() < 2.5 / math.sqrt(count) + 1 / 8192


def test_philox_gives_the_published_words() -> None:
    """The known answers that the authors publish with their library, for philox 4x32 with ten rounds."""
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones, ones), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        assert tuple(philox_4x32(counter, key).tolist()) == expected


def test_uniforms_are_uniform_and_keyed() -> None:
    found = uniforms(1, 2, MANY, 0)
    assert found.min() >= 0
    assert found.max() < 1
    for word in found:
        assert_law(np.sort(word), np.sort(word).astype(np.float64))
    for other in (uniforms(2, 2, MANY, 0), uniforms(1, 3, MANY, 0), uniforms(1, 2, MANY, 1)):
        # The correlation of independent draws has deviation 1/√100,000 = 0.0032.
        assert abs(np.corrcoef(other[0], found[0])[0, 1]) < 0.02


def test_no_bound_is_ever_reached() -> None:
    largest = np.array([0xFFFFFFFF], dtype=np.uint32)
    for bound in range(1, 2**16 + 1):
        assert below(largest, bound)[0] == bound - 1
    assert not chance(largest * 0, np.float32(0))[0]
    assert chance(largest, np.float32(1))[0]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), size=SIZES, seed=SEEDS, epoch=st.integers(0, 2**32 - 1))
def test_numba_draws_the_same(data: st.DataObject, size: tuple[int, int], seed: int, epoch: int) -> None:
    chosen = plan(data.draw(policies(size)), size)
    indices = np.array([0, 1, 2**32 - 1, *range(1000, 1100)])
    expected = rows(draw(chosen, seed, epoch, indices))
    found = np.full((len(indices), COLUMNS), -7, dtype=np.int32)
    draw_range(indices, seed, epoch, *pack(chosen), found)
    np.testing.assert_array_equal(found, expected)
    height, width = size
    assert (expected[:, 0] >= 0).all() and (expected[:, 0] + expected[:, 2] <= height).all()
    assert (expected[:, 1] >= 0).all() and (expected[:, 1] + expected[:, 3] <= width).all()
    assert (expected[:, 2:4] > 0).all()
    for box in (expected[:, 15:19], expected[:, 19:23]):
        assert (box[:, :2] >= 0).all() and (box[:, :2] <= box[:, 2:]).all() and (box[:, 2:] <= size).all()


def test_numba_makes_the_same_noise() -> None:
    strength = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    found = np.empty((2, 5 * 7 * 3), dtype=np.float32)
    noise_range(np.array([3, 2**32 - 1]), 9, 8, normal_table(), strength, found)
    for row, index in enumerate((3, 2**32 - 1)):
        np.testing.assert_array_equal(found[row], noise((5, 7), strength, 9, 8, index).reshape(-1))


def test_streams_are_apart() -> None:
    assert len({GEOMETRY, CROP, COLOUR, ERASE, NOISE, MIX}) == 6
    # What geometry drew before there were other streams: the published policy keeps its meaning.
    drawn = draw(plan(recipe.AugmentConfig(), (32, 32)), 5, 2, np.arange(1000))
    random_bits = uniforms(5, 2, np.arange(1000), GEOMETRY)
    np.testing.assert_array_equal(drawn.down, np.floor(random_bits[0] * np.float32(9)) - 4)
    np.testing.assert_array_equal(drawn.right, np.floor(random_bits[1] * np.float32(9)) - 4)
    np.testing.assert_array_equal(drawn.flip, random_bits[2] < 0.5)


def test_geometry_and_colour_follow_their_laws() -> None:
    policy = EVERYTHING.model_copy(update={"flip": "random"})
    drawn = draw(plan(policy, (32, 32)), 1, 2, MANY)
    for shift in (drawn.down, drawn.right):
        assert_counts(shift + 3, np.full(7, 1 / 7))
    assert_counts(drawn.order, np.full(24, 1 / 24))
    for flags, share in (
        (drawn.flip, 0.5),
        (drawn.jitter, 0.8),
        (drawn.autocontrast, 0.4),
        (drawn.grayscale, 0.3),
    ):
        assert_counts(flags.astype(np.int64), np.array([1 - share, share]))
    for factors, low, high in ((drawn.brightness, 0.6, 1.4), (drawn.contrast, 0.0, 3.0), (drawn.saturation, 0.3, 1.7)):
        factor = np.sort(factors / 2**UNIT)
        assert_law(factor, (factor - low) / (high - low))
    # Half a turn is 127.5 of 255 parts; towards zero, 0 takes two parts and 127 half a one on each side.
    shares = np.zeros(256)
    shares[0], shares[1:127], shares[127], shares[130:], shares[129] = 2, 1, 0.5, 1, 0.5
    assert_counts(drawn.hue, shares / 255)


def test_crops_follow_torchvisions_law() -> None:
    """Height, width and position against 10⁵ draws by torchvision's procedure in fp64."""
    drawn = draw(plan(REPORT, (32, 32)), 1, 2, MANY)
    rng = np.random.default_rng(0)
    expected = np.zeros((33, 33))
    waiting = 1_000_000
    for _ in range(10):
        area, ratio = (
            1024 * rng.uniform(0.85, 1, waiting),
            np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), waiting)),
        )
        width, height = (np.rint(np.sqrt(x)).astype(int) for x in (area * ratio, area / ratio))
        fits = (width <= 32) & (height <= 32)
        np.add.at(expected, (height[fits], width[fits]), 1)
        waiting = int((~fits).sum())
    expected[32, 32] += waiting
    # Kinds of crop that are rarer than one in 2,000 are not worth a cell, and the laws are both sampled: the reference
    # ten times as often, so that its own scatter adds a tenth to the statistic.
    cells = np.argwhere(expected > 500)
    share = np.array([expected[tuple(cell)] for cell in cells]) / expected.sum()
    counts = np.array([((drawn.height == h) & (drawn.width == w)).sum() for h, w in cells])
    statistic = ((counts - share * 1e5) ** 2 / (share * 1e5)).sum()
    assert statistic < 1.1 * (len(cells) + 6 * math.sqrt(2 * len(cells)))
    for position, side in ((drawn.top, drawn.height), (drawn.left, drawn.width)):
        assert_counts(position[side == 29], np.full(4, 1 / 4))


def test_a_crop_that_never_fits_is_torchvisions_central_one() -> None:
    policy = recipe.AugmentConfig(
        random_resized_crop=recipe.RandomResizedCropConfig(scale=[1.0, 1.0], ratio=[2.0, 3.0])
    )
    drawn = draw(plan(policy, (32, 30)), 0, 0, np.arange(10))
    for found, expected in ((drawn.top, 8), (drawn.left, 0), (drawn.height, 15), (drawn.width, 30)):
        assert (found == expected).all()


def test_erased_boxes_have_their_share_of_the_area() -> None:
    policy = recipe.AugmentConfig(cutout=7, erasing=recipe.ErasingConfig(p=0.6, scale=[0.1, 0.2], ratio=[0.5, 2.0]))
    drawn = draw(plan(policy, (64, 64)), 1, 2, MANY)
    top, left, bottom, right = drawn.erase
    area, ratio = (bottom - top) * (right - left), (bottom - top) / np.maximum(right - left, 1)
    erased = area > 0
    assert_counts(erased.astype(np.int64), np.array([0.4, 0.6]))
    # Rounding sides of 14 pixels and more to whole ones moves the area by at most a 14th, and ratios likewise.
    assert area[erased].min() > 0.1 * 4096 * 13 / 14 and area[erased].max() < 0.2 * 4096 * 15 / 14
    assert ratio[erased].min() > 0.5 * 13 / 14 and ratio[erased].max() < 2 * 15 / 14
    # Uniform over shares and over log ratios; deviations of the means: 0.029/√60,000 = 0.00012, 0.4/√60,000 = 0.0016.
    assert abs(area[erased].mean() / 4096 - 0.15) < 0.001
    assert abs(np.log(ratio[erased]).mean()) < 0.01
    # The whole law of the area, beside a million boxes by torchvision's procedure in fp64, which scatter themselves.
    rng = np.random.default_rng(0)
    wanted, shape = 4096 * rng.uniform(0.1, 0.2, 1_000_000), np.exp(rng.uniform(-math.log(2), math.log(2), 1_000_000))
    areas = np.sort(np.rint(np.sqrt(wanted * shape)) * np.rint(np.sqrt(wanted / shape)))
    found, at = np.sort(area[erased]), np.unique(area[erased])
    distance = np.searchsorted(found, at, "right") / len(found) - np.searchsorted(areas, at, "right") / len(areas)
    assert np.abs(distance).max() < 2.5 / math.sqrt(len(found)) + 2.5 / 1000 + 1 / 8192
    # The centre of a cutout is any pixel; away from the edges its corner is uniform.
    inside = (drawn.cutout[0] > 0) & (drawn.cutout[2] < 64)
    assert_counts(drawn.cutout[0][inside] - 1, np.full(56, 1 / 56))
    np.testing.assert_array_equal((drawn.cutout[2] - drawn.cutout[0])[inside], 7)


def test_an_alternating_flip_is_random_first_and_then_every_second_epoch() -> None:
    chosen = plan(recipe.AugmentConfig(flip="alternating"), (8, 8))
    first, second, third = (draw(chosen, 4, epoch, MANY).flip for epoch in (0, 1, 2))
    assert_counts(first.astype(np.int64), np.array([0.5, 0.5]))
    np.testing.assert_array_equal(second, ~first)
    np.testing.assert_array_equal(third, first)


def test_the_normal_table_is_normal() -> None:
    values = normal_table().astype(np.float64)
    # fp32 rounds 4,096 values; symmetry leaves nothing else in the mean.
    assert abs(values.mean()) < 1e-7
    assert abs(values.var() - 1) < 1e-6
    # Scaling to unit variance moves the quantiles by 0.0003 of at most 3.7.
    law = np.array([NormalDist().cdf(value) for value in values])
    assert np.abs(law - (np.arange(4096) + 0.5) / 4096).max() < 2e-4


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 40.0])
def test_the_beta_table_is_beta(alpha: float) -> None:
    values = beta_table(alpha).astype(np.float64)
    middles = (np.arange(4096) + 0.5) / 4096
    # The three cases with an inverse in closed form, to fp32's rounding.
    if alpha == 1.0:
        np.testing.assert_allclose(values, middles, rtol=1e-7)
    if alpha == 0.5:
        np.testing.assert_allclose(values, np.sin(np.pi * middles / 2) ** 2, atol=6e-8)
    if alpha == 2.0:
        np.testing.assert_allclose(3 * values**2 - 2 * values**3, middles, atol=1e-7)
    # Two gamma variables, the smaller over the sum: numbers near 1 would lose what makes them differ.
    pair = np.random.default_rng(0).gamma(alpha, size=(2, 100_000))
    smaller = np.sort(pair.min(axis=0) / pair.sum(axis=0))
    assert_law(smaller, 2 * np.searchsorted(values, smaller) / 4096)


def test_mixing_follows_its_laws() -> None:
    steps, size = 100_000, (32, 24)
    mix = recipe.MixConfig(mixup_alpha=0.4, cutmix_alpha=1.0, prob=0.8, switch_prob=0.25)
    mixings = [draw_mix(mix, 3, 1, step, size) for step in range(steps)]
    assert_counts(np.array([mixing.kind for mixing in mixings]), np.array([0.2, 0.6, 0.2]))
    assert (NO_MIX, MIXUP, CUTMIX) == (0, 1, 2)
    weights = np.sort([mixing.weight for mixing in mixings if mixing.kind == MIXUP])
    assert_law(weights, np.searchsorted(beta_table(0.4), weights, side="right") / 4096)
    for mixing in mixings:
        top, left, bottom, right = mixing.box
        assert 0 <= top <= bottom <= 32 and 0 <= left <= right <= 24
        if mixing.kind == NO_MIX:
            assert mixing.weight == 1
        if mixing.kind == CUTMIX:
            assert mixing.weight == np.float32(1 - (bottom - top) * (right - left) / (32 * 24))
    areas = [1 - float(mixing.weight) for mixing in mixings if mixing.kind == CUTMIX]
    # torchvision's own procedure.
    rng = np.random.default_rng(0)
    half = 0.5 * np.sqrt(1 - rng.uniform(size=100_000))
    spans = []
    for side in size:
        centre, reach = rng.integers(0, side, 100_000), (half * side).astype(int)
        spans.append(np.minimum(centre + reach, side) - np.maximum(centre - reach, 0))
    expected = spans[0] * spans[1] / (32 * 24)
    # 20,000 boxes and 100,000 of torchvision's scatter by 0.2/√16,700 = 0.0015 in the mean.
    assert abs(np.mean(areas) - expected.mean()) < 0.008
    assert abs(np.std(areas) - expected.std()) < 0.008


def test_mixing_is_keyed_and_stops() -> None:
    mix = recipe.MixConfig(mixup_alpha=1.0, until=3)
    first = draw_mix(mix, 3, 2, 7, (8, 8))
    assert first == draw_mix(mix, 3, 2, 7, (8, 8))
    for other in (draw_mix(mix, 4, 2, 7, (8, 8)), draw_mix(mix, 3, 1, 7, (8, 8)), draw_mix(mix, 3, 2, 8, (8, 8))):
        assert other.weight != first.weight
    assert draw_mix(mix, 3, 3, 7, (8, 8)).kind == NO_MIX
    assert draw_mix(recipe.MixConfig(), 3, 0, 7, (8, 8)).kind == NO_MIX
