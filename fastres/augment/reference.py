"""The augmentation of one image in plain NumPy: what the Numba and Triton twins are tested against.

The report's code ran torchvision's transforms on 8-bit Pillow images, where each operation rounds to whole grey levels.
These functions give Pillow's bits (on x86-64; Pillow built for Arm lets the compiler fuse multiply-adds in its blend
and hue). Against torchvision's float tensors, which round nowhere, an operation differs by up to a few levels: most in
hue, which Pillow keeps in 8 bits. Images are uint8 [H, W, 3], factors and shifts as draws.Draws has them.
"""

from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres import recipe
from fastres.augment.draws import CUTMIX, HUE_BITS, MIXUP, NOISE, UNIT, UNMIXED, Draws, Mixing
from fastres.augment.philox import philox_4x32
from fastres.augment.resample import FRACTION, TAPS, taps
from fastres.augment.spec import AugmentSpec
from fastres.augment.tables import normal_table

Image = NDArray[np.uint8]
Values = NDArray[np.float32]

ORDERS = tuple(permutations(range(4)))
"""Draws.order → the order of 0 brightness, 1 contrast, 2 saturation, 3 hue."""


def resized_crop(image: Image, top: int, left: int, height: int, width: int, interpolation: str) -> Image:
    """A box of the image, enlarged to the image's size: first across, then down."""
    pixels = image[top : top + height, left : left + width].astype(np.int32)
    across = _enlarge(pixels.swapaxes(0, 1), image.shape[1], interpolation).swapaxes(0, 1)
    return _enlarge(across, image.shape[0], interpolation).astype(np.uint8)


def _enlarge(pixels: NDArray[np.int32], size: int, interpolation: str) -> NDArray[np.int32]:
    """One pass over the first axis."""
    side, table = len(pixels), taps(size, interpolation)
    total = np.full((size, *pixels.shape[1:]), 1 << (FRACTION - 1), dtype=np.int32)
    for tap in range(TAPS[interpolation]):
        position = np.minimum(table.first[side] + tap, side - 1)
        total += pixels[position] * table.weight[side, :, tap, None, None]
    return np.clip(total >> FRACTION, 0, 255)


def translate(image: Image, down: int, right: int, padding: str, fill: list[int] | None) -> Image:
    """Move the content; what comes in at the edge is a colour or the mirrored content."""
    height, width = image.shape[:2]
    if padding == "reflect":
        rows, columns = np.abs(np.arange(height) - down), np.abs(np.arange(width) - right)
        rows = np.where(rows >= height, 2 * (height - 1) - rows, rows)
        return image[rows][:, np.where(columns >= width, 2 * (width - 1) - columns, columns)]
    moved = np.empty_like(image)
    moved[:] = fill or [0, 0, 0]
    moved[max(down, 0) : height + down, max(right, 0) : width + right] = image[
        max(-down, 0) : height - down, max(-right, 0) : width - right
    ]
    return moved


