# ruff: noqa: SIM102 - Triton decides an outer `if` when it compiles and an inner one when it runs
"""One pass from a uint8 store to a normalised, augmented and mixed batch.

*Direct*: shift, flip, boxes, noise and normalisation take each value of the output from one of the input. A program
makes an image, and each thread writes 16 bytes at a time. *Tiles*: with a resized crop or colours, an image of up to
4096 pixels (sides rounded up to powers of two) stays in registers from the first load to the last operation, packed
into one int32 a pixel, and goes through shared memory into the order of the output. Larger images are made some rows at
a time, after a kernel that measures mean grey and the least and greatest levels where they are drawn for. One launch,
or two.

The resized crop of a whole image costs, a pixel: across, 4 taps of 3 bytes and 12 multiply-adds; down, 4 words from
shared memory, where the rows wait that were enlarged across, and 12 multiply-adds. Tiles of larger images form all 16
taps anew, 48 loads and 60 multiply-adds, since they lack their neighbours' rows; either way memory is read once.

When mixing, a program makes its partner's image too, with the partner's own draws, and writes the mixture.
"""

import triton
import triton.language as tl

from fastres.kernels.augment.colour import greatest, jitter, least, luma, mean_grey, sequence_of, stretch
from fastres.kernels.augment.draws import (
    LEVELS,
    MIXUP,
    NOISE,
    NORMAL_TABLE,
    draw_cutout,
    draw_erase,
    draw_geometry,
    draw_mixing,
    draw_sample,
    level,
    random_bits,
)
from fastres.kernels.augment.geometry import placed, source_of

OPTIONS = {"enable_fp_fusion": False}
"""For the compiler: products and sums are rounded one by one, as on the CPU."""


