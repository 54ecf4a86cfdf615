"""Frost on a window, drawn: stands where the paper's generator has photographs, which may not be handed on."""

import functools

import numpy as np
from numpy.typing import NDArray

from fastres.evaluation.corruptions.draws import Draws
from fastres.evaluation.corruptions.values import to_bytes

TEXTURES, SIDE = 5, 256
_NEEDLES = 3
"""Directions of crystals in a texture, 60° apart as ice grows."""
_DARK, _BRIGHT = (0.16, 0.24, 0.36), (0.94, 0.97, 1.0)


@functools.cache
def textures() -> NDArray[np.uint8]:
    """uint8 [5, 256, 256, 3]: bluish glass under white needles and a cloudy cover; seamless, always the same."""
    return np.stack([_texture(number) for number in range(TEXTURES)])


def _texture(number: int) -> NDArray[np.uint8]:
    noise = Draws(0, 0, np.array([number])).normal((_NEEDLES + 2, SIDE, SIDE))[0].astype(np.float64)
    down, right = np.meshgrid(np.fft.fftfreq(SIDE) * SIDE, np.fft.fftfreq(SIDE) * SIDE, indexing="ij")
    distance = np.maximum(np.hypot(down, right), 1)  # waves on a side
    cover = _filtered(noise[0], distance**-1.6)
    grain = _filtered(noise[1], distance**-0.5)
    needles = np.zeros_like(cover)
    for line in range(_NEEDLES):
        angle = np.pi * (number / TEXTURES + line) / _NEEDLES
        along, across = np.cos(angle) * right + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * right
        # Long where few waves fit along it, thin where many fit across.
        crystals = _filtered(noise[2 + line], np.exp(-((along / 8) ** 2) - (across / 60) ** 2))
        needles = np.maximum(needles, np.maximum(crystals - 0.4, 0))
    bright = np.clip(0.36 + 0.16 * cover + 0.27 * needles * (1 + 0.4 * cover) + 0.07 * grain, 0, 1)[..., None]
    return to_bytes(((1 - bright) * np.array(_DARK) + bright * np.array(_BRIGHT)).astype(np.float32))


def _filtered(noise: NDArray[np.float64], response: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noise [S, S] with the amplitudes of `response` by frequency, of mean 0 and standard deviation 1."""
    result = np.fft.ifft2(np.fft.fft2(noise) * response).real
    return (result - result.mean()) / result.std()
