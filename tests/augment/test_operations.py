"""reference.py and the Numba twin against Pillow and torchvision, with equal parameters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from policies import EVERYTHING, MEAN, REPORT, SIZES, STD, noise_images

from fastres import recipe
from fastres.augment import Augment, reference
from fastres.augment.cpu.pixels import _hue
from fastres.augment.draws import UNIT, Draws, draw, plan
from fastres.augment.resample import TAPS, taps
from fastres.data.compat.torchvision import import_torchvision

import_torchvision()
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms import functional as F  # noqa: E402
from torchvision.transforms.v2 import functional as F2  # noqa: E402

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
OURS = (reference.brightness, reference.contrast, reference.saturation)


def torchvisions(image: np.ndarray, policy: recipe.AugmentConfig, draws: Draws, n: int) -> np.ndarray:
    """The 8-bit part of a policy by torchvision on a Pillow image, with the parameters of sample n, in the order of the
    report's code: the mirroring last."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    if policy.random_resized_crop is not None:
        box = [int(side[n]) for side in (draws.top, draws.left, draws.height, draws.width)]
        picture = F.resized_crop(picture, *box, [height, width], MODES[policy.random_resized_crop.interpolation])
    if policy.translate:
        reach, fill = policy.translate, tuple(policy.fill or (0, 0, 0))
        mode = "reflect" if policy.padding == "reflect" else "constant"
        padded = F.pad(picture, [reach] * 4, fill=fill if mode == "constant" else 0, padding_mode=mode)
        picture = F.crop(padded, reach - int(draws.down[n]), reach - int(draws.right[n]), height, width)
    if draws.jitter[n]:
        assert policy.color_jitter is not None
        for which in reference.ORDERS[draws.order[n]]:
            if which == 3:
                shift = int(draws.hue[n])
                picture = F.adjust_hue(picture, (shift - 256 if shift > 127 else shift + 0.5 * (shift > 0)) / 255)
            else:
                factor = (draws.brightness, draws.contrast, draws.saturation)[which][n] / 2**UNIT
                picture = ADJUST[which](picture, factor)
    if draws.autocontrast[n]:
        picture = F.autocontrast(picture)
    if draws.grayscale[n]:
        picture = F.to_grayscale(picture, 3)
    return np.asarray(F.hflip(picture) if draws.flip[n] else picture)


@settings(deadline=None, max_examples=60)
@given(size=SIZES, share=st.tuples(*[st.floats(0, 1)] * 4), interpolation=st.sampled_from(["bilinear", "bicubic"]))
def test_resized_crop_has_pillows_bits(
    size: tuple[int, int], share: tuple[float, float, float, float], interpolation: str
) -> None:
    height, width = (1 + int(share[axis] * (size[axis] - 1)) for axis in (0, 1))
    top, left = int(share[2] * (size[0] - height)), int(share[3] * (size[1] - width))
    for image in noise_images(size).numpy():
        expected = F.resized_crop(Image.fromarray(image), top, left, height, width, list(size), MODES[interpolation])
        np.testing.assert_array_equal(
            reference.resized_crop(image, top, left, height, width, interpolation), np.asarray(expected)
        )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 32, 33, 100])
def test_enlarging_a_whole_image_gives_it_back(interpolation: str, size: int) -> None:
    table = taps(size, interpolation)
    one = np.zeros((size, TAPS[interpolation]), dtype=np.int64)
    position = np.minimum(table.first[size][:, None] + np.arange(TAPS[interpolation]), size - 1)
    one[position == np.arange(size)[:, None]] = 1 << 22
    if size >= TAPS[interpolation]:
        np.testing.assert_array_equal(table.weight[size], one)
    image = noise_images((size, size))[0].numpy()
    np.testing.assert_array_equal(reference.resized_crop(image, 0, 0, size, size, interpolation), image)


@settings(deadline=None, max_examples=60)
@given(size=SIZES, factor=st.integers(0, 3 << UNIT), which=st.integers(0, 2))
def test_factors_have_pillows_bits(size: tuple[int, int], factor: int, which: int) -> None:
    for image in noise_images(size).numpy():
        expected = ADJUST[which](Image.fromarray(image), factor / 2**UNIT)
        np.testing.assert_array_equal(OURS[which](image, factor), np.asarray(expected))


@settings(deadline=None, max_examples=30)
@given(size=SIZES)
def test_autocontrast_and_grayscale_have_pillows_bits(size: tuple[int, int]) -> None:
    for image in noise_images(size).numpy():
        picture = Image.fromarray(image)
        np.testing.assert_array_equal(reference.autocontrast(image), np.asarray(F.autocontrast(picture)))
        np.testing.assert_array_equal(reference.grayscale(image), np.asarray(F.to_grayscale(picture, 3)))


