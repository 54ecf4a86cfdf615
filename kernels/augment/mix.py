"""CutMix and MixUp of a float batch with its neighbours in one kernel: what kernel.py does in passing, for any batch.

Each value of the result is read once for CutMix, from the sample or from its partner, and twice for MixUp.
"""

import triton
import triton.language as tl

from fastres.kernels.augment.draws import MIXUP
from fastres.kernels.augment.kernel import begin_mixing, in_box, read

BLOCK = 2048
"""Values of a program: four warps, 16 bytes a thread and load in 16-bit types, twice."""


@triton.jit(do_not_specialize=["seed", "epoch", "step"])
def mix_kernel(
    batch, out, labels, partners, weights, tables, seed, epoch, step,
    CHANNELS: tl.constexpr, POLICY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mix each sample with the one before it, the first with the last; grid (B, ⌈C·H·W/BLOCK⌉).

    `batch` and `out` are fp32, fp16 or bf16, [B, H, W, C] in memory where the policy is channels-last, else
    [B, C, H, W]. The other arguments are those of `augment.direct_kernel`. Arithmetic is fp32, rounded once to the
    output's type.
    """
    sample = tl.program_id(0)
    VALUES: tl.constexpr = CHANNELS * POLICY.height * POLICY.width
    kind, weight, box, previous = begin_mixing(
        labels, partners, weights, tables, sample, read(seed), read(epoch), step, POLICY
    )
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if POLICY.channels_last:
        pixel = position // CHANNELS
    else:
        pixel = position % (POLICY.height * POLICY.width)
    y = pixel // POLICY.width
    x = pixel % POLICY.width
    pasted = in_box(y, x, box)  # empty but for CutMix
    inside = position < VALUES
    own = tl.load(batch + sample.to(tl.int64) * VALUES + position, mask=inside & ~pasted, other=0.0)
    needed = tl.where(kind == MIXUP, inside, inside & pasted)
    other = tl.load(batch + previous.to(tl.int64) * VALUES + position, mask=needed, other=0.0)
    blended = own.to(tl.float32) * weight + other.to(tl.float32) * (1.0 - weight)
    value = tl.where(kind == MIXUP, blended, tl.where(pasted, other, own).to(tl.float32))
    tl.store(out + sample.to(tl.int64) * VALUES + position, value.to(out.dtype.element_ty), mask=inside)
