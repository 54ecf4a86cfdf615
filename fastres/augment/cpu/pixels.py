"""reference.py once more, compiled with Numba: a range of samples from uint8 to what the network reads, in one pass.

A sample's pixels stay in the first-level cache from the read to the write. fastmath is off everywhere: the operations
are bit for bit those of the reference. Loops over a sample run over flat memory, without branches inside, so that LLVM
turns them into vector instructions. As in draws.py, all that is called stands in this file.
"""

from typing import Any

import numpy as np

from fastres.augment.draws import MIXUP, NO_MIX, UNIT
from fastres.augment.reference import ORDERS
from fastres.augment.resample import FRACTION
from fastres.utils.numba_cache import cached_njit

# "numpy": a division by 0 gives infinity instead of leaving the loop, which would keep it scalar.
_compiled: Any = cached_njit(error_model="numpy")

_ORDERS = np.array(ORDERS, dtype=np.int64)
_ROUND, _SHIFT = np.int32(1 << (FRACTION - 1)), np.int32(FRACTION)
_U = np.uint64
"""Of positions in memory: a signed one is first tested for being negative, and the loop stays scalar."""
FP32, BF16, FP16 = range(3)
"""Element types of `out` of `augment_range`: fp32 as itself, the others as uint16."""
ZERO, REFLECT = range(2)
"""Fill of the edge that a shift uncovers; ZERO is any single colour."""
PERIOD = 96
"""Values that loops do at a time: whole pixels, and whole vectors of up to 32 lanes."""


@_compiled
def _clip(level):  # type: ignore[no-untyped-def]
    """int32 to 0 … 255."""
    return np.uint8(min(max(level, np.int32(0)), np.int32(255)))


@_compiled
def _padded(count):  # type: ignore[no-untyped-def]
    """The next multiple of 32."""
    return (count + 31) // 32 * 32


@_compiled
def _enlarge(pixels, length, first, weight, side, backwards, out):  # type: ignore[no-untyped-def]
    """One pass of reference.resized_crop: from `side` lines of `length` bytes to len(first), reversed on request."""
    last, size = side - 1, len(first)
    for k in range(size):
        to, position = _U((size - 1 - k if backwards else k) * length), first[k]
        a, b = _U(position * length), _U(min(position + 1, last) * length)
        w0, w1 = weight[k, 0], weight[k, 1]
        if weight.shape[1] == 2:
            for i in range(_U(length)):
                total = np.int32(pixels[a + i]) * w0 + np.int32(pixels[b + i]) * w1
                out[to + i] = _clip(np.int32(np.int32(total) + _ROUND) >> _SHIFT)
            continue
        c, d = _U(min(position + 2, last) * length), _U(min(position + 3, last) * length)
        w2, w3 = weight[k, 2], weight[k, 3]
        for i in range(_U(length)):
            total = np.int32(pixels[a + i]) * w0 + np.int32(pixels[b + i]) * w1
            total += np.int32(pixels[c + i]) * w2 + np.int32(pixels[d + i]) * w3
            out[to + i] = _clip(np.int32(np.int32(total) + _ROUND) >> _SHIFT)


@_compiled
def _resized_crop(source, begin, row, flip, size, taps, turned, across, out):  # type: ignore[no-untyped-def]
    """reference.resized_crop, mirrored where `flip`, into out uint8 [H·W·3].

    The pass across works on columns, so that neighbours in memory share a weight; each column is padded to a multiple
    of 32 bytes, whatever they hold, which leaves no rest to the vector loop. `turned` and `across` are scratch.
    """
    top, left, height, width = row[0], row[1], row[2], row[3]
    first_y, weight_y, first_x, weight_x = taps
    line, column = _U(size[1] * 3), _U(_padded(height))
    start = _U(begin + left * 3) + _U(top) * line
    for y in range(_U(height)):
        for i in range(_U(width * 3)):
            turned[i * column + y] = source[start + y * line + i]
    _enlarge(turned, _padded(height) * 3, first_x[width], weight_x[width], width, flip, across)
    for y in range(_U(height)):
        for i in range(line):
            turned[y * line + i] = across[i * column + y]
    _enlarge(turned, size[1] * 3, first_y[height], weight_y[height], height, False, out)


