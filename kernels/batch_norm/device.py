"""What the BatchNorm kernels share on the device: tiles, moments, activations, sign bits, tickets and the barrier.

A channels-last tensor [N, C, H, W] is read as a matrix of M = N·H·W rows and C columns, columns contiguous. A tile is
BLOCK_M rows of BLOCK_C columns. All arithmetic is in fp32.
"""

import triton
import triton.language as tl


@triton.jit
def load_packed(pointer, row, rows, columns, C, BLOCK_M: tl.constexpr, LAST: tl.constexpr = False):
    """Rows `row` to `row + BLOCK_M` of some columns, zero from row `rows` and column C on, in the tensor's own type.

    LAST: no kernel reads them again soon, so that they are the first to leave the cache. The offset of the first row is
    a 64-bit scalar: tensors may have more than 2³¹ elements, a tile never has.
    """
    inside = tl.arange(0, BLOCK_M)[:, None]
    mask = (row + inside < rows) & (columns < C)
    base = pointer + tl.cast(row, tl.int64) * C
    policy: tl.constexpr = "evict_first" if LAST else ""
    return tl.load(base + (inside * C + columns), mask=mask, other=0.0, eviction_policy=policy)


@triton.jit
def load_tile(pointer, row, rows, columns, C, BLOCK_M: tl.constexpr, LAST: tl.constexpr = False):
    """`load_packed` in fp32."""
    return load_packed(pointer, row, rows, columns, C, BLOCK_M, LAST).to(tl.float32)


@triton.jit
def unpack(tile, OPAQUE: tl.constexpr):
    """A packed tile in fp32. OPAQUE hides from the compiler that it has unpacked this tile before.

    Otherwise it would keep the fp32 values from one use to the next, twice the registers that 16-bit values need, and
    spill.
    """
    if OPAQUE and tile.dtype.primitive_bitwidth == 16:
        tile = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tile], dtype=tile.dtype, is_pure=False, pack=2)
    return tile.to(tl.float32)


