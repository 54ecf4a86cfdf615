"""The kinds of shift against their definitions, by hand, by Pillow and by plain fp64 code."""

import colorsys
import io
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastres.data.sources import shapes10
from fastres.errors import UserError
from fastres.evaluation.corruptions import registry
from fastres.evaluation.corruptions.blur import disk
from fastres.evaluation.corruptions.draws import Draws, normal_quantiles
from fastres.evaluation.corruptions.frost import SIDE, textures
from fastres.evaluation.corruptions.registry import KINDS, SEVERITIES, corrupt
from fastres.evaluation.corruptions.sampling import gaussian_matrix, mirrored, zoom_matrix
from fastres.evaluation.corruptions.weather import plasma

WITHOUT_CHANCE = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
KEEP_ONE_COLOUR = (
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "contrast",
    "elastic_transform",
    "pixelate",
)
SIDES = st.tuples(st.integers(8, 70), st.integers(8, 70))


@pytest.fixture(scope="module")
def natural(request: pytest.FixtureRequest) -> np.ndarray:
    """uint8 [64, 32, 32, 3]: photographs where there are some, drawn images otherwise."""
    if os.environ.get("FASTRES_TEST_DATA"):
        return request.getfixturevalue("photographs")
    return shapes10.draw(64, part="test")[0]


def of_colour(*colour: int, count: int = 1, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.full((count, *size, 3), colour, np.uint8)


def change(images: np.ndarray, kind: str, severity: int) -> np.ndarray:
    return np.abs(corrupt(images, kind, severity).astype(float) - images)


def constants(kind: str, severity: int) -> object:
    return KINDS[kind].constants[severity - 1]


# ---------------------------------------------------------------------------------------------------- all kinds


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_becomes_the_same_in_any_batch_and_order(
    kind: str, natural: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, before = natural[:20], natural[:20].copy()
    order = np.random.default_rng(0).permutation(20)
    for severity in (1, 5):
        together = corrupt(images, kind, severity)
        assert np.array_equal(corrupt(images, kind, severity), together)
        assert np.array_equal(corrupt(images[order], kind, severity, order), together[order])
        alone = [corrupt(images[one : one + 1], kind, severity, np.array([one]))[0] for one in range(20)]
        assert np.array_equal(alone, together)
        with monkeypatch.context() as patch:
            patch.setattr(registry, "_CHUNK", 3 * 32 * 32)
            assert np.array_equal(corrupt(images, kind, severity), together)
    assert np.array_equal(images, before), "the images that came in are as they were"


@pytest.mark.parametrize("kind", KINDS)
def test_chance_depends_on_seed_and_index(kind: str, natural: np.ndarray) -> None:
    images = np.repeat(natural[1:2], 2, axis=0)
    first, second = corrupt(images, kind, 5)
    reseeded = corrupt(images[:1], kind, 5, seed=1)[0]
    assert np.array_equal(first, second) == np.array_equal(first, reseeded) == (kind in WITHOUT_CHANCE)


def test_kinds_have_draws_of_their_own() -> None:
    words = [Draws(0, kind, np.arange(3)).random_bits(8) for kind in range(3)]
    assert len(np.unique(words)) == 3 * 3 * 8


@pytest.mark.parametrize("kind", KINDS)
def test_severity(kind: str, natural: np.ndarray) -> None:
    means = [change(natural, kind, severity).mean() for severity in SEVERITIES]
    assert min(means) > 0
    if kind == "motion_blur":
        # (6, 2) and (8, 2): beyond 12 pixels a Gaussian of 2 has less than 10⁻⁸ of its weight.
        assert means[2] == means[3]
        means.pop(3)
    if kind == "glass_blur":
        # Severities 1 to 3 move pixels once, with more and more smoothing of what that tears apart; 4 and 5 twice.
        assert min(means[3:]) > 1.2 * max(means[:3])
    elif kind == "elastic_transform":
        # The published affine part shrinks by severity, and with it the mean change; what grows is how uneven the
        # displacements are: their strength over their smoothness.
        strength = [constants(kind, severity) for severity in SEVERITIES]
        roughness = [0 if sigma == 0 else displacement / sigma for displacement, sigma, _ in strength]
        assert roughness == sorted(roughness) and means == sorted(means, reverse=True)
    elif kind == "frost":
        # Brighter with the frost, darker again as less of the image is left; what is left of it only falls.
        left = [np.corrcoef(corrupt(natural, kind, severity).ravel(), natural.ravel())[0, 1] for severity in SEVERITIES]
        assert np.all(np.diff(left) < 0)
    else:
        assert np.all(np.diff(means) > 0), means


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(list(KINDS)), severity=st.sampled_from(SEVERITIES), size=SIDES, seed=st.integers(0, 99))
def test_any_size(kind: str, severity: int, size: tuple[int, int], seed: int) -> None:
    # Eight images: the 15 values that impulse noise changes on average in the smallest are none once in 3 million.
    images = np.random.default_rng(seed).integers(0, 256, (8, *size, 3), np.uint8)
    result = corrupt(images, kind, severity, seed=seed)
    assert result.shape == images.shape and result.dtype == np.uint8
    # Enlarged by up to 1.06 and rounded to whole pixels, 8 pixels are 8.
    too_little = kind == "zoom_blur" and severity == 1 and size == (8, 8)
    assert np.array_equal(result, images) == too_little


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(KEEP_ONE_COLOUR), severity=st.sampled_from(SEVERITIES), size=SIDES)
def test_what_moves_or_averages_pixels_keeps_an_image_of_one_colour(
    kind: str, severity: int, size: tuple[int, int]
) -> None:
    images = of_colour(200, 17, 90, size=size)
    assert np.array_equal(corrupt(images, kind, severity), images)