def test_every_colour_has_pillows_hue() -> None:
    """All 2²⁴ colours through HSV and back, by the Numba twin; every 13th by the reference as well."""
    levels = np.arange(256, dtype=np.uint8)
    colours = np.empty((256, 256, 256, 3), dtype=np.uint8)
    colours[..., 0], colours[..., 1], colours[..., 2] = levels[:, None, None], levels[:, None], levels
    colours = colours.reshape(4096, 4096, 3)
    for shift in (0, 25):
        expected = np.asarray(F.adjust_hue(Image.fromarray(colours), (shift + 0.5 * (shift > 0)) / 255))
        found = colours.reshape(-1).copy()
        _hue(found, shift, np.empty(1 << 24, dtype=np.int32))
        assert np.array_equal(found, expected.reshape(-1))
        some = colours.reshape(-1, 3)[::13]
        assert np.array_equal(reference.hue(some[None], shift)[0], expected.reshape(-1, 3)[::13])


def test_every_hue_comes_back_as_pillow_has_it() -> None:
    image = noise_images((32, 32))[0].numpy()
    for shift in range(256):
        signed = shift - 256 if shift > 127 else shift
        expected = F.adjust_hue(Image.fromarray(image), (signed + 0.5 * np.sign(signed)) / 255 if shift != 128 else 0.0)
        if shift != 128:  # half a turn is 127/255 for torchvision; 128 never comes up
            np.testing.assert_array_equal(reference.hue(image, shift), np.asarray(expected))


def compare_chain(images: np.ndarray, policy: recipe.AugmentConfig) -> None:
    size = (images.shape[1], images.shape[2])
    draws = draw(plan(policy, size), 3, 4, np.arange(len(images)))
    # fp32 holds a normalised pixel to 2⁻²⁴ of at most 7; times 255·std the error is below 0.001 of a level.
    augment = Augment(policy.model_copy(update={"cutout": 0, "erasing": None, "noise": 0.0}), MEAN, STD, seed=3)
    batch = augment.augment(torch.from_numpy(images), torch.arange(len(images)), 4)
    restored = (augment.restore(batch) * 255).round().to(torch.uint8).numpy()
    for n, image in enumerate(images):
        expected = torchvisions(image, policy, draws, n)
        np.testing.assert_array_equal(reference.augment_pixels(image, policy, draws, n), expected)
        np.testing.assert_array_equal(restored[n], expected)


@pytest.mark.parametrize("policy", [REPORT, EVERYTHING], ids=["report", "everything"])
@pytest.mark.parametrize("size", [(32, 32), (17, 40)])
def test_the_whole_chain_has_pillows_bits(policy: recipe.AugmentConfig, size: tuple[int, int]) -> None:
    compare_chain(noise_images(size, 200).numpy(), policy)


@pytest.mark.parametrize("policy", [REPORT, EVERYTHING], ids=["report", "everything"])
def test_the_whole_chain_on_photographs(policy: recipe.AugmentConfig, photographs: np.ndarray) -> None:
    compare_chain(photographs, policy)


# By how many levels Pillow's 8 bits may differ from torchvision's floats, clipped to black and white: at most and in
# the mean, measured on photographs and given a tenth more. An operation that rounds down once is off by less than 1 and
# by one half in the mean; contrast rounds its mean grey and saturation each pixel's as well; resampling rounds to
# nearest after each of two passes, and clips bicubic's overshoots between them; hue keeps 255 angles and saturations.
FLOAT_PATHS = {
    "brightness": (lambda x: F2.adjust_brightness(x, 1.1), lambda x: reference.brightness(x, 18022), 1.001, 0.57),
    "contrast": (lambda x: F2.adjust_contrast(x, 0.9), lambda x: reference.contrast(x, 14746), 1.15, 0.55),
    "saturation": (lambda x: F2.adjust_saturation(x, 1.1), lambda x: reference.saturation(x, 18022), 1.15, 0.5),
    "hue": (lambda x: F2.adjust_hue(x, 25 / 255), lambda x: reference.hue(x, 25), 7.4, 0.24),
    "autocontrast": (F2.autocontrast, reference.autocontrast, 1.001, 0.47),
    "grayscale": (lambda x: F2.rgb_to_grayscale(x, 3), reference.grayscale, 0.58, 0.18),
    "bilinear": (
        lambda x: F2.resized_crop(x, 2, 1, 27, 30, [32, 32], MODES["bilinear"], antialias=True),
        lambda x: reference.resized_crop(x, 2, 1, 27, 30, "bilinear"),
        1.1,
        0.32,
    ),
    "bicubic": (
        lambda x: F2.resized_crop(x, 2, 1, 27, 30, [32, 32], MODES["bicubic"], antialias=True),
        lambda x: reference.resized_crop(x, 2, 1, 27, 30, "bicubic"),
        7.7,
        0.34,
    ),
}


@pytest.mark.parametrize("name", FLOAT_PATHS)
def test_distance_to_torchvisions_floats(name: str, photographs: np.ndarray) -> None:
    floats, ours, largest, mean = FLOAT_PATHS[name]
    errors = []
    for image in photographs:
        expected = floats(torch.from_numpy(image).permute(2, 0, 1).float() / 255).permute(1, 2, 0).numpy() * 255
        errors.append(np.abs(ours(image) - expected.clip(0, 255)))
    print(f"{name}: largest {np.max(errors):.3f}, mean {np.mean(errors):.3f} levels")
    assert np.max(errors) <= largest
    assert np.mean(errors) <= mean
