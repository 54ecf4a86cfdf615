"""The colour operations of the augmentation on the device, with Pillow's rounding to 8 bits after each.

A tile is three int32 vectors, red, green and blue, 0 … 255, of the pixels of one image or of some of its rows; `inside`
is false for what fills the vectors up to a power of two. `fastres.augment.reference` has the same operations in NumPy,
bit for bit: that needs a compiler that fuses no multiplications with additions, and no fp64 but in a 256-entry table.
"""

import triton
import triton.language as tl


@triton.jit
def luma(red, green, blue):
    """ITU-R 601-2 grey, Pillow's conversion to mode L."""
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


@triton.jit
def blend(channel, grey, factor):
    """grey + factor·(channel - grey), rounded down and clipped; `factor` in units of 2⁻¹⁴."""
    return tl.minimum(tl.maximum(grey + ((factor * (channel - grey)) >> 14), 0), 255)


@triton.jit
def mean_grey(total, POLICY: tl.constexpr):
    """The mean of an image's greys that sum up to `total`, rounded to the nearest level, halves up."""
    PIXELS: tl.constexpr = POLICY.height * POLICY.width
    return (2 * total + PIXELS) // (2 * PIXELS)


@triton.jit
def floor_255(fraction):
    """⌊255·fraction⌋ of the exact product, for fp32 fraction in [0, 1].

    255·fraction = 256·fraction - fraction, whose rounding error the last line of Dekker's two-sum recovers (Dekker
    1971): where the sum was rounded up to a whole number, that is one too many.
    """
    large = fraction * 256.0
    product = large - fraction
    error = -fraction - (product - large)
    whole = product.to(tl.int32)
    return whole - ((whole.to(tl.float32) == product) & (error < 0.0)).to(tl.int32)


@triton.jit
def turn_hue(red, green, blue, shift):
    """Add `shift` to Pillow's 8-bit hue and come back.

    Two of the three terms in Pillow's hue are 0 and 1: one fp32 quotient and one sum give its fp32 value, and the
    turns, which Pillow forms in fp64, have the same floor from one more fp32 quotient. Back from HSV, all rounding is
    that of whole numbers. Equal to Pillow for all 2²⁴ colours in both directions.
    """
    top = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    spread = tl.maximum(top - low, 1).to(tl.float32)
    part = tl.div_rn((2 * top + low - red - green - blue).to(tl.float32), spread)  # (top - middle)/spread
    plus = tl.where(red == top, tl.where(green < blue, -1.0, 1.0), tl.where(green == top, 3.0, 5.0))
    falls = tl.where(red == top, green >= blue, tl.where(green == top, red < blue, green < red))
    plus = tl.where((red != top) & (green == top) & (red >= blue), 1.0, plus)
    plus = tl.where((red != top) & (green != top) & (green >= red), 3.0, plus)
    sixth = tl.div_rn(plus + tl.where(falls, -part, part), 6.0)
    angle = floor_255(tl.where(sixth < 0.0, 1.0 + sixth, sixth))
    grey = top == low
    angle = (tl.where(grey, 0, angle) + shift) & 255
    saturation = floor_255(tl.div_rn((top - low).to(tl.float32), tl.maximum(top, 1).to(tl.float32)))

    sector = 6 * angle // 255
    rest = 6 * angle - 255 * sector
    p = (2 * top * (255 - saturation) + 255) // 510
    q = (2 * top * (65025 - saturation * rest) + 65025) // 130050
    t = (2 * top * (65025 - saturation * (255 - rest)) + 65025) // 130050
    sector = tl.where(sector == 6, 0, sector)
    red = tl.where((sector == 0) | (sector == 5), top, tl.where(sector == 1, q, tl.where(sector == 4, t, p)))
    green = tl.where((sector == 1) | (sector == 2), top, tl.where(sector == 3, q, tl.where(sector == 0, t, p)))
    blue = tl.where((sector == 3) | (sector == 4), top, tl.where(sector == 5, q, tl.where(sector == 2, t, p)))
    return red, green, blue


@triton.jit
def sequence_of(order):
    """The permutation of 0, 1, 2, 3 with lexicographic index `order`, four bits an entry, the first one lowest."""
    left = 0x3210
    sequence = 0
    count = 6
    for slot in tl.static_range(4):
        at = 4 * (order // count % (4 - slot))
        sequence |= ((left >> at) & 15) << (4 * slot)
        left = (left & ((1 << at) - 1)) | ((left >> (at + 4)) << at)
        if slot < 2:
            count = count // (3 - slot)
    return sequence


@triton.jit
def jitter(tile, inside, factors, sequence, steps, mean, POLICY: tl.constexpr):
    """The first `steps` of the four operations in `sequence`.

    `factors` are those of brightness, contrast and saturation and the hue shift. `mean` is the image's mean grey before
    contrast; None: the tile is the whole image, and it is computed here.
    """
    red, green, blue = tile
    for step in range(steps):
        which = (sequence >> (4 * step)) & 15
        if which == 0:
            if POLICY.levels[0] > 1:
                red = blend(red, 0, factors[0])
                green = blend(green, 0, factors[0])
                blue = blend(blue, 0, factors[0])
        elif which == 1:
            if POLICY.levels[1] > 1:
                if mean is None:
                    grey = mean_grey(tl.sum(tl.where(inside, luma(red, green, blue), 0), axis=0), POLICY)
                else:
                    grey = mean
                red = blend(red, grey, factors[1])
                green = blend(green, grey, factors[1])
                blue = blend(blue, grey, factors[1])
        elif which == 2:
            if POLICY.levels[2] > 1:
                grey = luma(red, green, blue)
                red = blend(red, grey, factors[2])
                green = blend(green, grey, factors[2])
                blue = blend(blue, grey, factors[2])
        else:
            if POLICY.hue > 0:
                red, green, blue = turn_hue(red, green, blue, factors[3])
    return red, green, blue


@triton.jit
def least(channel, inside):
    """Least level of a channel."""
    return tl.min(tl.where(inside, channel, 255), axis=0)


@triton.jit
def greatest(channel, inside):
    """Greatest level of a channel."""
    return tl.max(tl.where(inside, channel, 0), axis=0)


@triton.jit
def stretch(channel, low, high):
    """Stretch a channel from low … high to 0 … 255 through ImageOps.autocontrast's table, in fp64; one level stays."""
    entries = tl.arange(0, 256)
    scale = 255.0 / tl.maximum(high - low, 1).to(tl.float64)
    stretched = (entries.to(tl.float64) * scale + (-low).to(tl.float64) * scale).to(tl.int32)
    table = tl.where(high > low, tl.minimum(tl.maximum(stretched, 0), 255), entries)
    return tl.gather(table, channel, 0)