def test_no_images_are_no_error() -> None:
    assert corrupt(np.empty((0, 32, 32, 3), np.uint8), "fog", 1).shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    ("kind", "severity", "expected"),
    [
        ("gausian_noise", 1, "did you mean 'gaussian_noise'?"),
        ("JPEG-compression", 1, "did you mean 'jpeg_compression'?"),
        ("xyzzy", 1, "there are gaussian_noise, shot_noise"),
        ("fog", 0, "the nearest is 1"),
        ("fog", 7, "the nearest is 5"),
    ],
)
def test_what_there_is_not_names_the_nearest(kind: str, severity: int, expected: str) -> None:
    with pytest.raises(UserError) as error:
        corrupt(of_colour(1, 2, 3), kind, severity)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_arrays_that_are_none_of_images() -> None:
    with pytest.raises(UserError, match="images of 32×7 pixels are too small"):
        corrupt(of_colour(1, 2, 3, size=(7, 32)), "fog", 1)
    with pytest.raises(ValueError, match=r"not float32 \[1, 32, 32, 3\]"):
        corrupt(of_colour(1, 2, 3).astype(np.float32), "fog", 1)
    with pytest.raises(ValueError, match=r"\[1, 32, 32\]"):
        corrupt(of_colour(1, 2, 3)[..., 0], "fog", 1)
    with pytest.raises(ValueError, match="1 images need as many indices"):
        corrupt(of_colour(1, 2, 3), "fog", 1, np.arange(2))


# ---------------------------------------------------------------------------------------------------- noise

GREY = of_colour(128, 128, 128, count=64)
N = GREY.size


def test_normal_quantiles() -> None:
    quantiles = normal_quantiles()
    assert np.array_equal(quantiles, -quantiles[::-1])
    # The level next below 0.975 differs from the printed 1.959964 by half a level over the density: 1.3e-4.
    assert quantiles[int(0.975 * 65536)] == pytest.approx(1.959964, abs=2e-4)
    # Cut off at ±4.3, the variance lacks at most 65536⁻¹ · 4.3², 3e-4.
    assert quantiles.astype(float).std() == pytest.approx(1, abs=3e-4)


