"""Between bytes and shares of white, and the lengths of images that are not 32 pixels wide."""

import numpy as np
from numpy.typing import NDArray

from fastres.evaluation.corruptions.draws import Array

Pixels = NDArray[np.uint8]
"""[n, H, W, 3]."""


def to_unit(images: Pixels) -> Array:
    """float32, 0 to 1."""
    return images.astype(np.float32) * np.float32(1 / 255)


def to_bytes(values: Array) -> Pixels:
    """uint8, clipped and rounded to nearest; what `to_unit` made comes back unchanged."""
    return np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)


def scale(images: Pixels) -> float:
    """By what lengths in pixels of the published 32-pixel sets are multiplied: the shorter side over 32, but no less
    than 1, because a blur of a fraction of a pixel would change nothing."""
    return max(1.0, min(images.shape[1:3]) / 32)
