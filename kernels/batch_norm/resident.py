"""BatchNorm in one kernel a direction, for tensors that fit into the registers of all programs together.

Each program loads one tile, keeps it, and meets the others of its channels in a barrier between sums and output, so
that every value is read once. With one split a channel has all its rows in one program and no barrier is needed: the
form for few rows. More than one split needs a cooperative launch.

PHASE is "all" on a device. Where programs run one after another, as in Triton's interpreter, a barrier would never
open: there the launcher runs "sums" for all programs and then "output" for all programs. 16-bit tiles stay packed
between their uses, which the interpreter, knowing no registers, leaves out.
"""

import triton
import triton.language as tl

from fastres.kernels.batch_norm.device import (
    activate,
    behind_activation,
    channel_terms,
    finish_statistics,
    load_gradient,
    load_packed,
    merge_moments,
    normalise,
    rounded_product,
    split_rows,
    store_bits,
    store_moments,
    store_tile,
    unpack,
    wait_for_all,
)
from fastres.kernels.batch_norm.two_pass import merge_sums


@triton.jit
def tile_moments(tile, within, count, OPAQUE: tl.constexpr):
    """Mean and sum of squared deviations of a packed tile's first `count` rows, in two passes over registers.

    The mean is rounded correctly, which a GPU's plain `/` is not: nothing corrects the deviations for its error later.
    """
    mean = tl.div_rn(tl.sum(unpack(tile, OPAQUE), axis=0, keep_dims=True), count.to(tl.float32))
    distance = tl.where(within, unpack(tile, OPAQUE) - mean, 0.0)
    return mean, tl.sum(rounded_product(distance, distance), axis=0, keep_dims=True)


@triton.jit
def batch_terms(statistics, running, affine, moments, columns, first_column, writes, M, C, eps, momentum):
    """Scale and bias of some channels from their moments; the program that `writes` records the statistics. `running`
    is as `finish_statistics` takes it, `affine` are weight and bias."""
    inside = columns < C
    weight, bias = affine
    scale = 1.0 / tl.sqrt_rn(moments[1] / M + eps)
    if writes:
        finish_statistics(statistics, running, moments, columns, first_column, M, C, eps, momentum)
    if weight is not None:
        scale = scale * tl.load(weight + columns, mask=inside, other=0.0)
    shift = tl.zeros_like(moments[0])
    if bias is not None:
        shift = tl.load(bias + columns, mask=inside, other=0.0)
    return scale, shift