def test_gaussian_noise_has_its_standard_deviation() -> None:
    noise = corrupt(GREY, "gaussian_noise", 1).astype(float) - 128
    sigma = math.sqrt((0.04 * 255) ** 2 + 1 / 12)  # with the rounding to whole levels
    # The standard deviation of N values scatters by sigma/√(2N), their mean by sigma/√N: five of each.
    assert noise.std() == pytest.approx(sigma, abs=5 * sigma / math.sqrt(2 * N))
    assert noise.mean() == pytest.approx(0, abs=5 * sigma / math.sqrt(N))
    # Neighbours, colours and images are independent: correlations scatter by 1/√N.
    for axis in (0, 1, 2, 3):
        one, other = np.delete(noise, -1, axis), np.delete(noise, 0, axis)
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(one.size)


def test_shot_noise_is_poisson() -> None:
    photons, share = 75, 128 / 255  # severity 4
    counts = corrupt(GREY, "shot_noise", 4) / 255 * photons
    # A value is a count to within the rounding of half a level, 0.15 photons.
    assert np.abs(counts - np.rint(counts)).max() < 0.15
    mean, counts = photons * share, np.rint(counts)
    # Mean and variance of a Poisson distribution are equal; the variance of N values scatters by √(2/N) of it, and by a
    # hundredth more as the distribution's tails are not normal: five of each.
    assert counts.mean() == pytest.approx(mean, abs=5 * math.sqrt(mean / N))
    assert counts.var() == pytest.approx(mean, rel=5 * 1.01 * math.sqrt(2 / N))
    assert np.array_equal(corrupt(of_colour(0, 0, 0), "shot_noise", 5), of_colour(0, 0, 0)), "no photons, no noise"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_changes_its_share(severity: int) -> None:
    result, amount = corrupt(GREY, "impulse_noise", severity), constants("impulse_noise", severity)
    assert set(np.unique(result)) == {0, 128, 255}
    for value in (0, 255):
        half = amount / 2
        # The share of N values scatters by √(p(1 - p)/N): five of them.
        assert (result == value).mean() == pytest.approx(half, abs=5 * math.sqrt(half * (1 - half) / N))


# ---------------------------------------------------------------------------------------------------- blur


def test_defocus_kernels() -> None:
    for severity in SEVERITIES:
        for factor in (1.0, 1.5, 7.0):
            kernel = disk(*constants("defocus_blur", severity), factor)
            assert kernel.sum() == pytest.approx(1, abs=1e-5)  # fp32
            assert np.array_equal(kernel, kernel.T) and np.array_equal(kernel, kernel[::-1])
    # Radius 1.5 holds the nine pixels around the middle, which sigma 0.1 leaves alone; radius 1 a cross of five.
    np.testing.assert_allclose(disk(1.5, 0.1)[1:-1, 1:-1], 1 / 9, rtol=1e-6)
    assert np.count_nonzero(disk(1.5, 0.1)) == 9
    # Radius 0.3 holds one pixel, which the Gaussian spreads: exp(-1/(2·0.4²)) on either side of 1.
    side = math.exp(-1 / 0.32)
    line = np.array([side, 1, side]) / (1 + 2 * side)
    np.testing.assert_allclose(disk(0.3, 0.4), np.outer(line, line), rtol=1e-6)


def test_defocus_blur_of_one_pixel_is_the_kernel() -> None:
    images = of_colour(0, 0, 0, size=(33, 32))
    images[0, 16, 10] = (255, 0, 127)
    result = corrupt(images, "defocus_blur", 5)[0]
    assert result[15:18, 9:12, 0].tolist() == [[28] * 3] * 3  # 255/9 = 28.3
    assert result[15:18, 9:12, 2].tolist() == [[14] * 3] * 3  # 127/9 = 14.1
    result[15:18, 9:12] = 0
    assert not result.any()


def test_glass_blur_takes_the_colour_of_a_neighbour() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    result = corrupt(images, "glass_blur", 1)  # sigma 0.05: no filter
    assert np.array_equal(result[:, :2], images[:, :2]) and np.array_equal(result[:, :, :2], images[:, :, :2])
    inner = result[:, 2:, 2:]
    found = [
        np.all(inner == images[:, 2 + down : 32 + down, 2 + right : 32 + right], axis=3)
        for down in (-1, 0)
        for right in (-1, 0)
    ]
    assert np.all(np.any(found, axis=0))
    # Each of the four offsets is drawn for a quarter of 3,600 pixels, which scatters by √(3/16/3600): five of them.
    for share in found:
        assert share.mean() == pytest.approx(0.25, abs=5 * math.sqrt(3 / 16 / 3600))