@_compiled
def _reflected(position, size):  # type: ignore[no-untyped-def]
    position = abs(position)
    return 2 * (size - 1) - position if position >= size else position


@_compiled
def _mirror(source, begin, size, out):  # type: ignore[no-untyped-def]
    """Left and right exchanged: uint8 [H·W·3] at source[begin:] into out."""
    line = _U(size[1] * 3)
    for y in range(_U(size[0])):
        read, write = _U(begin) + y * line, y * line + line - _U(3)
        for x in range(_U(0), line, _U(3)):
            out[write - x] = source[read + x]
            out[write - x + _U(1)] = source[read + x + _U(1)]
            out[write - x + _U(2)] = source[read + x + _U(2)]


@_compiled
def _bf16(value):  # type: ignore[no-untyped-def]
    """fp32 to the bits of bf16, ties to even. No NaN comes here."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@_compiled
def _fp16(value):  # type: ignore[no-untyped-def]
    """fp32 to the bits of fp16, ties to even. No NaN comes here."""
    bits = np.float32(value).view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    normal = size + np.uint32(0xFFF) + ((size >> np.uint32(13)) & np.uint32(1))
    normal = min((normal >> np.uint32(13)) - np.uint32(0x1C000), np.uint32(0x7C00))
    # Below 2⁻¹⁴ fp16 counts in steps of 2⁻²⁴: whole numbers, to which fp32 rounds from 2²³ on.
    steps = abs(value) * np.float32(2.0**24)
    small = np.uint32(np.int32((min(steps, np.float32(2.0**22)) + np.float32(2.0**23)) - np.float32(2.0**23)))
    return np.uint16(sign | (normal if size >= np.uint32(0x38800000) else small))


@_compiled
def _write(values, kind, out):  # type: ignore[no-untyped-def]
    """fp32 to `out`: as it is, or rounded."""
    if out.itemsize == 4:
        for i in range(len(values)):
            out[i] = values[i]
    elif kind == BF16:
        for i in range(len(values)):
            out[i] = _bf16(values[i])
    else:
        for i in range(len(values)):
            out[i] = _fp16(values[i])


@_compiled
def _values(source, read, count, pattern, kind, out, write):  # type: ignore[no-untyped-def]
    """`count` uint8 from source[read] on to out[write] on: as they are where `out` is uint8, else normalised.

    Read and write stand at a pixel's first value. Inner loops have one length: LLVM keeps the patterns in registers.
    """
    read, write, count = _U(read), _U(write), _U(count)
    if out.itemsize == 1:
        for i in range(count):
            out[write + i] = source[read + i]
        return
    scale, offset = pattern[0], pattern[1]
    whole = count // _U(PERIOD) * _U(PERIOD)
    if out.itemsize == 4:
        for i in range(_U(0), whole, _U(PERIOD)):
            for j in range(PERIOD):
                out[write + i + _U(j)] = np.float32(source[read + i + _U(j)]) * scale[j] + offset[j]
        for j in range(count - whole):
            out[write + whole + j] = np.float32(source[read + whole + j]) * scale[j] + offset[j]
    elif kind == BF16:
        for i in range(_U(0), whole, _U(PERIOD)):
            for j in range(PERIOD):
                out[write + i + _U(j)] = _bf16(np.float32(source[read + i + _U(j)]) * scale[j] + offset[j])
        for j in range(count - whole):
            out[write + whole + j] = _bf16(np.float32(source[read + whole + j]) * scale[j] + offset[j])
    else:
        for i in range(_U(0), whole, _U(PERIOD)):
            for j in range(PERIOD):
                out[write + i + _U(j)] = _fp16(np.float32(source[read + i + _U(j)]) * scale[j] + offset[j])
        for j in range(count - whole):
            out[write + whole + j] = _fp16(np.float32(source[read + whole + j]) * scale[j] + offset[j])


@_compiled
def _translate(source, begin, down, right, size, padding, edge, pattern, kind, out):  # type: ignore[no-untyped-def]
    """reference.translate of uint8 [H·W·3] at source[begin:] into out [H·W·3]: uint8, or normalised in its own type.

    A shift moves every pixel by the same distance in memory: one long loop writes them all, wrong ones at the edges,
    which are then written again, with `edge`, a line of the padding colour as `out` holds it, or reflected.
    """
    height, width = size
    line = width * 3
    length, distance = height * line, down * line + right * 3
    _values(source, begin + max(-distance, 0), length - abs(distance), pattern, kind, out, max(distance, 0))
    if down == 0 and right == 0:
        return
    for y in range(height):
        row, to = y - down, y * line
        uncovered = row < 0 or row >= height
        if padding != REFLECT and uncovered:
            for i in range(_U(line)):
                out[_U(to) + i] = edge[i]
            continue
        start = begin + _reflected(row, height) * line
        if uncovered:
            inner = line - abs(right) * 3
            _values(source, start + max(-right, 0) * 3, inner, pattern, kind, out, to + max(right, 0) * 3)
        for k in range(abs(right)):
            x = k if right > 0 else width - 1 - k
            at = to + x * 3
            if padding != REFLECT:
                for c in range(3):
                    out[at + c] = edge[c]
            elif 2 * abs(right) < width:  # what is reflected has been written to the same line
                origin = to + 3 * (2 * right - k if right > 0 else width - 1 + k + 2 * right)
                for c in range(3):
                    out[at + c] = out[origin + c]
            else:
                _values(source, start + _reflected(x - right, width) * 3, 3, pattern, kind, out, at)


@_compiled
def _luma(pixels, grey):  # type: ignore[no-untyped-def]
    """reference.luma of uint8 [P·3] into uint8 [P]; returns the sum."""
    total = np.int64(0)
    for i in range(len(grey)):
        red, green, blue = np.int32(pixels[3 * i]), np.int32(pixels[3 * i + 1]), np.int32(pixels[3 * i + 2])
        value = np.uint8(np.int32(19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)
        grey[i] = value
        total += value
    return total


@_compiled
def _blend(pixels, grey, factor):  # type: ignore[no-untyped-def]
    """Every value towards one grey level."""
    factor32, grey32 = np.int32(factor), np.int32(grey)
    for i in range(len(pixels)):
        moved = np.int32(grey32 + (np.int32(factor32 * np.int32(pixels[i] - grey32)) >> UNIT))
        pixels[i] = _clip(moved)


@_compiled
def _saturation(pixels, grey, factor):  # type: ignore[no-untyped-def]
    """Every pixel towards its own grey."""
    factor32 = np.int32(factor)
    for i in range(len(grey)):
        own = np.int32(grey[i])
        for c in range(3):
            moved = np.int32(own + (np.int32(factor32 * np.int32(pixels[3 * i + c] - own)) >> UNIT))
            pixels[3 * i + c] = _clip(moved)


@_compiled
def _hue(pixels, shift, packed):  # type: ignore[no-untyped-def]
    """reference.hue in place; fp32 and fp64 take turns as in Pillow's C.

    `packed`, int32 [P], is scratch: three bytes of a pixel in one number. One loop from bytes to bytes, with types of
    one to eight bytes in it, would stay scalar and take ten times as long; so would loops over many arrays.
    """
    shift32, byte = np.int32(shift), np.int32(255)
    for i in range(len(packed)):
        packed[i] = np.int32(pixels[3 * i]) | np.int32(pixels[3 * i + 1]) << 8 | np.int32(pixels[3 * i + 2]) << 16
    for i in range(len(packed)):
        red, green, blue = packed[i] & byte, np.int32(packed[i] >> 8) & byte, np.int32(packed[i] >> 16)
        r, g, b = np.float32(np.int32(red)), np.float32(np.int32(green)), np.float32(np.int32(blue))
        top, low = max(r, max(g, b)), min(r, min(g, b))
        spread = top - low
        divisor = max(spread, np.float32(1))
        to_red, to_green, to_blue = (top - r) / divisor, (top - g) / divisor, (top - b) / divisor
        near = to_blue if r == top else (to_red if g == top else to_green)
        far = to_green if r == top else (to_blue if g == top else to_red)
        base = 0.0 if r == top else (2.0 if g == top else 4.0)
        sixths = np.float32((base + np.float64(near)) - np.float64(far))
        turns = np.float64(sixths) / 6.0 + 1.0
        turns32 = np.float32(turns - (1.0 if turns >= 1.0 else 0.0))
        angle = np.int32(np.float64(turns32) * 255.0) if spread > np.float32(0) else np.int32(0)
        ratio = np.int32(np.float64(spread / max(top, np.float32(1))) * 255.0)
        packed[i] = np.int32(np.int32(angle + shift32) & byte) | np.int32(ratio << 8) | np.int32(np.int32(top) << 16)
    for i in range(len(packed)):
        angle, ratio, v = packed[i] & byte, np.int32(packed[i] >> 8) & byte, np.int32(packed[i] >> 16)
        sixths64 = np.float64(np.int32(angle)) * 6.0 / 255.0
        sector = np.int32(sixths64)
        rest, part = np.float32(sixths64 - np.float64(sector)), np.float32(np.float64(np.int32(ratio)) / 255.0)
        value = np.float64(v)
        p = np.int32(value * (1.0 - np.float64(part)) + 0.5)
        q = np.int32(value * (1.0 - np.float64(part * rest)) + 0.5)
        t = np.int32(value * (1.0 - np.float64(part) * (1.0 - np.float64(rest))) + 0.5)
        red = v if sector == 0 or sector >= 5 else (q if sector == 1 else (t if sector == 4 else p))
        green = v if sector == 1 or sector == 2 else (t if sector == 0 or sector == 6 else (q if sector == 3 else p))
        blue = v if sector == 3 or sector == 4 else (t if sector == 2 else (q if sector == 5 else p))
        packed[i] = red | np.int32(green << 8) | np.int32(blue << 16)
    for i in range(len(packed)):
        pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2] = packed[i], packed[i] >> 8, packed[i] >> 16


@_compiled
def _autocontrast(pixels):  # type: ignore[no-untyped-def]
    """reference.autocontrast in place."""
    levels = np.empty((3, 256), dtype=np.uint8)
    low0 = low1 = low2 = np.uint8(255)
    high0 = high1 = high2 = np.uint8(0)
    for i in range(len(pixels) // 3):
        red, green, blue = pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2]
        low0, low1, low2 = min(low0, red), min(low1, green), min(low2, blue)
        high0, high1, high2 = max(high0, red), max(high1, green), max(high2, blue)
    lows, highs = (low0, low1, low2), (high0, high1, high2)
    for c in range(3):
        low, high = np.int64(lows[c]), np.int64(highs[c])
        if high > low:
            scale = 255.0 / (high - low)
            offset = -low * scale
            for k in range(low, high + 1):
                levels[c, k] = _clip(np.int32(k * scale + offset))
        else:
            levels[c, low] = low
    for i in range(len(pixels) // 3):
        for c in range(3):
            pixels[3 * i + c] = levels[c, pixels[3 * i + c]]


@_compiled
def _colours(pixels, grey, packed, row, strengths):  # type: ignore[no-untyped-def]
    """Jitter, autocontrast and grayscale of uint8 [P·3] in place."""
    if row[7]:
        for which in _ORDERS[row[8]]:
            if not strengths[which]:
                continue
            if which == 0:
                _blend(pixels, 0, row[9])
            elif which == 1:
                _blend(pixels, (2 * _luma(pixels, grey) + len(grey)) // (2 * len(grey)), row[10])
            elif which == 2:
                _luma(pixels, grey)
                _saturation(pixels, grey, row[11])
            else:
                _hue(pixels, row[12], packed)
    if row[13]:
        _autocontrast(pixels)
    if row[14]:
        _luma(pixels, grey)
        for i in range(len(grey)):
            pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2] = grey[i], grey[i], grey[i]


@_compiled
def _fill(values, box, colour, width):  # type: ignore[no-untyped-def]
    """A box of [H·W·3] in one colour."""
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            for c in range(3):
                values[(y * width + x) * 3 + c] = colour[c]


@_compiled
def _geometry(images, start, row, size, taps, scratch):  # type: ignore[no-untyped-def]
    """Crop and mirror one image: where its uint8 [H·W·3] is then found, an array and a position in it.

    Mirroring comes before the shift, which then goes the other way: the crop does it by writing its columns in reverse.
    """
    flip = row[6] != 0
    if row[2] != size[0] or row[3] != size[1]:
        _resized_crop(images, start, row, flip, size, taps, scratch[2], scratch[3], scratch[0])
    elif flip:
        _mirror(images, start, size, scratch[0])
    else:
        return images, start
    return scratch[0], 0


@_compiled
def augment_range(images, sources, rows, size, taps, padding, fill, strengths, normalization, noise, mixing, kind, out):  # type: ignore[no-untyped-def]
    """Augment the samples of `sources`, normalise, mix each with the one before it, and write them.

    Args:
        images: uint8 [M·H·W·3].
        sources: int64 [N], images to take. Where they are mixed, the first is only a partner: N - 1 come out.
        rows: int32 [N, cpu_draws.COLUMNS].
        size: H, W.
        taps: first and weight of resample.taps for rows, then for columns.
        padding, fill: ZERO or REFLECT; uint8 [3].
        strengths: which of brightness, contrast, saturation and hue are on.
        finish: fp32 [6, 3]: scale, offset, black, white, colours of cutout and of erasing, all but scale normalised.
        noise: fp32 [N, H·W·3], or [0, 0] for none.
        mixing: kind, λ, top, left, bottom, right.
        kind: FP32, BF16 or FP16.
        out: fp32 or uint16 [N or N - 1, H·W·3].
    """
    height, width = size
    line = width * 3
    length = height * line
    scratch = np.empty((4, line * _padded(height)), dtype=np.uint8)
    grey, packed = np.empty(height * width, dtype=np.uint8), np.empty(height * width, dtype=np.int32)
    # Long enough for a line and for _values, so that their loops are the same for every value.
    pattern = np.empty((4, max(line, PERIOD)), dtype=np.float32)
    edge = np.empty(line, dtype=np.uint8)
    for i in range(pattern.shape[1]):
        for k in range(4):
            pattern[k, i] = normalization[k, i % 3]
    for i in range(line):
        edge[i] = fill[i % 3]
    how, weight, top, left, bottom, right = mixing
    # Without noise and mixing the bytes become the output in one step, otherwise fp32 first.
    direct = how == NO_MIX and noise.size == 0
    # By turns a sample's own values and its partner's; the third holds what is mixed of them.
    values = np.empty((3, length), dtype=np.float32)
    edge32, edge_out, colours_out = np.empty(line, np.float32), np.empty(line, out.dtype), np.empty((2, 3), out.dtype)
    _values(edge, 0, line, pattern, FP32, edge32, 0)
    _write(edge32, kind, edge_out)
    for k in range(2):
        _write(normalization[4 + k], kind, colours_out[k])
    for n in range(len(sources)):
        row = rows[n]
        source, begin = _geometry(images, sources[n] * length, row, size, taps, scratch)
        down_by, right_by = row[4], -row[5] if row[6] else row[5]
        if row[7] or row[13] or row[14]:
            _translate(source, begin, down_by, right_by, size, padding, edge, pattern, kind, scratch[1])
            _colours(scratch[1, :length], grey, packed, row, strengths)
            source, begin, down_by, right_by = scratch[1], 0, 0, 0
        if direct:
            _translate(source, begin, down_by, right_by, size, padding, edge_out, pattern, kind, out[n])
            _fill(out[n], row[15:19], colours_out[0], width)
            _fill(out[n], row[19:23], colours_out[1], width)
            continue
        own, partner = values[n & 1], values[1 - (n & 1)]
        _translate(source, begin, down_by, right_by, size, padding, edge32, pattern, FP32, own)
        _fill(own, row[15:19], normalization[4], width)
        _fill(own, row[19:23], normalization[5], width)
        if noise.size:
            for y in range(_U(height)):
                for i in range(_U(line)):
                    at = y * _U(line) + i
                    own[at] = min(max(own[at] + noise[n, at], pattern[2, i]), pattern[3, i])
        if how == NO_MIX:
            _write(own, kind, out[n])
        elif n > 0:
            result = values[2]
            if how == MIXUP:
                rest = np.float32(1) - weight
                for i in range(length):
                    result[i] = own[i] * weight + partner[i] * rest
            else:
                for i in range(length):
                    result[i] = own[i]
                for y in range(top, bottom):
                    at = _U((y * width + left) * 3)
                    for i in range(_U((right - left) * 3)):
                        result[at + i] = partner[at + i]
            _write(result, kind, out[n - 1])
