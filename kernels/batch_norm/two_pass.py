"""BatchNorm in two kernels a direction, for tensors of any size.

Forward: `statistics_kernel` reads the input once, `apply_kernel` reads it again and writes the output. Backward:
`reduce_kernel` forms the channel sums and, where the block's skip needs it, writes the gradient behind the activation;
`gradient_kernel` writes the input's gradient. The second kernel walks through the rows in reverse, so that it first
reads what the first kernel left in the second-level cache.

SECOND says what is added before the activation: "none", "add" (a residual, or its sign bits in the backward pass of
relu) or "dual" (another tensor with a BatchNorm of its own).
"""

import triton
import triton.language as tl

from fastres.kernels.batch_norm.device import (
    activate,
    behind_activation,
    channel_terms,
    finish_statistics,
    is_last,
    load_gradient,
    load_tile,
    merge_moments,
    normalise,
    split_rows,
    store_bits,
    store_moments,
    store_tile,
)


@triton.jit
def split_moments(x, row, rows, columns, C, BLOCK_M: tl.constexpr):
    """Mean and sum of squared deviations of the rows from `row` to `rows`.

    Sums of differences to the mean of the first tile: sums of squares of the values themselves would cancel.
    """
    inside = tl.arange(0, BLOCK_M)[:, None]
    tile = load_tile(x, row, rows, columns, C, BLOCK_M)
    shift = tl.sum(tile, axis=0, keep_dims=True) / tl.minimum(BLOCK_M, rows - row)
    distance = tl.where(row + inside < rows, tile - shift, 0.0)
    total = distance
    squares = distance * distance
    for at in range(row + BLOCK_M, rows, BLOCK_M):
        distance = tl.where(at + inside < rows, load_tile(x, at, rows, columns, C, BLOCK_M) - shift, 0.0)
        total += distance
        squares += distance * distance
    offset = tl.sum(total, axis=0, keep_dims=True) / (rows - row)
    m2 = tl.sum(squares, axis=0, keep_dims=True) - offset * offset * (rows - row)
    return shift + offset, tl.where(m2 < 0.0, 0.0, m2)


@triton.jit
def statistics_kernel(
    x,
    z,
    partials,
    counters,
    statistics,
    x_running_mean,
    x_running_var,
    x_batches,
    z_running_mean,
    z_running_var,
    z_batches,
    M,
    C,
    rows_per_split,
    splits,
    x_eps,
    z_eps,
    x_momentum,
    z_momentum,
    DUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Mean and 1/deviation of each channel into `statistics` [2 or 4, C]; running statistics move. Reads x, z once.

    Grid (⌈C/BLOCK_C⌉, splits). `partials` is [1 or 2, splits, 2, C]; `counters` has one zero for each column of
    programs. The last program of a column merges.
    """
    first_column = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    columns = first_column + tl.arange(0, BLOCK_C)[None, :]
    row = split * rows_per_split
    rows = row + split_rows(split, rows_per_split, M)
    mean, m2 = split_moments(x, row, rows, columns, C, BLOCK_M)
    store_moments(partials, split, mean, m2, columns, C)
    if DUAL:
        mean, m2 = split_moments(z, row, rows, columns, C, BLOCK_M)
        store_moments(partials + 2 * splits * C, split, mean, m2, columns, C)
    if is_last(counters + tl.program_id(0), splits):
        moments = merge_moments(partials, splits, rows_per_split, M, columns, C, BLOCK_S)
        running = (x_running_mean, x_running_var, x_batches)
        finish_statistics(statistics, running, moments, columns, first_column, M, C, x_eps, x_momentum)
        if DUAL:
            moments = merge_moments(partials + 2 * splits * C, splits, rows_per_split, M, columns, C, BLOCK_S)
            running = (z_running_mean, z_running_var, z_batches)
            finish_statistics(statistics + 2 * C, running, moments, columns, first_column, M, C, z_eps, z_momentum)


@triton.jit
def tile_from_the_end(C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """First row and block of columns of this program's tile: the last rows first, a row's blocks one after another.

    The grid, (⌈C/BLOCK_C⌉·⌈M/BLOCK_M⌉,), has one dimension: a GPU's others end at 65,535, which tiles of 32 rows exceed
    at two million rows, the first layer of a ResNet on 168 images of 224 × 224.
    """
    blocks = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    return (tl.num_programs(0) - 1 - program) // blocks * BLOCK_M, program % blocks


@triton.jit
def apply_kernel(
    x,
    second,
    y,
    bits,
    statistics,
    x_running_mean,
    x_running_var,
    x_weight,
    x_bias,
    z_running_mean,
    z_running_var,
    z_weight,
    z_bias,
    M,
    C,
    x_eps,
    z_eps,
    SECOND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FROM_RUNNING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = activation(BN(x) + second). Reads x and `second`, writes y, and the sign bits where `bits` is given.

    Grid as in `tile_from_the_end`.
    """
    row, column = tile_from_the_end(C, BLOCK_M, BLOCK_C)
    columns = column * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    tile = load_tile(x, row, M, columns, C, BLOCK_M, LAST=True)
    mean, _, scale, bias = channel_terms(
        statistics, x_running_mean, x_running_var, x_weight, x_bias, columns, C, x_eps, FROM_RUNNING
    )
    out = normalise(tile, mean, scale, bias)
    if SECOND == "add":
        out += load_tile(second, row, M, columns, C, BLOCK_M, LAST=True)
    if SECOND == "dual":
        mean, _, scale, bias = channel_terms(
            statistics + 2 * C, z_running_mean, z_running_var, z_weight, z_bias, columns, C, z_eps, FROM_RUNNING
        )
        out += normalise(load_tile(second, row, M, columns, C, BLOCK_M, LAST=True), mean, scale, bias)
    if bits is not None:
        octets = column * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)[None, :]
        store_bits(bits, (out <= 0.0) == 0, row, M, octets, C, BLOCK_M, BLOCK_C)
    store_tile(y, activate(out, ACTIVATION), row, M, columns, C, BLOCK_M)