def test_motion_blur_of_one_pixel_lies_along_the_drawn_direction() -> None:
    images = of_colour(0, 0, 0, count=20)
    images[:, 16, 16] = 255
    angles = np.deg2rad(Draws(0, list(KINDS).index("motion_blur") + 1, np.arange(20)).between(-45, 45, ()))
    assert np.ptp(angles) > 1, "twenty draws that are far apart"
    for image, angle in zip(corrupt(images, "motion_blur", 5), angles, strict=True):
        rows, columns = np.nonzero(image[..., 0])
        down, right = 16 - rows, 16 - columns  # a pixel takes what lies ahead of it
        # Positions on the way are rounded by up to half a pixel on either axis.
        assert np.abs(right * math.sin(angle) - down * math.cos(angle)).max() <= math.sqrt(0.5)
        assert right.min() == 0 and 5 <= right.max() <= 10
        # 255 shared by half a Gaussian of 2.5 pixels, each share rounded.
        assert image[..., 0].sum() == pytest.approx(255, abs=0.5 * len(rows) + 3)
        assert image[16, 16, 0] == round(255 / np.exp(-0.5 * (np.arange(19) / 2.5) ** 2).sum())


@settings(deadline=None, max_examples=30)
@given(size=st.integers(8, 100), factor=st.floats(1, 9), seed=st.integers(0, 99))
def test_zooming_interpolates_linearly(size: int, factor: float, seed: int) -> None:
    line = np.random.default_rng(seed).random(size)
    crop = math.ceil(size / factor)
    large = max(size, round(crop * factor))
    first = (size - crop) // 2
    enlarged = np.interp(np.linspace(0, crop - 1, large), np.arange(crop), line[first : first + crop])
    cut = (large - size) // 2
    # fp32 weights against fp64.
    np.testing.assert_allclose(zoom_matrix(size, factor) @ line, enlarged[cut : cut + size], atol=1e-5)


def test_zoom_blur_is_the_mean_of_its_zooms() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 24, 3), np.uint8)
    expected = images[0].astype(float)
    for factor in np.arange(1, 1.105, 0.01):  # 1 to 1.10 is not yet severity 2, whose last is 1.11
        expected += np.einsum("ij,jkc,lk->ilc", zoom_matrix(32, factor), images[0], zoom_matrix(24, factor))
    expected += np.einsum("ij,jkc,lk->ilc", zoom_matrix(32, 1.11), images[0], zoom_matrix(24, 1.11))
    # Half a level of rounding, and fp32.
    assert np.abs(corrupt(images, "zoom_blur", 2)[0] - expected / 13).max() <= 0.51


# ---------------------------------------------------------------------------------------------------- weather


def test_snow_on_black() -> None:
    result = corrupt(of_colour(0, 0, 0, count=8), "snow", 4).astype(int)
    # Black is whitened to 0.5 for 0.15 of it; the flakes come a second time, turned by 180°.
    assert result.min() >= round(255 * 0.15 * 0.5) and result.max() > 60
    # Sums of three in another order, rounded: a level.
    assert np.abs(result - result[:, ::-1, ::-1]).max() <= 1
    assert np.array_equal(result[..., 0], result[..., 2])


def test_frost_on_black_is_a_piece_of_a_texture() -> None:
    images = of_colour(0, 0, 0, count=6, size=(16, 24))
    results = [corrupt(images, "frost", severity).astype(int) for severity in (1, 2)]
    # Severity 2 has 0.3 of it, severity 1 0.2: each rounded by half a level.
    assert np.abs(results[1] - 1.5 * results[0]).max() <= 0.5 + 1.5 * 0.5
    drawn = np.rint(0.2 * textures().astype(np.float64)).astype(int)
    for result in results[0]:
        windows = np.lib.stride_tricks.sliding_window_view(drawn[..., 0], (16, 24), axis=(1, 2))
        places = np.argwhere((windows[..., ::5, ::5] == result[::5, ::5, 0]).all(axis=(3, 4)))
        found = [drawn[one, y : y + 16, x : x + 24] for one, y, x in places]
        assert any(np.array_equal(piece, result) for piece in found)