@triton.jit
def resident_forward_kernel(
    x,
    second,
    y,
    bits,
    statistics,
    partials,
    counters,
    x_running_mean,
    x_running_var,
    x_batches,
    x_weight,
    x_bias,
    z_running_mean,
    z_running_var,
    z_batches,
    z_weight,
    z_bias,
    M,
    C,
    rows_per_split,
    splits,
    x_eps,
    z_eps,
    x_momentum,
    z_momentum,
    SECOND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr,
    PHASE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Statistics and output in one kernel; arguments as in `statistics_kernel` and `apply_kernel`.

    Grid (⌈C/BLOCK_C⌉, splits); BLOCK_M is at least rows_per_split. SPLIT: whether there is more than one split.
    """
    first_column = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    columns = first_column + tl.arange(0, BLOCK_C)[None, :]
    row = split * rows_per_split
    rows = row + split_rows(split, rows_per_split, M)
    within = row + tl.arange(0, BLOCK_M)[:, None] < rows

    OPAQUE: tl.constexpr = PHASE == "all"

    tile = load_packed(x, row, rows, columns, C, BLOCK_M)
    if SECOND != "none":
        other = load_packed(second, row, rows, columns, C, BLOCK_M)
    mean, m2 = tile_moments(tile, within, rows - row, OPAQUE)
    if SECOND == "dual":
        z_mean, z_m2 = tile_moments(other, within, rows - row, OPAQUE)
    if SPLIT:
        z_partials = partials + 2 * splits * C
        if PHASE != "output":
            store_moments(partials, split, mean, m2, columns, C)
            if SECOND == "dual":
                store_moments(z_partials, split, z_mean, z_m2, columns, C)
        if PHASE == "all":
            wait_for_all(counters + tl.program_id(0), splits, split == 0)
        if PHASE != "sums":
            mean, m2 = merge_moments(partials, splits, rows_per_split, M, columns, C, BLOCK_S)
            if SECOND == "dual":
                z_mean, z_m2 = merge_moments(z_partials, splits, rows_per_split, M, columns, C, BLOCK_S)

    if PHASE != "sums":
        running, writes = (x_running_mean, x_running_var, x_batches), split == 0
        scale, bias = batch_terms(
            statistics, running, (x_weight, x_bias), (mean, m2), columns, first_column, writes, M, C, x_eps, x_momentum
        )
        out = normalise(unpack(tile, OPAQUE), mean, scale, bias)
        if SECOND == "add":
            out += unpack(other, OPAQUE)
        if SECOND == "dual":
            running, affine, moments = (z_running_mean, z_running_var, z_batches), (z_weight, z_bias), (z_mean, z_m2)
            scale, bias = batch_terms(
                statistics + 2 * C, running, affine, moments, columns, first_column, writes, M, C, z_eps, z_momentum
            )
            out += normalise(unpack(other, OPAQUE), z_mean, scale, bias)
        if bits is not None:
            octets = tl.program_id(0) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)[None, :]
            store_bits(bits, (out <= 0.0) == 0, row, rows, octets, C, BLOCK_M, BLOCK_C)
        store_tile(y, activate(out, ACTIVATION), row, rows, columns, C, BLOCK_M)


@triton.jit
def resident_backward_kernel(
    dy,
    dy2,
    x,
    second,
    bits,
    dx,
    dz,
    g_out,
    sums,
    partials,
    counters,
    statistics,
    x_weight,
    x_bias,
    z_weight,
    z_bias,
    M,
    C,
    rows_per_split,
    splits,
    SECOND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr,
    PHASE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Channel sums and gradients in one kernel, of batch statistics; arguments as in `reduce_kernel` and
    `gradient_kernel`, grid as in `resident_forward_kernel`.
    """
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    octets = tl.program_id(0) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)[None, :]
    inside = columns < C
    split = tl.program_id(1)
    row = split * rows_per_split
    rows = row + split_rows(split, rows_per_split, M)
    SUMS: tl.constexpr = 3 if SECOND == "dual" else 2
    OPAQUE: tl.constexpr = PHASE == "all"

    g = load_gradient(dy, dy2, row, rows, columns, C, BLOCK_M)
    tile = load_packed(x, row, rows, columns, C, BLOCK_M)
    x_terms = channel_terms(statistics, None, None, x_weight, x_bias, columns, C, 0.0, False)
    mean, rstd, scale, _ = x_terms
    other, z_terms = None, None
    if SECOND == "dual":
        other = load_packed(second, row, rows, columns, C, BLOCK_M)
        z_terms = channel_terms(statistics + 2 * C, None, None, z_weight, z_bias, columns, C, 0.0, False)
        z_mean, z_rstd, z_scale, _ = z_terms
    g = behind_activation(
        g, tile, x_terms, other, z_terms, second, bits, row, rows, columns, octets, C,
        SECOND, ACTIVATION, BLOCK_M, BLOCK_C, OPAQUE,
    )  # fmt: skip
    g = tl.where(row + tl.arange(0, BLOCK_M)[:, None] < rows, g, 0.0)
    total_g = tl.sum(g, axis=0, keep_dims=True)
    total_x = tl.sum(rounded_product(g, unpack(tile, OPAQUE) - mean), axis=0, keep_dims=True)
    if SECOND == "dual":
        total_z = tl.sum(rounded_product(g, unpack(other, OPAQUE) - z_mean), axis=0, keep_dims=True)
    if g_out is not None:
        rounded = g.to(g_out.dtype.element_ty)  # as it is written; in two passes dx comes from the written one too

    if SPLIT:
        if PHASE != "output":
            at = partials + SUMS * split * C + columns
            tl.store(at, total_g, mask=inside)
            tl.store(at + C, total_x, mask=inside)
            if SECOND == "dual":
                tl.store(at + 2 * C, total_z, mask=inside)
        if PHASE == "all":
            wait_for_all(counters + tl.program_id(0), splits, split == 0)
        if PHASE != "sums":
            total_g, total_x, merged_z = merge_sums(partials, splits, columns, C, SUMS, BLOCK_S)
            if SECOND == "dual":
                total_z = merged_z

    if PHASE != "sums":
        if split == 0:
            tl.store(sums + columns, total_g, mask=inside)
            tl.store(sums + C + columns, total_x * rstd, mask=inside)
            if SECOND == "dual":
                tl.store(sums + 2 * C + columns, total_g, mask=inside)
                tl.store(sums + 3 * C + columns, total_z * z_rstd, mask=inside)
        if g_out is not None:
            g = unpack(rounded, OPAQUE)
            store_tile(g_out, g, row, rows, columns, C, BLOCK_M)
        centred = g - total_g / M
        if dx is not None:
            gradient = scale * (centred - (unpack(tile, OPAQUE) - mean) * (rstd * rstd * total_x / M))
            store_tile(dx, gradient, row, rows, columns, C, BLOCK_M)
        if dz is not None:
            gradient = z_scale * (centred - (unpack(other, OPAQUE) - z_mean) * (z_rstd * z_rstd * total_z / M))
            store_tile(dz, gradient, row, rows, columns, C, BLOCK_M)
