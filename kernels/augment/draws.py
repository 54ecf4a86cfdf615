"""The draws of the augmentation on the device: `fastres.augment.draws` bit for bit, for one image a program.

Draws end as scalars, the same in all threads of a program: that costs less than another launch and a way through
memory. What a policy leaves out is left out when the kernel is compiled.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

GEOMETRY, CROP, COLOUR, ERASE, NOISE, MIX = (tl.constexpr(stream) for stream in range(6))
"""Philox streams, as in fastres.augment.draws."""

MIXUP, CUTMIX = tl.constexpr(1), tl.constexpr(2)
"""Kinds of mixing; 0 is none."""

LEVELS = tl.constexpr(4096)
CROP_TABLES, ERASE_TABLES, MIX_TABLES, NORMAL_TABLE = (tl.constexpr(row) for row in (0, 3, 6, 8))
TABLE_ROWS = 9
"""Rows of the fp32 [9, 4096] buffer `tables`: twice_side, widen and narrow of the crop, the same of the erased box,
MixUp's weight, CutMix's half side, the normal table. Rows of absent operations are not used."""


HALF = tl.constexpr(1 << 23)
"""Threshold of `chance` for one half."""


@dataclass(frozen=True)
class Policy:
    """Compile-time constants of a kernel.

    A probability p is the integer ⌈p·2²⁴⌉: u < p where a word's top 24 bits are below it.
    """

    height: int
    width: int
    channels_last: bool = True
    taps: int = 0
    """Pixels along an axis that random_resized_crop weighs: 2 bilinear, 4 bicubic, 0 for none."""
    fallback: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, height, width of the crop after ten that do not fit."""
    translate: int = 0
    padding: str = "zero"
    fill: int = 0
    """Colour of what a shift uncovers, red + 2⁸·green + 2¹⁶·blue."""
    flip: str = "none"
    jitter: int = 0
    low: tuple[int, int, int] = (0, 0, 0)
    """Least factor of brightness, contrast and saturation, in units of 2⁻¹⁴."""
    levels: tuple[int, int, int] = (1, 1, 1)
    """Number of factors; 1: the operation is left out."""
    hue: int = 0
    """Largest shift in units of 2⁻⁸/255 turns."""
    autocontrast: int = 0
    grayscale: int = 0
    cutout: int = 0
    erase: int = 0
    noise: bool = False
    mixup: bool = False
    cutmix: bool = False
    mix: int = 0
    """Probability that a batch is mixed."""
    switch: int = 0
    """Probability of CutMix, where both are given."""
    until: int = 0

    @property
    def coloured(self) -> bool:
        """Whether an operation needs all three channels of a pixel at once."""
        return bool(self.jitter or self.autocontrast or self.grayscale)

    @property
    def direct(self) -> bool:
        """Whether each output value comes from one input value."""
        return not (self.coloured or self.taps)

    @property
    def octets(self) -> bool:
        """Whether eight values in a row of the output belong to one row of the image."""
        return self.channels_last and self.width % 8 == 0

    @property
    def mixes(self) -> bool:
        return bool(self.mix and (self.mixup or self.cutmix))


@triton.jit
def random_bits(seed, index, epoch, stream, block):
    """Four words of Philox-4x32-10 with key (seed, 0); counters of 32 bits, since for 64 Triton has another Philox."""
    return tl.philox(seed, index.to(tl.uint32), epoch.to(tl.uint32), stream, block)


@triton.jit
def chance(word, threshold):
    """Whether a word's uniform is below a probability."""
    return (word >> 8).to(tl.int32) < threshold


@triton.jit
def below(word, bound):
    """⌊u·bound⌋ as int32: one fp32 product, since scaling by 2⁻²⁴ is exact."""
    return ((word >> 8).to(tl.float32) * 5.9604644775390625e-08 * bound).to(tl.int32)


@triton.jit
def level(word):
    """Index into a table."""
    return (word >> 20).to(tl.int32)


@triton.jit
def place_of(first, second, third, POLICY: tl.constexpr):
    """Shift down, shift right and flip from the words of GEOMETRY."""
    down = below(first, 2.0 * POLICY.translate + 1.0) - POLICY.translate
    right = below(second, 2.0 * POLICY.translate + 1.0) - POLICY.translate
    return down, right, chance(third, HALF).to(tl.int32)