def test_textures_of_frost_are_white_and_bluish() -> None:
    drawn = textures()
    assert drawn.shape == (5, SIDE, SIDE, 3) and drawn.dtype == np.uint8
    red, _, blue = drawn.astype(float).mean(axis=(0, 1, 2))
    assert blue > red + 5
    assert all(texture.std() > 30 for texture in drawn)
    # Seamless: from the last column to the first it changes no more than between columns inside.
    inside = np.abs(np.diff(drawn.astype(float), axis=2)).mean()
    assert np.abs(drawn[:, :, 0].astype(float) - drawn[:, :, -1]).mean() < 1.5 * inside


def slow_plasma(noise: np.ndarray, decay: float) -> np.ndarray:
    """Diamond-square on a torus, a point at a time, in fp64."""
    side = len(noise)
    heights, step, strength = np.zeros((side, side)), side, 1.0
    while step > 1:
        half = step // 2
        for y in range(half, side, step):
            for x in range(half, side, step):
                around = [heights[(y + a) % side, (x + b) % side] for a in (-half, half) for b in (-half, half)]
                heights[y, x] = sum(around) / 4 + strength * noise[y, x]
        for y in range(0, side, half):
            for x in range((y + half) % step, side, step):
                around = [
                    heights[(y + a) % side, (x + b) % side] for a, b in ((-half, 0), (half, 0), (0, -half), (0, half))
                ]
                heights[y, x] = sum(around) / 4 + strength * noise[y, x]
        step, strength = half, strength / decay**2
    heights -= heights.min()
    return heights / heights.max()


@settings(deadline=None, max_examples=10)
@given(rounds=st.integers(2, 5), decay=st.floats(1.5, 3), seed=st.integers(0, 99))
def test_plasma_is_diamond_square(rounds: int, decay: float, seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(-1, 1, (2, 2**rounds, 2**rounds)).astype(np.float32)
    # Five rounds of fp32 against fp64.
    np.testing.assert_allclose(plasma(noise, decay), [slow_plasma(one, decay) for one in noise], atol=1e-5)


def test_fog_on_one_colour_goes_from_its_cloud_to_none() -> None:
    result = corrupt(of_colour(102, 51, 102, count=3), "fog", 4)  # 0.4, thickness 1
    for image in result:
        assert image[..., 0].max() == 102, "the brightest is as bright as before"
        assert image[..., 0].min() == round(255 * 0.4 * 0.4 / 1.4)
        assert image[..., 1].min() == round(255 * 0.2 * 0.4 / 1.4)


def test_brightness_by_hand() -> None:
    for colour, expected in (
        ((100, 40, 0), (151, 60, 0)),  # 151/100 times: 60.4
        ((250, 100, 0), (255, 102, 0)),
        ((0, 0, 0), (51, 51, 51)),
        ((255, 255, 255), (255, 255, 255)),
    ):
        assert np.array_equal(corrupt(of_colour(*colour), "brightness", 4), of_colour(*expected))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_brightness_in_the_colour_space_of_its_definition(seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (1, 8, 8, 3), np.uint8)
    for pixel, found in zip(images.reshape(-1, 3), corrupt(images, "brightness", 2).reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.1, 1)))
        # Half a level of rounding, and fp32.
        assert np.abs(255 * expected - found).max() <= 0.501


# ---------------------------------------------------------------------------------------------------- digital


def test_contrast_by_hand() -> None:
    images = of_colour(100, 100, 100, size=(16, 8))
    images[0, :, 4:] = (200, 200, 100)
    result = corrupt(images, "contrast", 2)[0]  # one half, around 150, 150 and 100
    assert np.array_equal(result[:, :4], np.full((16, 4, 3), (125, 125, 100)))
    assert np.array_equal(result[:, 4:], np.full((16, 4, 3), (175, 175, 100)))


