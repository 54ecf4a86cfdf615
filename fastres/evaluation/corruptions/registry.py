"""Shifted test sets: the 15 corruptions of Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations" (arXiv 1903.12261, section 4), at five severities, of any test set.

Constants are those of the published generator of CIFAR-10-C. The images are not its images: random numbers differ,
values are rounded where it truncates them, and the textures of frost are drawn (frost.py) where it has photographs.
Accuracies are therefore comparable with each other, and not digit by digit with those of the published files.

Constants in pixels are for images of 32 pixels and grow with the shorter side; below 32 pixels they stay.

A severity is what the generator makes of it: at the third and the fourth, its motion blur is the same, glass blur is
stronger from the fourth on, and elastic transforms move less, but more unevenly, from each to the next.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastres.errors import UserError
from fastres.evaluation.corruptions import blur, digital, noise, weather
from fastres.evaluation.corruptions.draws import Draws
from fastres.evaluation.corruptions.values import Pixels

SEVERITIES = (1, 2, 3, 4, 5)
SEED = 0
"""Of the shifted sets that `fastres eval --shift` measures."""
SMALLEST = 8
"""Least side in pixels."""
_CHUNK = 2**16
"""Pixels of images that are shifted at once: 0.8 MB in float32, so that steps find them in a core's cache."""


@dataclass(frozen=True)
class Kind:
    """One kind of shift: `change` (images, constants, draws) with the constants of a severity."""

    group: str
    change: Callable[[Pixels, Any, Draws], Pixels]
    constants: tuple[Any, Any, Any, Any, Any]


KINDS = {
    "gaussian_noise": Kind("noise", noise.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Kind("noise", noise.shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Kind("noise", noise.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Kind("blur", blur.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": Kind("blur", blur.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": Kind("blur", blur.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Kind("blur", blur.zoom_blur, (7, 12, 16, 21, 26)),
    "snow": Kind(
        "weather",
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Kind("weather", weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": Kind("weather", weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Kind("weather", weather.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Kind("digital", digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Kind(
        "digital",
        digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Kind("digital", digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Kind("digital", digital.jpeg_compression, (80, 65, 58, 50, 40)),
}
"""By name, in the paper's order."""


def check(kind: str, severity: int) -> None:
    """Raise UserError, which names the nearest, for a kind or a severity that there is not."""
    if kind not in KINDS:
        near = difflib.get_close_matches(kind.lower().replace("-", "_").replace(" ", "_"), KINDS, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(KINDS)}"
        raise UserError(f"no kind of shift is called '{kind}'; {hint}")
    if severity not in SEVERITIES:
        nearest = min(SEVERITIES, key=lambda known: abs(known - severity))
        raise UserError(f"severity {severity}: they go from 1 to 5; the nearest is {nearest}")


def check_size(height: int, width: int) -> None:
    """Raise UserError for images that are too small."""
    if min(height, width) < SMALLEST:
        raise UserError(f"images of {width}×{height} pixels are too small to shift: bring them to {SMALLEST} or more")


def corrupt(
    images: Pixels, kind: str, severity: int, indices: NDArray[np.int64] | None = None, seed: int = SEED
) -> Pixels:
    """`images`, uint8 [N, H, W, 3] of 8 × 8 pixels or more, after one of `KINDS` at severity 1 to 5: the same shape.

    `indices`, int64 [N], are the images' positions in their test set, 0 to N - 1 by default. With `seed`, below 2³²,
    and the kind they decide all that is random, so that an image becomes the same in any batch and order.
    Raises UserError for an unknown kind or severity and for smaller images, ValueError for other arrays.
    """
    check(kind, severity)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}")
    height, width = images.shape[1:3]
    check_size(height, width)
    if indices is None:
        indices = np.arange(len(images))
    if indices.shape != (len(images),):
        raise ValueError(f"{len(images)} images need as many indices, not {list(indices.shape)}")
    corruption = KINDS[kind]
    number, constants = list(KINDS).index(kind) + 1, corruption.constants[severity - 1]  # 0: textures of frost
    result = np.empty_like(images, order="C")
    size = max(1, _CHUNK // (height * width))
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        draws = Draws(seed, number, indices[part])
        result[part] = corruption.change(np.ascontiguousarray(images[part]), constants, draws)
    return result