def luma(image: Image) -> NDArray[np.int32]:
    """ITU-R 601-2 grey, int32 [H, W]: Pillow's conversion to mode L."""
    red, green, blue = (image[..., channel].astype(np.int32) for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _blend(image: Image, grey: NDArray[np.int32] | int, factor: int) -> Image:
    """grey + factor·(image - grey), rounded down and clipped: ImageEnhance."""
    return np.clip(grey + ((factor * (image.astype(np.int32) - grey)) >> UNIT), 0, 255).astype(np.uint8)


def brightness(image: Image, factor: int) -> Image:
    """Towards or away from black."""
    return _blend(image, 0, factor)


def contrast(image: Image, factor: int) -> Image:
    """Towards or away from the mean grey, itself rounded to a whole level."""
    grey = luma(image)
    return _blend(image, (2 * int(grey.sum()) + grey.size) // (2 * grey.size), factor)


def saturation(image: Image, factor: int) -> Image:
    """Towards or away from each pixel's grey."""
    return _blend(image, luma(image)[..., None], factor)


def hue(image: Image, shift: int) -> Image:
    """Turn the hue by shift/255 turns, through Pillow's 8-bit HSV; a shift of 0 rounds as well."""
    angle, ratio, value = _to_hsv(image)
    return _from_hsv((angle + shift) & 255, ratio, value)


def _to_hsv(image: Image) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Hue, saturation and value, 0 … 255. fp32 and fp64 take turns as they do in Pillow's C."""
    top, low = image.max(axis=-1).astype(np.int32), image.min(axis=-1).astype(np.int32)
    grey = top == low
    spread = np.where(grey, 1, top - low).astype(np.float32)
    to_red, to_green, to_blue = ((top - image[..., channel]).astype(np.float32) / spread for channel in range(3))
    sixths = np.where(
        image[..., 0] == top,
        to_blue - to_green,
        np.where(
            image[..., 1] == top,
            (2.0 + to_red.astype(np.float64) - to_blue).astype(np.float32),
            (4.0 + to_green.astype(np.float64) - to_red).astype(np.float32),
        ),
    )
    turns = np.fmod(sixths.astype(np.float64) / 6.0 + 1.0, 1.0).astype(np.float32)
    ratio = spread / np.maximum(top, 1).astype(np.float32)
    angle, ratio8 = ((x.astype(np.float64) * 255.0).astype(np.int32) for x in (turns, ratio))
    return np.where(grey, 0, angle), np.where(grey, 0, ratio8), top


def _from_hsv(angle: NDArray[np.int32], ratio: NDArray[np.int32], value: NDArray[np.int32]) -> Image:
    """Back to red, green and blue; fp32 and fp64 as in Pillow's C, halves rounded up."""
    sixths = angle * 6.0 / 255.0
    sector = np.floor(sixths).astype(np.int32)
    rest, part = (sixths - sector).astype(np.float32), (ratio / 255.0).astype(np.float32)
    down, up = (part * rest).astype(np.float64), part.astype(np.float64) * (1.0 - rest.astype(np.float64))
    p, q, t = (np.floor(value * (1.0 - x) + 0.5).astype(np.int32) for x in (part.astype(np.float64), down, up))
    choice = sector % 6
    channels = ((value, q, p, p, t, value), (t, value, value, q, p, p), (p, p, t, value, value, q))
    return np.stack([np.choose(choice, channel) for channel in channels], axis=-1).astype(np.uint8)


def autocontrast(image: Image) -> Image:
    """Stretch each channel to 0 … 255; a channel of one level stays."""
    stretched = image.copy()
    for channel in range(3):
        low, high = int(image[..., channel].min()), int(image[..., channel].max())
        if high > low:
            scale = 255.0 / (high - low)
            levels = np.arange(256) * scale + -low * scale
            stretched[..., channel] = np.clip(np.trunc(levels), 0, 255).astype(np.uint8)[image[..., channel]]
    return stretched


def grayscale(image: Image) -> Image:
    """The grey in all three channels."""
    return np.repeat(luma(image)[..., None], 3, axis=-1).astype(np.uint8)


def augment_pixels(image: Image, policy: recipe.AugmentConfig, draws: Draws, sample: int) -> Image:
    """All that happens in 8 bits, with the draws of one sample."""

    def drawn(name: str) -> int:
        return int(getattr(draws, name)[sample])

    if policy.random_resized_crop is not None:
        box = (drawn("top"), drawn("left"), drawn("height"), drawn("width"))
        image = resized_crop(image, *box, policy.random_resized_crop.interpolation)
    if policy.translate:
        image = translate(image, drawn("down"), drawn("right"), policy.padding, policy.fill)
    if drawn("flip"):
        image = image[:, ::-1]
    if drawn("jitter"):
        assert policy.color_jitter is not None
        for which in ORDERS[drawn("order")]:
            name = ("brightness", "contrast", "saturation", "hue")[which]
            # torchvision leaves out what has no strength; hue would round even so.
            if name != "hue" or round(policy.color_jitter.hue * 255 * 2**HUE_BITS) > 0:
                image = (brightness, contrast, saturation, hue)[which](image, drawn(name))
    if drawn("autocontrast"):
        image = autocontrast(image)
    if drawn("grayscale"):
        image = grayscale(image)
    return image


def normalise(
    image: Image, scale: Values, offset: Values, boxes: list[tuple[NDArray[np.int32], Values]], noise: Values
) -> Values:
    """fp32 [H, W, 3]: pixel·scale + offset, rounded after the product and after the sum.

    Args:
        scale, offset: fp32 [3], as `Augment.scale` and `Augment.offset`.
        boxes: (top, left, bottom, right) and the normalised colour, fp32 [3], that fills it; later ones on top.
        noise: fp32 [H, W, 3], added last; the sum is kept between the values of black and white.
    """
    values = image.astype(np.float32) * scale + offset
    for (top, left, bottom, right), colour in boxes:
        values[top:bottom, left:right] = colour
    if not noise.any():
        return values
    return np.clip(values + noise, offset, np.float32(255) * scale + offset)


def noise(size: tuple[int, int], strength: Values, seed: int, epoch: int, index: int) -> Values:
    """fp32 [H, W, 3]: the normal table's entries times `strength`, fp32 [3], the deviation in normalised units."""
    pixels = np.arange(size[0] * size[1])
    random_bits = philox_4x32((index, epoch, NOISE, pixels), (seed, 0))[:3]
    return (normal_table()[random_bits >> np.uint32(20)].T * strength).reshape(*size, 3)


def mix(values: Values, mixing: Mixing) -> Values:
    """Mix fp32 [B, H, W, 3] with its neighbours: λ·own + (1-λ)·partner, two products and a sum, or a pasted box."""
    partner = np.roll(values, 1, axis=0)
    if mixing.kind == MIXUP:
        return values * mixing.weight + partner * (np.float32(1) - mixing.weight)
    if mixing.kind == CUTMIX:
        top, left, bottom, right = mixing.box
        values = values.copy()
        values[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return values


def augment_batch(
    augment: AugmentSpec, images: Tensor, indices: Tensor, epoch: int, rows: Tensor, mixing: Mixing = UNMIXED
) -> Tensor:
    """`Augment`'s batch, [B, 3, H, W] on the CPU, by the functions above; arguments as there, `mixing` as drawn."""
    size = (images.shape[1], images.shape[2])
    drawn = augment.draw(indices.cpu(), epoch, size)
    values = np.empty((len(rows), *size, 3), dtype=np.float32)
    for n, image in enumerate(images[rows].cpu().numpy()):
        boxes = [(drawn.cutout[:, n], augment.normalization[4]), (drawn.erase[:, n], augment.normalization[5])]
        added = np.zeros((*size, 3), dtype=np.float32)
        if augment.policy.noise:
            added = noise(size, augment.noise_scale, augment.seed, epoch, int(indices[n]))
        pixels = augment_pixels(image, augment.policy, drawn, n)
        values[n] = normalise(pixels, augment.normalization[0], augment.normalization[1], boxes, added)
    return torch.from_numpy(mix(values, mixing)).to(augment.dtype).permute(0, 3, 1, 2)