@triton.jit
def reduce_kernel(
    dy,
    dy2,
    x,
    second,
    bits,
    g_out,
    sums,
    partials,
    counters,
    statistics,
    x_running_mean,
    x_running_var,
    x_weight,
    x_bias,
    z_running_mean,
    z_running_var,
    z_weight,
    z_bias,
    M,
    C,
    rows_per_split,
    splits,
    x_eps,
    z_eps,
    SECOND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FROM_RUNNING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """With g the gradient behind the activation: Σg, Σg·x̂ (and for z: Σg, Σg·ẑ) a channel into `sums` [2 or 4, C].

    dy2, where given, is added to dy: the gradients of a block's two readers. g goes to `g_out` where that is given.
    Grid and `counters` as in `statistics_kernel`; `partials` is [splits, 2 or 3, C].
    """
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    octets = tl.program_id(0) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)[None, :]
    split = tl.program_id(1)
    row = split * rows_per_split
    rows = row + split_rows(split, rows_per_split, M)
    SUMS: tl.constexpr = 3 if SECOND == "dual" else 2

    x_terms = channel_terms(
        statistics, x_running_mean, x_running_var, x_weight, x_bias, columns, C, x_eps, FROM_RUNNING
    )
    z_terms = None
    if SECOND == "dual":
        z_terms = channel_terms(
            statistics + 2 * C, z_running_mean, z_running_var, z_weight, z_bias, columns, C, z_eps, FROM_RUNNING
        )
        z_mean, z_rstd, _, _ = z_terms
    of_g = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    of_x = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    of_z = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for at in range(row, rows, BLOCK_M):
        g = load_gradient(dy, dy2, at, rows, columns, C, BLOCK_M)
        tile = load_tile(x, at, rows, columns, C, BLOCK_M)
        other = None
        if SECOND == "dual":
            other = load_tile(second, at, rows, columns, C, BLOCK_M)
        g = behind_activation(
            g, tile, x_terms, other, z_terms, second, bits, at, rows, columns, octets, C,
            SECOND, ACTIVATION, BLOCK_M, BLOCK_C,
        )  # fmt: skip
        if g_out is not None:
            store_tile(g_out, g, at, rows, columns, C, BLOCK_M)
        # Beyond the end the derivative of a zero input may be NaN where the channel's own values are fine.
        g = tl.where(at + tl.arange(0, BLOCK_M)[:, None] < rows, g, 0.0)
        of_g += g
        of_x += g * (tile - x_terms[0])
        if SECOND == "dual":
            of_z += g * (other - z_mean)

    inside = columns < C
    at_split = partials + SUMS * split * C + columns
    tl.store(at_split, tl.sum(of_g, axis=0, keep_dims=True), mask=inside)
    tl.store(at_split + C, tl.sum(of_x, axis=0, keep_dims=True), mask=inside)
    if SECOND == "dual":
        tl.store(at_split + 2 * C, tl.sum(of_z, axis=0, keep_dims=True), mask=inside)
    if is_last(counters + tl.program_id(0), splits):
        total_g, total_x, total_z = merge_sums(partials, splits, columns, C, SUMS, BLOCK_S)
        tl.store(sums + columns, total_g, mask=inside)
        tl.store(sums + C + columns, total_x * x_terms[1], mask=inside)
        if SECOND == "dual":
            tl.store(sums + 2 * C + columns, total_g, mask=inside)
            tl.store(sums + 3 * C + columns, total_z * z_rstd, mask=inside)