@triton.jit
def in_image(first, ROWS: tl.constexpr, COLUMNS: tl.constexpr, POLICY: tl.constexpr):
    """Which of a tile's pixels belong to the image: [ROWS·COLUMNS]."""
    pixel = tl.arange(0, ROWS * COLUMNS)
    return (first + pixel // COLUMNS < POLICY.height) & (pixel % COLUMNS < POLICY.width)


@triton.jit
def coloured(
    tile, first, colour, statistics, ROWS: tl.constexpr, COLUMNS: tl.constexpr, POLICY: tl.constexpr
):  # fmt: skip
    """All colour operations on a tile, packed. `statistics` points to what `measure_kernel` found; None: the tile is
    the whole image, whose statistics are formed where they are needed."""
    red, green, blue = tile
    if POLICY.coloured:
        inside = in_image(first, ROWS, COLUMNS, POLICY)
        if POLICY.jitter > 0:
            if colour[0] != 0:
                mean = None if statistics is None else tl.load(statistics)
                sequence = sequence_of(colour[1])
                red, green, blue = jitter((red, green, blue), inside, colour[2:6], sequence, 4, mean, POLICY)
        if POLICY.autocontrast > 0:
            if colour[6] != 0:
                if statistics is None:
                    red = stretch(red, least(red, inside), greatest(red, inside))
                    green = stretch(green, least(green, inside), greatest(green, inside))
                    blue = stretch(blue, least(blue, inside), greatest(blue, inside))
                else:
                    red = stretch(red, tl.load(statistics + 1), tl.load(statistics + 4))
                    green = stretch(green, tl.load(statistics + 2), tl.load(statistics + 5))
                    blue = stretch(blue, tl.load(statistics + 3), tl.load(statistics + 6))
        if POLICY.grayscale > 0:
            grey = luma(red, green, blue)
            red = tl.where(colour[7] != 0, grey, red)
            green = tl.where(colour[7] != 0, grey, green)
            blue = tl.where(colour[7] != 0, grey, blue)
    return red | (green << 8) | (blue << 16)


@triton.jit
def in_box(y, x, box):
    """Whether pixels lie in top … bottom - 1, left … right - 1."""
    return (y >= box[0]) & (y < box[2]) & (x >= box[1]) & (x < box[3])


@triton.jit
def load_factors(factors):
    """fp32 [4, 3] as tuples of three scalars: scale, offset, strength of the noise, erased colour. What is not used
    is not loaded; before the loop, since after each store the compiler would load again."""
    scale = (tl.load(factors), tl.load(factors + 1), tl.load(factors + 2))
    offset = (tl.load(factors + 3), tl.load(factors + 4), tl.load(factors + 5))
    noise = (tl.load(factors + 6), tl.load(factors + 7), tl.load(factors + 8))
    erased = (tl.load(factors + 9), tl.load(factors + 10), tl.load(factors + 11))
    return scale, offset, noise, erased


@triton.jit
def of_channel(values, channel):
    """The one of three scalars that belongs to each channel."""
    return tl.where(channel == 0, values[0], tl.where(channel == 1, values[1], values[2]))


@triton.jit
def normalised(grey, y, x, channel, seed, index, epoch, tables, factors, POLICY: tl.constexpr):
    """Values from levels, with the image's boxes and noise; `factors` as loaded.

    A product, rounded, and a sum, rounded, as PyTorch does it and as the CPU's tables have it.
    """
    scale = of_channel(factors[0], channel)
    offset = of_channel(factors[1], channel)
    value = grey.to(tl.float32) * scale + offset
    if POLICY.cutout > 0:
        value = tl.where(in_box(y, x, draw_cutout(seed, index, epoch, POLICY)), 0.0, value)
    if POLICY.erase > 0:
        box = draw_erase(tables, seed, index, epoch, POLICY)
        value = tl.where(in_box(y, x, box), of_channel(factors[3], channel), value)
    if POLICY.noise:
        red, green, blue, _ = random_bits(seed, index, epoch, NOISE, y * POLICY.width + x)
        word = tl.where(channel == 0, red, tl.where(channel == 1, green, blue))
        normal = tl.load(tables + NORMAL_TABLE * LEVELS + level(word))
        value += normal * of_channel(factors[2], channel)
        value = tl.minimum(tl.maximum(value, offset), 255.0 * scale + offset)
    return value


@triton.jit
def mixed(own, other, y, x, kind, weight, box):
    """λ·own + (1 - λ)·other for MixUp, the other within the box for CutMix."""
    blended = own * weight + other * (1.0 - weight)
    return tl.where(kind == MIXUP, blended, tl.where(in_box(y, x, box), other, own))


@triton.jit
def element(position, first, ROWS: tl.constexpr, POLICY: tl.constexpr):
    """Of the values of some rows in the order in which they are written: row, column, channel, offset in the output."""
    if POLICY.channels_last:
        channel = position % 3
        pixel = position // 3
        target = 3 * POLICY.width * first + position
    else:
        rows = tl.minimum(POLICY.height - first, ROWS)
        channel = position // (rows * POLICY.width)
        pixel = position - channel * (rows * POLICY.width)
        target = channel * (POLICY.height * POLICY.width) + POLICY.width * first + pixel
    return first + pixel // POLICY.width, pixel % POLICY.width, channel, target


@triton.jit
def octets(start, BLOCK: tl.constexpr, POLICY: tl.constexpr):
    """Of BLOCK values in the order of the output, as [BLOCK/8, 8], eight of one row of the image in each thread: row
    and column of the first one's pixel, [BLOCK/8, 1]; channel, and how many pixels further it lies (0 … 3).

    The second axis is a constant for each of a thread's registers: a division by 3, and all that concerns rows, are
    done once for eight values.
    """
    head = start + 8 * tl.arange(0, BLOCK // 8)[:, None]
    value = tl.arange(0, 8)[None, :]
    pixel = head // 3
    channel = (head - 3 * pixel) + value % 3
    carried = channel >= 3
    channel = tl.where(carried, channel - 3, channel)
    y = tl.minimum(pixel // POLICY.width, POLICY.height - 1)
    return y, pixel % POLICY.width, channel, value // 3 + carried.to(tl.int32)


@triton.jit
def octet_sources(y, x, further, placement, POLICY: tl.constexpr):
    """Offsets in the image's memory of `octets`' pixels, and which of them lie in it: four pixels for eight values."""
    row, column, inside = source_of(y, x, placement, POLICY)
    offset = row * (3 * POLICY.width) + 3 * column
    offsets = offset
    insides = inside
    for pixel in tl.static_range(1, 4):
        row, column, inside = source_of(y, tl.minimum(x + pixel, POLICY.width - 1), placement, POLICY)
        offset = row * (3 * POLICY.width) + 3 * column
        offsets = tl.where(further >= pixel, offset, offsets)
        insides = tl.where(further >= pixel, inside, insides)
    return offsets, insides


@triton.jit
def direct_values(image, offset, inside, y, x, channel, seed, index, epoch, tables, factors, POLICY: tl.constexpr):
    """Values of the direct route."""
    grey = tl.load(image + (offset + channel)).to(tl.int32)
    if POLICY.translate > 0 and POLICY.padding != "reflect":
        grey = tl.where(inside, grey, (POLICY.fill >> (8 * channel)) & 255 if POLICY.fill else 0)
    return normalised(grey, y, x, channel, seed, index, epoch, tables, factors, POLICY)


@triton.jit
def unpacked(packed, pixel, y, x, channel, seed, index, epoch, tables, factors, POLICY: tl.constexpr):
    """Values of packed pixels, at some places `pixel` of their tile, (y, x) in the image."""
    grey = (tl.gather(packed, pixel, 0) >> (8 * tl.minimum(channel, 2))) & 255
    return normalised(grey, y, x, channel, seed, index, epoch, tables, factors, POLICY)


@triton.jit
def located(images, rows, indices, sample, POLICY: tl.constexpr):
    """Pointer to a sample's image, and its dataset index."""
    row = sample.to(tl.int64)
    if rows is not None:
        row = tl.load(rows + sample).to(tl.int64)
    return images + row * (POLICY.height * POLICY.width * 3), tl.load(indices + sample)


@triton.jit
def read(number):
    """The value of an integer, or what a pointer to one points to."""
    if number.dtype.is_ptr():
        number = tl.load(number)
    return number


@triton.jit
def begin_mixing(labels, partners, weights, tables, sample, seed, epoch, step, POLICY: tl.constexpr):
    """Draw the batch's mixing and write its labels: kind, weight, box, and which sample is mixed in, without mixing
    the sample itself."""
    kind, weight, top, left, bottom, right = draw_mixing(tables, seed, epoch, read(step), POLICY)
    previous = tl.where(sample == 0, tl.num_programs(0), sample) - 1
    previous = tl.where(kind == 0, sample, previous)
    if labels is not None:
        tl.store(partners + sample, tl.load(labels + previous))
    tl.store(weights, weight, mask=sample == 0)
    return kind, weight, (top, left, bottom, right), previous


@triton.jit(do_not_specialize=["seed", "epoch", "step"])
def direct_kernel(
    images, rows, indices, out, labels, partners, weights, tables, factors, seed, epoch, step,
    POLICY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Augment and mix a batch where each value comes from one value; grid (B,). BLOCK values at a time.

    `images` is uint8 [M, H, W, 3]; `rows` [B] of it, or all for None, are those of the dataset's `indices` [B]; `out`
    is [B, H, W, 3], or [B, 3, H, W] where the policy is not channels-last. `labels` and `partners` are [B] or None;
    `weights` is [1], None where the policy does not mix. `tables`, `factors`: see augment_draws.TABLE_ROWS and
    `load_factors`. `seed`, `epoch` and `step` are integers or pointers to one: a captured launch then follows what is
    written there.
    """
    sample = tl.program_id(0)
    seed, epoch = read(seed), read(epoch)
    VALUES: tl.constexpr = 3 * POLICY.height * POLICY.width
    out += sample.to(tl.int64) * VALUES
    factors = load_factors(factors)
    image, index = located(images, rows, indices, sample, POLICY)
    placement = draw_geometry(seed, index, epoch, POLICY)
    if POLICY.mixes:
        kind, weight, area, previous = begin_mixing(
            labels, partners, weights, tables, sample, seed, epoch, step, POLICY
        )
        other_image, other_index = located(images, rows, indices, previous, POLICY)
        other_placement = draw_geometry(seed, other_index, epoch, POLICY)
    for start in range(0, VALUES, BLOCK):
        if POLICY.octets:
            position = start + 8 * tl.arange(0, BLOCK // 8)[:, None] + tl.arange(0, 8)[None, :]
            y, x, channel, further = octets(start, BLOCK, POLICY)
            offset, inside = octet_sources(y, x, further, placement, POLICY)
            if POLICY.mixes:
                other_offset, other_inside = octet_sources(y, x, further, other_placement, POLICY)
            x += further
        else:
            position = start + tl.arange(0, BLOCK)
            y, x, channel, _ = element(tl.minimum(position, VALUES - 1), 0, POLICY.height, POLICY)
            row, column, inside = source_of(y, x, placement, POLICY)
            offset = (row * POLICY.width + column) * 3
            if POLICY.mixes:
                row, column, other_inside = source_of(y, x, other_placement, POLICY)
                other_offset = (row * POLICY.width + column) * 3
        value = direct_values(image, offset, inside, y, x, channel, seed, index, epoch, tables, factors, POLICY)
        if POLICY.mixes:
            if kind != 0:
                other = direct_values(
                    other_image, other_offset, other_inside, y, x, channel, seed, other_index, epoch, tables, factors,
                    POLICY,
                )  # fmt: skip
                value = mixed(value, other, y, x, kind, weight, area)
        tl.store(out + position, value.to(out.dtype.element_ty), mask=position < VALUES)


@triton.jit(do_not_specialize=["seed", "epoch", "step"])
def tile_kernel(
    images, rows, indices, out, labels, partners, weights, taps_across, taps_down, statistics, tables, factors, seed,
    epoch, step, POLICY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Augment and mix a batch; grid (B, ⌈H/ROWS⌉). A tile is ROWS rows, padded to COLUMNS pixels, both powers of two.

    Arguments as for `direct_kernel`, and `taps_across`, `taps_down`: int32 [S + 1, S, taps + 1], first pixel and
    weights for each side of a crop and each position. `statistics`: int32 [B, 7] of `measure_kernel`, None where a tile
    is the image.
    """
    sample = tl.program_id(0)
    first = tl.program_id(1) * ROWS
    seed, epoch = read(seed), read(epoch)
    SIZE: tl.constexpr = ROWS * COLUMNS
    WHOLE: tl.constexpr = POLICY.height <= ROWS
    out += sample.to(tl.int64) * (3 * POLICY.height * POLICY.width)
    # Two tensors: of two names for one, Triton's compiler takes the loop below to leave `other` as it was before.
    own = tl.zeros([SIZE], tl.int32)
    other = tl.zeros([SIZE], tl.int32)
    kind = 0
    weight = 1.0
    area = (0, 0, 0, 0)
    previous = sample
    if POLICY.mixes:
        kind, weight, area, previous = begin_mixing(
            labels, partners, weights, tables, sample, seed, epoch, step, POLICY
        )
    # The partner first, then the sample itself: one loop, so that the machine code of an image is there once.
    for turn in range(tl.where(kind == 0, 1, 0), 2):
        which = tl.where(turn == 0, previous, sample)
        image, index = located(images, rows, indices, which, POLICY)
        placement, box, colour = draw_sample(tables, seed, index, epoch, POLICY)
        other = own
        tile = placed(image, taps_across, taps_down, box, placement, first, ROWS, COLUMNS, POLICY, WHOLE)
        measured = None if statistics is None else statistics + 7 * which
        own = coloured(tile, first, colour, measured, ROWS, COLUMNS, POLICY)

    factors = load_factors(factors)
    index = tl.load(indices + sample)
    other_index = tl.load(indices + previous)
    values = 3 * POLICY.width * tl.minimum(POLICY.height - first, ROWS)
    for part in range(3):
        position = part * SIZE + tl.arange(0, SIZE)
        y, x, channel, target = element(position, first, ROWS, POLICY)
        pixel = tl.minimum((y - first) * COLUMNS + x, SIZE - 1)
        value = unpacked(own, pixel, y, x, channel, seed, index, epoch, tables, factors, POLICY)
        if POLICY.mixes:
            if kind != 0:
                partner = unpacked(other, pixel, y, x, channel, seed, other_index, epoch, tables, factors, POLICY)
                value = mixed(value, partner, y, x, kind, weight, area)
        tl.store(out + target, value.to(out.dtype.element_ty), mask=position < values)


@triton.jit(do_not_specialize=["seed", "epoch"])
def measure_kernel(
    images, rows, indices, taps_across, taps_down, statistics, tables, seed, epoch,
    POLICY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The statistics of large images, before `tile_kernel`; grid (B,), arguments as there.

    Into `statistics` [B, 7]: mean grey before contrast, least and greatest levels before autocontrast, of red, green
    and blue. What a sample's draws do not ask for is not measured.
    """
    sample = tl.program_id(0)
    seed, epoch = read(seed), read(epoch)
    image, index = located(images, rows, indices, sample, POLICY)
    placement, box, colour = draw_sample(tables, seed, index, epoch, POLICY)
    sequence = sequence_of(colour[1])
    before = 0
    for step in tl.static_range(1, 4):
        before = tl.where(((sequence >> (4 * step)) & 15) == 1, step, before)
    mean = 0
    low_red, low_green, low_blue = 255, 255, 255
    high_red, high_green, high_blue = 0, 0, 0
    total = 0
    # The mean first, then the levels, which may depend on it; the machine code of a tile is there once.
    for turn in range(2):
        wanted = tl.where(turn == 0, colour[0], colour[6]) != 0
        steps = tl.where(turn == 0, before, tl.where(colour[0] != 0, 4, 0))
        for first in range(0, tl.where(wanted, POLICY.height, 0), ROWS):
            inside = in_image(first, ROWS, COLUMNS, POLICY)
            tile = placed(image, taps_across, taps_down, box, placement, first, ROWS, COLUMNS, POLICY, False)
            red, green, blue = jitter(tile, inside, colour[2:6], sequence, steps, mean, POLICY)
            total += tl.sum(tl.where(inside, luma(red, green, blue), 0), axis=0)
            low_red = tl.minimum(low_red, least(red, inside))
            low_green = tl.minimum(low_green, least(green, inside))
            low_blue = tl.minimum(low_blue, least(blue, inside))
            high_red = tl.maximum(high_red, greatest(red, inside))
            high_green = tl.maximum(high_green, greatest(green, inside))
            high_blue = tl.maximum(high_blue, greatest(blue, inside))
        if turn == 0:
            mean = mean_grey(total, POLICY)
            low_red, low_green, low_blue = 255, 255, 255
            high_red, high_green, high_blue = 0, 0, 0
    statistics += 7 * sample
    tl.store(statistics, mean)
    tl.store(statistics + 1, low_red)
    tl.store(statistics + 2, low_green)
    tl.store(statistics + 3, low_blue)
    tl.store(statistics + 4, high_red)
    tl.store(statistics + 5, high_green)
    tl.store(statistics + 6, high_blue)