@triton.jit
def settled_flip(seed, index, epoch, flip, POLICY: tl.constexpr):
    """The flip by the policy's rule, given the one that was drawn at this epoch."""
    if POLICY.flip == "alternating":
        _, _, word, _ = random_bits(seed, index, epoch * 0, GEOMETRY, 0)
        flip = chance(word, HALF).to(tl.int32) ^ (epoch & 1).to(tl.int32)
    return flip


@triton.jit
def draw_geometry(seed, index, epoch, POLICY: tl.constexpr):
    """Shift down, shift right, flip."""
    first, second, third, _ = random_bits(seed, index, epoch, GEOMETRY, 0)
    down, right, flip = place_of(first, second, third, POLICY)
    return down, right, settled_flip(seed, index, epoch, flip, POLICY)


@triton.jit
def try_boxes(tables, area, ratio, down, right, POLICY: tl.constexpr, ERASING: tl.constexpr):
    """Of several attempts: corners, top + 2¹⁶·left; sides, height + 2¹⁶·width; whether the box fits.

    `tables` begins at the row of twice_side.
    """
    side = tl.load(tables + level(area))
    wide = ((side * tl.load(tables + LEVELS + level(ratio))).to(tl.int32) + 1) >> 1
    narrow = ((side * tl.load(tables + 2 * LEVELS + level(ratio))).to(tl.int32) + 1) >> 1
    if ERASING:
        height = wide
        width = narrow
        fits = (height < POLICY.height) & (width < POLICY.width)
    else:
        height = narrow
        width = wide
        fits = (height > 0) & (height <= POLICY.height) & (width > 0) & (width <= POLICY.width)
    top = below(down, (POLICY.height - height + 1).to(tl.float32))
    left = below(right, (POLICY.width - width + 1).to(tl.float32))
    return top | (left << 16), height | (width << 16), fits


@triton.jit
def pick(values, lane, wanted):
    """One lane's entry of a vector."""
    return tl.sum(tl.where(lane == wanted, values, 0), axis=0)


@triton.jit
def halves(packed):
    """The two numbers below 2¹⁶ of low + 2¹⁶·high."""
    return packed & 65535, (packed >> 16) & 65535


@triton.jit
def draw_sample(tables, seed, index, epoch, POLICY: tl.constexpr):
    """All draws but the boxes', as three tuples: shift down, right, flip; the crop's top, left, height, width; jitter,
    order, brightness, contrast, saturation, hue, autocontrast, grayscale.

    Philox costs some 70 instructions, and every warp would pay them for each block of words. One vector of counters, a
    block a lane, pays once: lanes 0 to 9 are the crop's attempts, 10 GEOMETRY, 11 and 12 the blocks of COLOUR. What a
    lane has drawn is packed before it is picked.
    """
    lane = tl.arange(0, 16)
    stream = tl.where(lane < 10, CROP, tl.where(lane == 10, GEOMETRY, COLOUR))
    first, second, third, fourth = random_bits(
        seed, index, epoch, stream, tl.where(lane < 10, lane, tl.where(lane == 12, 1, 0))
    )
    down, right, flip = place_of(first, second, third, POLICY)
    packed = pick((down + POLICY.translate) | ((right + POLICY.translate) << 8) | (flip << 16), lane, 10)
    flip = settled_flip(seed, index, epoch, packed >> 16, POLICY)
    placement = ((packed & 255) - POLICY.translate, ((packed >> 8) & 255) - POLICY.translate, flip)

    crop = (0, 0, POLICY.height, POLICY.width)
    if POLICY.taps > 0:
        corners, sides, fits = try_boxes(tables + CROP_TABLES * LEVELS, first, second, third, fourth, POLICY, False)
        best = tl.min(tl.where(fits & (lane < 10), lane, 15), axis=0)
        top, left = halves(pick(corners, lane, best))
        height, width = halves(pick(sides, lane, best))
        crop = (
            tl.where(best < 15, top, POLICY.fallback[0]),
            tl.where(best < 15, left, POLICY.fallback[1]),
            tl.where(best < 15, height, POLICY.fallback[2]),
            tl.where(best < 15, width, POLICY.fallback[3]),
        )

    colour = (0, 0, 0, 0, 0, 0, 0, 0)
    if POLICY.coloured:
        jitter = chance(first, POLICY.jitter).to(tl.int32)
        autocontrast = chance(third, POLICY.autocontrast).to(tl.int32)
        grayscale = chance(fourth, POLICY.grayscale).to(tl.int32)
        flags = jitter | (autocontrast << 1) | (grayscale << 2) | (below(second, 24.0) << 3)
        flags = pick(flags, lane, 11)
        brightness = below(first, 1.0 * POLICY.levels[0]) + POLICY.low[0]
        contrast = below(second, 1.0 * POLICY.levels[1]) + POLICY.low[1]
        saturation = below(third, 1.0 * POLICY.levels[2]) + POLICY.low[2]
        shift = below(fourth, 2.0 * POLICY.hue + 1.0) - POLICY.hue
        hue = tl.where(shift < 0, -(-shift >> 8), shift >> 8) & 255
        brightness, contrast = halves(pick(brightness | (contrast << 16), lane, 12))
        saturation, hue = halves(pick(saturation | (hue << 16), lane, 12))
        colour = (
            flags & 1, flags >> 3, brightness, contrast, saturation, hue, (flags >> 1) & 1, (flags >> 2) & 1,
        )  # fmt: skip
    return placement, crop, colour


