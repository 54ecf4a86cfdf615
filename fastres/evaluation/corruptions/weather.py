"""Weather: snow, frost, fog, brightness."""

import numpy as np

from fastres.evaluation.corruptions.draws import Array, Draws
from fastres.evaluation.corruptions.frost import SIDE, TEXTURES, textures
from fastres.evaluation.corruptions.sampling import streak, zoom
from fastres.evaluation.corruptions.values import Pixels, scale, to_bytes, to_unit

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def snow(images: Pixels, constants: tuple[float, ...], draws: Draws) -> Pixels:
    """Flakes: normal noise of (mean, deviation), enlarged (by a factor), of which what is below a threshold is nothing,
    blurred by motion between 45° and 135° to the rows (radius, sigma, in pixels of 32), and the same turned by 180°, on
    an image that is whitened but for a share. Flakes grow with the image."""
    mean, deviation, enlarged, threshold, radius, sigma, weight = constants
    factor = scale(images)
    layer = mean + np.float32(deviation) * draws.normal((*images.shape[1:3], 1))
    layer = zoom(layer, enlarged * factor)
    layer[layer < threshold] = 0
    angles = draws.between(-135, -45, (), concern=1)
    layer = streak(np.clip(layer, 0, 1), factor * radius, factor * sigma, angles)
    values = to_unit(images)
    white = np.maximum(values, (values * _LUMA).sum(axis=3, keepdims=True) * 1.5 + 0.5)
    return to_bytes(np.float32(weight) * values + np.float32(1 - weight) * white + layer + layer[:, ::-1, ::-1])


def frost(images: Pixels, constants: tuple[float, float], draws: Draws) -> Pixels:
    """(share of the image) and (share of the frost) that are added; the frost is a piece of a drawn texture (frost.py),
    enlarged with the image, where the paper has six photographs."""
    of_image, of_frost = constants
    height, width = images.shape[1:3]
    factor = scale(images)
    high, wide = (min(SIDE, round(side / factor)) for side in (height, width))
    which = draws.below(TEXTURES, ())
    top, left = draws.below(SIDE - high + 1, (), 1), draws.below(SIDE - wide + 1, (), 2)
    pieces = np.stack([textures()[one, y : y + high, x : x + wide] for one, y, x in zip(which, top, left, strict=True)])
    rows, columns = (np.arange(side) * part // side for side, part in ((height, high), (width, wide)))
    pieces = pieces[:, rows][:, :, columns]
    return to_bytes(np.float32(of_image) * to_unit(images) + np.float32(of_frost) * to_unit(pieces))


def fog(images: Pixels, constants: tuple[float, float], draws: Draws) -> Pixels:
    """A cloud of the given thickness is added, its roughness divided by decay² from each scale to the next; then the
    brightest value becomes as bright as it was."""
    thickness, decay = constants
    height, width = images.shape[1:3]
    values = to_unit(images)
    brightest = values.max(axis=(1, 2, 3), keepdims=True)
    side = 1 << (max(height, width) - 1).bit_length()
    cloud = plasma(draws.between(-1, 1, (side, side)), decay)[:, :height, :width, None]
    return to_bytes((values + np.float32(thickness) * cloud) * (brightest / (brightest + np.float32(thickness))))


def plasma(noise: Array, decay: float) -> Array:
    """float32 [n, S, S] in 0 to 1 from uniform noise of that shape in -1 to 1, S a power of two: the diamond-square
    algorithm (Fournier, Fussell and Carpenter 1982) on a torus. Every point but the first is the mean of four
    neighbours, at a distance that halves from round to round, plus its noise times a factor that decay² divides."""
    heights = np.zeros_like(noise)
    step, strength = noise.shape[1], np.float32(1)
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        sums = corners + np.roll(corners, -1, axis=1)
        centres = heights[:, half::step, half::step]
        centres[:] = (sums + np.roll(sums, -1, axis=2)) / 4 + strength * noise[:, half::step, half::step]
        beside = corners + np.roll(corners, -1, axis=2) + centres + np.roll(centres, 1, axis=1)
        heights[:, ::step, half::step] = beside / 4 + strength * noise[:, ::step, half::step]
        below = corners + np.roll(corners, -1, axis=1) + centres + np.roll(centres, 1, axis=2)
        heights[:, half::step, ::step] = below / 4 + strength * noise[:, half::step, ::step]
        step, strength = half, strength / np.float32(decay**2)
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)


def brightness(images: Pixels, added: float, draws: Draws) -> Pixels:
    """Added to the value of hue, saturation and value, which ends at 1: colours are multiplied, black becomes grey."""
    values = to_unit(images)
    value = values.max(axis=3, keepdims=True)
    brighter = np.minimum(value + np.float32(added), 1)
    black = value == 0
    return to_bytes(np.where(black, brighter, values * (brighter / np.where(black, 1, value))))