@triton.jit
def merge_sums(partials, splits, columns, C, SUMS: tl.constexpr, BLOCK_S: tl.constexpr):
    """The sums of all splits, always in the same order; see `merge_moments` for the cache."""
    of_g = tl.zeros([BLOCK_S, columns.shape[1]], tl.float32)
    of_x = tl.zeros([BLOCK_S, columns.shape[1]], tl.float32)
    of_z = tl.zeros([BLOCK_S, columns.shape[1]], tl.float32)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)[:, None]
        mask = (split < splits) & (columns < C)
        at = partials + SUMS * split * C + columns
        of_g += tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        of_x += tl.load(at + C, mask=mask, other=0.0, cache_modifier=".cg")
        if SUMS == 3:
            of_z += tl.load(at + 2 * C, mask=mask, other=0.0, cache_modifier=".cg")
    return (
        tl.sum(of_g, axis=0, keep_dims=True),
        tl.sum(of_x, axis=0, keep_dims=True),
        tl.sum(of_z, axis=0, keep_dims=True),
    )


@triton.jit
def gradient_kernel(
    dy,
    dy2,
    x,
    second,
    bits,
    dx,
    dz,
    g_out,
    sums,
    statistics,
    x_running_mean,
    x_running_var,
    x_weight,
    x_bias,
    z_running_mean,
    z_running_var,
    z_weight,
    z_bias,
    M,
    C,
    x_eps,
    z_eps,
    SECOND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FROM_RUNNING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dx = scale·(g − Σg/M − x̂·Σg·x̂/M), likewise dz; with running statistics, which are constants, dx = scale·g.

    Grid as in `tile_from_the_end`. Outputs that are not given are not written. Where `reduce_kernel` has already
    written g, this kernel gets it as dy, with SECOND and ACTIVATION "none".
    """
    row, column = tile_from_the_end(C, BLOCK_M, BLOCK_C)
    columns = column * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    octets = column * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)[None, :]
    g = load_gradient(dy, dy2, row, M, columns, C, BLOCK_M, LAST=True)
    x_terms = channel_terms(
        statistics, x_running_mean, x_running_var, x_weight, x_bias, columns, C, x_eps, FROM_RUNNING
    )
    tile = load_tile(x, row, M, columns, C, BLOCK_M, LAST=True)
    other, z_terms = None, None
    if SECOND == "dual":
        z_terms = channel_terms(
            statistics + 2 * C, z_running_mean, z_running_var, z_weight, z_bias, columns, C, z_eps, FROM_RUNNING
        )
        other = load_tile(second, row, M, columns, C, BLOCK_M, LAST=True)
    g = behind_activation(
        g, tile, x_terms, other, z_terms, second, bits, row, M, columns, octets, C,
        SECOND, ACTIVATION, BLOCK_M, BLOCK_C, LAST=True,
    )  # fmt: skip
    if g_out is not None:
        store_tile(g_out, g, row, M, columns, C, BLOCK_M)
    if dx is not None:
        gradient = input_gradient(g, tile, x_terms, sums, columns, C, M, FROM_RUNNING)
        store_tile(dx, gradient, row, M, columns, C, BLOCK_M)
    if dz is not None:
        gradient = input_gradient(g, other, z_terms, sums + 2 * C, columns, C, M, FROM_RUNNING)
        store_tile(dz, gradient, row, M, columns, C, BLOCK_M)


@triton.jit
def input_gradient(g, x, terms, sums, columns, C, M, FROM_RUNNING: tl.constexpr):
    """The gradient of a BatchNorm's input from that of its output (Ioffe and Szegedy 2015, section 3)."""
    mean, rstd, scale, _ = terms
    if FROM_RUNNING:
        return scale * g
    inside = columns < C
    of_g = tl.load(sums + columns, mask=inside, other=0.0) / M
    of_x = tl.load(sums + C + columns, mask=inside, other=0.0) / M
    return scale * (g - of_g - (x - mean) * (rstd * of_x))