@triton.jit
def draw_cutout(seed, index, epoch, POLICY: tl.constexpr):
    """Top, left, bottom, right of the square, clipped to the image."""
    _, row, column, _ = random_bits(seed, index, epoch, ERASE, 0)
    top = below(row, 1.0 * POLICY.height) - POLICY.cutout // 2
    left = below(column, 1.0 * POLICY.width) - POLICY.cutout // 2
    bottom = tl.minimum(top + POLICY.cutout, POLICY.height)
    right = tl.minimum(left + POLICY.cutout, POLICY.width)
    return tl.maximum(top, 0), tl.maximum(left, 0), bottom, right


@triton.jit
def draw_erase(tables, seed, index, epoch, POLICY: tl.constexpr):
    """Top, left, bottom, right of the erased box; an empty one where nothing is erased."""
    wanted, _, _, _ = random_bits(seed, index, epoch, ERASE, 0)
    start = tables + ERASE_TABLES * LEVELS
    lane = tl.arange(0, 16)
    area, ratio, down, right = random_bits(seed, index, epoch, ERASE, 1 + lane)
    corners, sides, fits = try_boxes(start, area, ratio, down, right, POLICY, True)
    best = tl.min(tl.where(fits & (lane < 10), lane, 15), axis=0)
    any_fits = best < 15
    top, left = halves(pick(corners, lane, best))
    height, width = halves(pick(sides, lane, best))
    erases = (chance(wanted, POLICY.erase) & any_fits).to(tl.int32)
    return top * erases, left * erases, (top + height) * erases, (left + width) * erases


@triton.jit
def draw_mixing(tables, seed, epoch, step, POLICY: tl.constexpr):
    """Kind (0 none, 1 MixUp, 2 CutMix), weight λ, and top, left, bottom, right of CutMix's box, of the batch `step`."""
    first, second, third, _ = random_bits(seed, step, epoch, MIX, 0)
    mixed = chance(first, POLICY.mix)
    if POLICY.until > 0:
        mixed = mixed & (epoch.to(tl.int32) < POLICY.until)
    if POLICY.mixup and POLICY.cutmix:
        kind = tl.where(chance(second, POLICY.switch), CUTMIX, MIXUP)
    elif POLICY.cutmix:
        kind = CUTMIX
    else:
        kind = MIXUP
    kind = tl.where(mixed, kind, 0)
    weight = tl.load(tables + MIX_TABLES * LEVELS + level(third))
    half = tl.load(tables + (MIX_TABLES + 1) * LEVELS + level(third))
    column, row, _, _ = random_bits(seed, step, epoch, MIX, 1)
    x = below(column, 1.0 * POLICY.width)
    y = below(row, 1.0 * POLICY.height)
    tall = (half * POLICY.height).to(tl.int32)
    wide = (half * POLICY.width).to(tl.int32)
    cut = (kind == CUTMIX).to(tl.int32)
    top = tl.maximum(y - tall, 0) * cut
    left = tl.maximum(x - wide, 0) * cut
    bottom = tl.minimum(y + tall, POLICY.height) * cut
    right = tl.minimum(x + wide, POLICY.width) * cut
    # With an empty box, of no mixing too, this is exactly 1.
    remaining = POLICY.height * POLICY.width - (bottom - top) * (right - left)
    fraction = tl.div_rn(remaining.to(tl.float32), 1.0 * POLICY.height * POLICY.width)
    return kind, tl.where(kind == MIXUP, weight, fraction), top, left, bottom, right