@pytest.mark.parametrize("size", [(32, 32), (20, 33)])
def test_pixelate_and_jpeg_are_pillows(size: tuple[int, int], natural: np.ndarray) -> None:
    images = np.stack([np.asarray(Image.fromarray(image).resize(size[::-1])) for image in natural[:4]])
    height, width = size
    for severity, share, quality in zip(SEVERITIES, (0.95, 0.9, 0.85, 0.75, 0.65), (80, 65, 58, 50, 40), strict=True):
        coarse, compressed = corrupt(images, "pixelate", severity), corrupt(images, "jpeg_compression", severity)
        for image, found, decoded in zip(images, coarse, compressed, strict=True):
            small = Image.fromarray(image).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
            assert np.array_equal(found, small.resize((width, height), Image.Resampling.BOX))
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=quality)
            assert np.array_equal(decoded, Image.open(file))


@pytest.mark.parametrize("axis", [0, 1])
def test_the_affine_part_of_an_elastic_transform(axis: int) -> None:
    """Severity 1 has nothing else. On a ramp bilinear interpolation is exact: a pixel has the position it came from."""
    ramp = np.broadcast_to(np.expand_dims(3 * np.arange(64), (1 - axis, 2)), (64, 64, 3)).astype(np.uint8)
    images = np.repeat(ramp[None], 5, axis=0)
    reach = 64 * 0.08
    number = list(KINDS).index("elastic_transform") + 1
    corners = np.array([(53, 53), (53, 11), (11, 11)])  # x, y: 21 around the middle, 32
    for shift_of, result in zip(
        Draws(0, number, np.arange(5)).between(-reach, reach, (3, 2)),
        corrupt(images, "elastic_transform", 1),
        strict=True,
    ):
        moved = np.column_stack([corners + shift_of, np.ones(3)])
        back = np.linalg.solve(moved, corners)  # [x', y', 1] · back = [x, y]
        y, x = np.mgrid[:64, :64]
        source = np.stack([x, y, np.ones_like(x)], axis=2) @ back
        expected = 3 * source[..., 1 - axis]
        inside = np.all((source >= 0) & (source <= 63), axis=2)
        assert inside.mean() > 0.7
        # Half a level of rounding, and positions in fp32.
        assert np.abs(result[..., 0] - expected)[inside].max() <= 0.51


def test_displacements_of_an_elastic_transform_are_bounded() -> None:
    ramp = np.broadcast_to(8 * np.arange(32)[:, None], (32, 32, 3)).astype(np.uint8)
    images = np.repeat(ramp[None], 30, axis=0)
    moved = change(images, "elastic_transform", 5) / 8
    # An axis moves by up to 0.03·32 at three corners, which is at most 3·0.96 further out at the image's, and by up to
    # 3.2 besides, of which smoothing leaves less.
    assert 0.3 < moved.mean() < moved.max() < 3 * 0.96 + 3.2


@given(st.integers(-200, 200), st.integers(1, 40))
def test_mirrored_positions_walk_to_and_fro(position: int, size: int) -> None:
    for twice in (False, True):
        there = list(range(size))
        way = there + (there[::-1] if twice else there[-2:0:-1])
        assert mirrored(np.array([position]), size, edge_twice=twice)[0] == way[position % len(way)]


@pytest.mark.parametrize("border", ["edge", "mirror"])
def test_gaussian_matrices(border: str) -> None:
    matrix = gaussian_matrix(32, 1.92, 3, border)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
    # In the middle it is the filter: 13 taps, to 3·1.92 pixels.
    weights = np.exp(-0.5 * (np.arange(-6, 7) / 1.92) ** 2)
    np.testing.assert_allclose(matrix[16, 10:23], weights / weights.sum(), rtol=1e-6)
    assert not matrix[16, :10].any() and not matrix[16, 23:].any()
    # The first pixel has its left taps on itself, or on the pixels that the mirror shows.
    folded = weights[6:].copy()
    if border == "edge":
        folded[0] += weights[:6].sum()
    else:
        folded[:6] += weights[5::-1]
    np.testing.assert_allclose(matrix[0, :7], folded / weights.sum(), rtol=1e-6)