@triton.jit
def store_tile(pointer, value, row, rows, columns, C, BLOCK_M: tl.constexpr):
    """Write a tile, rounded to the type that `pointer` points to."""
    inside = tl.arange(0, BLOCK_M)[:, None]
    mask = (row + inside < rows) & (columns < C)
    base = pointer + tl.cast(row, tl.int64) * C
    tl.store(base + (inside * C + columns), value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def normalise(x, mean, scale, bias):
    """(x − mean)·scale + bias with one rounding after the subtraction.

    Forward and backward must come to the same sign, so the fused multiply-add is spelled out: left to the compiler, it
    may be fused in one kernel and not in the other. Folding mean·scale into the bias would save an operation and lose
    all digits where the mean is large against the deviation.
    """
    return tl.fma(x - mean, scale, bias)


@triton.jit
def rounded_product(a, b):
    """a·b, for a sum over threads.

    The compiler would fuse a plain product with the sum's first addition, a·b + other in one thread and other + a·b in
    its partner: what has to be one sum would be two that differ in their last digits.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activation. relu masks z ≤ 0 rather than keeping z > 0, which lets NaN through as PyTorch does."""
    if ACTIVATION == "relu":
        z = tl.where(z <= 0.0, 0.0, z)
    elif ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    return z


@triton.jit
def through_activation(g, z, ACTIVATION: tl.constexpr):
    """The gradient of z from the gradient g of activate(z). relu selects instead of multiplying: 0·inf is NaN."""
    if ACTIVATION == "relu":
        g = tl.where(z <= 0.0, 0.0, g)
    elif ACTIVATION == "silu":
        sigmoid = tl.sigmoid(z)
        g = g * (sigmoid * (1.0 + z * (1.0 - sigmoid)))
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        g = g * (0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density)
    return g


@triton.jit
def store_bits(pointer, flags, row, rows, octets, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write a tile of booleans as bits, [M, ⌈C/8⌉] bytes: channel c is bit c % 8 of byte c // 8."""
    groups = tl.reshape(flags.to(tl.int32), [BLOCK_M, BLOCK_C // 8, 8])
    packed = tl.sum(groups << tl.arange(0, 8)[None, None, :], axis=2)
    width = (C + 7) // 8
    inside = tl.arange(0, BLOCK_M)[:, None]
    mask = (row + inside < rows) & (octets < width)
    tl.store(pointer + tl.cast(row, tl.int64) * width + (inside * width + octets), packed.to(tl.uint8), mask=mask)


@triton.jit
def load_bits(pointer, row, rows, octets, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """A tile of booleans that `store_bits` wrote."""
    width = (C + 7) // 8
    inside = tl.arange(0, BLOCK_M)[:, None]
    mask = (row + inside < rows) & (octets < width)
    packed = tl.load(pointer + tl.cast(row, tl.int64) * width + (inside * width + octets), mask=mask, other=0)
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, [BLOCK_M, BLOCK_C]) != 0


@triton.jit
def channel_terms(statistics, running_mean, running_var, weight, bias, columns, C, eps, FROM_RUNNING: tl.constexpr):
    """Mean, 1/deviation, scale = weight/deviation and bias of some channels.

    `statistics` is [2, C], mean and 1/deviation of the batch; with FROM_RUNNING the running ones are used instead.
    """
    inside = columns < C
    if FROM_RUNNING:
        mean = tl.load(running_mean + columns, mask=inside, other=0.0)
        rstd = 1.0 / tl.sqrt_rn(tl.load(running_var + columns, mask=inside, other=1.0) + eps)
    else:
        mean = tl.load(statistics + columns, mask=inside, other=0.0)
        rstd = tl.load(statistics + C + columns, mask=inside, other=1.0)
    scale = rstd
    if weight is not None:
        scale = rstd * tl.load(weight + columns, mask=inside, other=0.0)
    shift = tl.zeros_like(mean)
    if bias is not None:
        shift = tl.load(bias + columns, mask=inside, other=0.0)
    return mean, rstd, scale, shift


@triton.jit
def load_gradient(dy, dy2, row, rows, columns, C, BLOCK_M: tl.constexpr, LAST: tl.constexpr = False):
    """The gradient of the output: dy, and dy2 where a second reader sent one."""
    g = load_tile(dy, row, rows, columns, C, BLOCK_M, LAST)
    if dy2 is not None:
        g += load_tile(dy2, row, rows, columns, C, BLOCK_M, LAST)
    return g


@triton.jit
def behind_activation(
    g,
    tile,
    x_terms,
    other,
    z_terms,
    second,
    bits,
    row,
    rows,
    columns,
    octets,
    C,
    SECOND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    OPAQUE: tl.constexpr = False,
    LAST: tl.constexpr = False,
):
    """The gradient in front of the activation: by the bits that the forward pass stored, or from x, `tile`, and what
    was added: z, `other`, in the dual form, else `second`, of which nothing has been loaded.

    Tiles may be packed (`unpack` has OPAQUE); the terms are those of `channel_terms`, absent where there is no z.
    """
    if bits is not None:
        g = tl.where(load_bits(bits, row, rows, octets, C, BLOCK_M, BLOCK_C), g, 0.0)
    elif ACTIVATION != "none":
        out = normalise(unpack(tile, OPAQUE), x_terms[0], x_terms[2], x_terms[3])
        if SECOND == "add":
            out += load_tile(second, row, rows, columns, C, BLOCK_M, LAST)
        if SECOND == "dual":
            out += normalise(unpack(other, OPAQUE), z_terms[0], z_terms[2], z_terms[3])
        g = through_activation(g, out, ACTIVATION)
    return g


@triton.jit
def split_rows(split, rows_per_split, M):
    """Number of rows in a split: the last one may be short."""
    return tl.minimum(rows_per_split, M - split * rows_per_split)


@triton.jit
def store_moments(partials, split, mean, m2, columns, C):
    """Publish a split's mean and sum of squared deviations; `partials` is [splits, 2, C]."""
    inside = columns < C
    tl.store(partials + (2 * split) * C + columns, mean, mask=inside)
    tl.store(partials + (2 * split + 1) * C + columns, m2, mask=inside)


@triton.jit
def merge_moments(partials, splits, rows_per_split, M, columns, C, BLOCK_S: tl.constexpr):
    """Mean and sum of squared deviations of all rows from those of the splits (Chan, Golub, LeVeque 1979, eq. 2.1).

    Always in the same order, whichever program does it. Means are taken relative to the first split's, so that
    nothing cancels where they are large and close together. The loads bypass the first-level cache, which may hold
    what stood in this memory before another program wrote it.
    """
    reference = tl.load(partials + columns, mask=columns < C, other=0.0, cache_modifier=".cg")
    weighted = tl.zeros([BLOCK_S, columns.shape[1]], tl.float32)
    squares = tl.zeros([BLOCK_S, columns.shape[1]], tl.float32)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)[:, None]
        mask = (split < splits) & (columns < C)
        at = partials + (2 * split) * C + columns
        mean = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        m2 = tl.load(at + C, mask=mask, other=0.0, cache_modifier=".cg")
        count = split_rows(split, rows_per_split, M).to(tl.float32)
        distance = tl.where(mask, mean - reference, 0.0)
        weighted += count * distance
        squares += count * distance * distance + m2
    offset = tl.sum(weighted, axis=0, keep_dims=True) / M
    m2 = tl.sum(squares, axis=0, keep_dims=True) - offset * offset * M
    # Rounding can make it negative; a maximum would lose NaN on the GPU.
    return reference + offset, tl.where(m2 < 0.0, 0.0, m2)


@triton.jit
def finish_statistics(statistics, running, moments, columns, first_column, M, C, eps, momentum):
    """Write mean and 1/deviation of `moments`, and move the `running` statistics (mean, variance, number of batches),
    with the unbiased variance as in PyTorch."""
    inside = columns < C
    running_mean, running_var, batches = running
    mean, m2 = moments
    rstd = 1.0 / tl.sqrt_rn(m2 / M + eps)
    tl.store(statistics + columns, mean, mask=inside)
    tl.store(statistics + C + columns, rstd, mask=inside)
    if running_mean is not None:
        old = tl.load(running_mean + columns, mask=inside, other=0.0)
        tl.store(running_mean + columns, old + momentum * (mean - old), mask=inside)
    if running_var is not None:
        old = tl.load(running_var + columns, mask=inside, other=0.0)
        tl.store(running_var + columns, old + momentum * (m2 / (M - 1) - old), mask=inside)
    if batches is not None and first_column == 0:
        tl.store(batches, tl.load(batches) + 1)
    return rstd


@triton.jit
def is_last(counter, participants):
    """Whether this program is the last of `participants` to come here; it then sees what all others stored before.

    The counter is zero before and after. The barrier makes a program's stores come before its one atomic operation;
    acquire and release order them between programs.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == participants - 1
    if last:
        tl.atomic_xchg(counter, 0, sem="relaxed", scope="gpu")
    return last


@triton.jit
def wait_for_all(counter, participants, is_first):
    """Wait until `participants` programs have come here; all must run at once (a cooperative launch).

    The first program adds 2³¹ − (participants − 1), the others add 1: when all have come, the top bit has flipped and
    the other bits are what they were, so that nobody has to reset the counter (the scheme of CUDA's grid-wide
    synchronisation).
    """
    tl.debug_barrier()
    step = tl.where(is_first, -2147483648 - (participants - 1), 1).to(tl.int32)
    before = tl.atomic_add(counter, step, sem="acq_rel", scope="gpu")
    now = before
    while (before ^ now) >= 0:
        now = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
