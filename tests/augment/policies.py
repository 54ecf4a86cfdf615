"""Policies and images for the tests of augmentation, and the plain reference applied to a batch."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fastres import recipe

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)

REPORT = recipe.AugmentConfig(
    random_resized_crop=recipe.RandomResizedCropConfig(scale=[0.85, 1.0], interpolation="bicubic"),
    translate=0,
    color_jitter=recipe.ColorJitterConfig(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1, p=0.3),
    autocontrast=0.2,
    grayscale=0.2,
)
"""The report's."""

EVERYTHING = recipe.AugmentConfig(
    random_resized_crop=recipe.RandomResizedCropConfig(scale=[0.3, 1.0], interpolation="bilinear"),
    translate=3,
    padding="constant",
    fill=[10, 200, 90],
    flip="alternating",
    color_jitter=recipe.ColorJitterConfig(brightness=0.4, contrast=2.0, saturation=0.7, hue=0.5, p=0.8),
    autocontrast=0.4,
    grayscale=0.3,
    cutout=5,
    erasing=recipe.ErasingConfig(p=0.6, value=[0.1, 0.9, 0.5]),
    noise=0.05,
)

SIZES = st.tuples(st.integers(1, 64), st.integers(1, 64))
CHANCES = st.sampled_from([0.0, 0.3, 1.0])
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def intervals(draw: st.DrawFn, low: float, high: float) -> list[float]:
    return sorted(draw(st.lists(st.floats(low, high), min_size=2, max_size=2)))


@st.composite
def policies(draw: st.DrawFn, size: tuple[int, int]) -> recipe.AugmentConfig:
    """Any policy that fits images of `size`."""
    crop = st.builds(
        recipe.RandomResizedCropConfig,
        scale=intervals(0.01, 1.0),
        ratio=intervals(0.2, 5.0),
        interpolation=st.sampled_from(["bilinear", "bicubic"]),
    )
    strength = st.sampled_from([0.0, 0.1, 0.9, 2.0])
    jitter = st.builds(
        recipe.ColorJitterConfig,
        brightness=strength,
        contrast=strength,
        saturation=strength,
        hue=st.sampled_from([0.0, 0.1, 0.5]),
        p=CHANCES,
    )
    colour = st.lists(st.floats(0, 1), min_size=3, max_size=3)
    erasing = st.builds(
        recipe.ErasingConfig,
        p=CHANCES,
        scale=intervals(0.01, 1.0),
        ratio=intervals(0.2, 5.0),
        value=st.none() | colour,
    )
    padding = draw(st.sampled_from(["zero", "reflect", "constant"]))
    return recipe.AugmentConfig(
        random_resized_crop=draw(st.none() | crop),
        translate=draw(st.integers(0, min(size) - 1)),
        padding=padding,  # type: ignore[arg-type]
        fill=draw(st.lists(st.integers(0, 255), min_size=3, max_size=3)) if padding == "constant" else None,
        flip=draw(st.sampled_from(["none", "random", "alternating"])),
        color_jitter=draw(st.none() | jitter),
        autocontrast=draw(CHANCES),
        grayscale=draw(CHANCES),
        cutout=draw(st.integers(0, min(size))),
        erasing=draw(st.none() | erasing),
        noise=draw(st.sampled_from([0.0, 0.1])),
    )


def noise_images(size: tuple[int, int], count: int = 6) -> Tensor:
    """uint8 [count, H, W, 3]: noise over all levels, over few, one level, two channels of one level, gradients."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    images[1] = rng.integers(100, 108, (*size, 3))
    images[2] = 77
    images[3, ..., :2] = 0, 255
    images[4] = np.linspace(0, 255, size[1], dtype=np.uint8)[:, None]
    return torch.from_numpy(images)
