"""Where the augmentation's pixels come from: shift, flip and the resized crop, as gathers from a uint8 image.

Tiles are rows × columns of the result, both powers of two. Rows and columns beyond the image are brought back into it,
so that no load needs a mask; what comes of them is never written.
"""

import triton
import triton.language as tl


@triton.jit
def uncovered(position, shift, SIZE: tl.constexpr, POLICY: tl.constexpr):
    """Where along an axis a shifted image's pixel comes from, in 0 … SIZE - 1, and whether there is such a pixel."""
    source = position - shift
    inside = (source >= 0) & (source < SIZE)
    if POLICY.padding == "reflect":
        source = (SIZE - 1) - tl.abs((SIZE - 1) - tl.abs(source))
    else:
        source = tl.minimum(tl.maximum(source, 0), SIZE - 1)
    return source, inside


@triton.jit
def source_of(y, x, placement, POLICY: tl.constexpr):
    """Row and column before shift and flip, and whether they lie in the image; `placement`: shift down, right, flip."""
    down, right, flip = placement
    if POLICY.flip != "none":
        x = tl.where(flip != 0, POLICY.width - 1 - x, x)
    inside = True
    if POLICY.translate > 0:
        y, y_inside = uncovered(y, down, POLICY.height, POLICY)
        x, x_inside = uncovered(x, right, POLICY.width, POLICY)
        inside = y_inside & x_inside
    return y, x, inside


@triton.jit
def load_pixels(base, offset):
    """Red, green and blue of pixels, as int32."""
    red = tl.load(base + offset).to(tl.int32)
    green = tl.load(base + offset + 1).to(tl.int32)
    blue = tl.load(base + offset + 2).to(tl.int32)
    return red, green, blue


@triton.jit
def clip(total):
    """A sum of levels times weights of 22 fractional bits, rounded to a level."""
    return tl.minimum(tl.maximum(total >> 22, 0), 255)


@triton.jit
def across(image, taps, row, first, left, width, POLICY: tl.constexpr):
    """Rows `row` of the store's image, cropped and enlarged across: packed pixels.

    `taps` are pointers to the table's entries of the columns, whose `first` pixels are given.
    """
    red = 1 << 21
    green = 1 << 21
    blue = 1 << 21
    TAPS: tl.constexpr = POLICY.taps
    for tap in tl.static_range(TAPS):
        weight = tl.load(taps + 1 + tap)
        column = left + tl.minimum(first + tap, width - 1)
        r, g, b = load_pixels(image, row * (3 * POLICY.width) + 3 * column)
        red += r * weight
        green += g * weight
        blue += b * weight
    return clip(red) | (clip(green) << 8) | (clip(blue) << 16)


@triton.jit
def resized(
    image, taps_across, taps_down, box, row, column, ROWS: tl.constexpr, POLICY: tl.constexpr, WHOLE: tl.constexpr
):
    """Pixels (row, column) of the crop `box` enlarged to the image's size; row is [ROWS, 1], column [1, COLUMNS]."""
    top, left, height, width = box
    TAPS: tl.constexpr = POLICY.taps
    taps_across += (width * POLICY.width + column) * (TAPS + 1)
    taps_down += (height * POLICY.height + row) * (TAPS + 1)
    first_column = tl.load(taps_across)
    first_row = tl.load(taps_down)
    if WHOLE:
        line = top + tl.minimum(tl.arange(0, ROWS)[:, None], height - 1)
        lines = across(image, taps_across, line, first_column, left, width, POLICY)
    red = 1 << 21
    green = 1 << 21
    blue = 1 << 21
    for tap in tl.static_range(TAPS):
        weight = tl.load(taps_down + 1 + tap)
        line = tl.minimum(first_row + tap, height - 1)
        if WHOLE:
            pixel = tl.gather(lines, line + 0 * column, 0)
        else:
            pixel = across(image, taps_across, top + line, first_column, left, width, POLICY)
        red += (pixel & 255) * weight
        green += ((pixel >> 8) & 255) * weight
        blue += (pixel >> 16) * weight
    return clip(red), clip(green), clip(blue)


@triton.jit
def placed(
    image, taps_across, taps_down, box, placement, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    POLICY: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Rows from `first` on after crop, shift and flip: red, green and blue, each [ROWS·COLUMNS]."""
    y = tl.minimum(first + tl.arange(0, ROWS)[:, None], POLICY.height - 1)
    x = tl.minimum(tl.arange(0, COLUMNS)[None, :], POLICY.width - 1)
    row, column, inside = source_of(y, x, placement, POLICY)
    if POLICY.taps > 0:
        red, green, blue = resized(image, taps_across, taps_down, box, row, column, ROWS, POLICY, WHOLE)
    else:
        red, green, blue = load_pixels(image, (row * POLICY.width + column) * 3)
    if POLICY.translate > 0 and POLICY.padding != "reflect":
        red = tl.where(inside, red, POLICY.fill & 255)
        green = tl.where(inside, green, (POLICY.fill >> 8) & 255)
        blue = tl.where(inside, blue, POLICY.fill >> 16)
    SIZE: tl.constexpr = ROWS * COLUMNS
    return tl.reshape(red, [SIZE]), tl.reshape(green, [SIZE]), tl.reshape(blue, [SIZE])
