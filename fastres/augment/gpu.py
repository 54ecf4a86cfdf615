"""Augmentation on a GPU: the tables on the device, and one launch of the Triton kernel a batch.

Nothing is drawn on the host and nothing is waited for: with epoch and step in device memory a launch can be captured in
a CUDA graph, and replays follow what is written there. Tables are made at the first batch of a size, before a capture.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from fastres import recipe
from fastres.augment import draws
from fastres.augment.resample import TAPS, taps
from fastres.augment.spec import AugmentSpec
from fastres.augment.tables import LEVELS, BoxTables, mix_tables, normal_table
from fastres.kernels.augment.draws import MIX_TABLES, TABLE_ROWS, Policy
from fastres.kernels.augment.kernel import OPTIONS, direct_kernel, measure_kernel, tile_kernel
from fastres.kernels.augment.mix import BLOCK, mix_kernel

WHOLE_PIXELS = 4096
"""Most pixels, sides rounded up to powers of two, that one program keeps in registers."""
TILE = 1024
"""Values of a tile of the direct kernel; pixels, or one row, of a tile of images that do not stay in registers."""


@dataclass(frozen=True)
class Launch:
    """Kernel and tile of a policy for images of one size."""

    policy: Policy
    kernel: str
    """`direct` or `tile`."""
    rows: int
    columns: int
    """Of a tile, both powers of two; the direct kernel's has one row of values."""
    warps: int
    measures: bool
    """Whether `measure_kernel` runs first: a tile is not the image, and operations need its statistics."""


def augment_batch(
    augment: AugmentSpec,
    images: Tensor,
    rows: Tensor | None,
    indices: Tensor,
    epoch: int | Tensor,
    step: int | Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Augment, normalise and mix in one launch.

    Args:
        augment: the policy, its mixing, seed, output type and layout.
        images: uint8 [M, H, W, 3], contiguous, on a CUDA device, or on the CPU in Triton's interpreter.
        rows: int64 [B], which of `images` to take; None: all, in order.
        indices: int64 [B], dataset indices below 2³².
        epoch: a number, or a tensor of one integer on the device.
        step: likewise, of the batch within its epoch; None: no mixing.
        labels: int64 [B].

    Returns the batch, [B, 3, H, W]; the labels of the images that were mixed in, int64 [B], None without `labels`; and
    the weight λ of the images' own labels, fp32 [1]. Without mixing the labels come back with weight 1. Raises
    UserError where the policy does not fit the images.
    """
    size = (images.shape[1], images.shape[2])
    device = images.device
    ready = _prepared(augment, size, device, step is not None)
    route, tables, factors = ready.launch, ready.tables, ready.factors
    count = len(indices)
    batch = torch.empty((count, *size, 3) if augment.channels_last else (count, 3, *size), dtype=augment.dtype,
                        device=device)  # fmt: skip
    if not route.policy.mixes:
        partners, weight = labels, torch.ones(1, device=device)
    else:
        partners = None if labels is None else torch.empty_like(labels)
        weight = torch.empty(1, device=device)
    if count:
        options = _compiler_options(route.warps)
        labelled = (labels, partners, weight) if route.policy.mixes else (None, None, None)
        sources, written = (images, rows, indices), (batch, *labelled)
        if route.kernel == "direct":
            direct_kernel[(count,)](
                *sources, *written, tables, factors, ready.seed, epoch, step,
                POLICY=route.policy, BLOCK=route.columns, **options,
            )  # fmt: skip
        else:
            tile = {"POLICY": route.policy, "ROWS": route.rows, "COLUMNS": route.columns, **options}
            statistics = torch.empty((count, 7), dtype=torch.int32, device=device) if route.measures else None
            if route.measures:
                measure_kernel[(count,)](
                    *sources, ready.across, ready.down, statistics, tables, ready.seed, epoch, **tile
                )
            tile_kernel[count, -(-size[0] // route.rows)](
                *sources,
                *written,
                ready.across,
                ready.down,
                statistics,
                tables,
                factors,
                ready.seed,
                epoch,
                step,
                **tile,
            )
    elif route.policy.mixes:
        weight.fill_(1.0)
    return (batch.permute(0, 3, 1, 2) if augment.channels_last else batch), partners, weight


def launch(policy: Policy) -> Launch:
    """Kernel and tile for a policy."""
    rows, columns = (triton.next_power_of_2(side) for side in (policy.height, policy.width))
    if policy.direct:
        values = triton.next_power_of_2(3 * policy.height * policy.width)
        # Of 2,100 instructions that two warps issue for 32×32 pixels, 270 are the draws, which each warp makes anew.
        return Launch(policy, "direct", 1, min(TILE, values), 2, False)
    if rows * columns <= WHOLE_PIXELS:
        # Four pixels a thread, eight in the largest tiles; fewer threads each need more registers and more code.
        return Launch(policy, "tile", rows, columns, min(16, max(1, rows * columns // 128)), False)
    measures = policy.autocontrast > 0 or (policy.jitter > 0 and policy.levels[1] > 1)
    return Launch(policy, "tile", max(1, TILE // columns), columns, 8, measures)


def kernel_policy(
    policy: recipe.AugmentConfig, mix: recipe.MixConfig, plan: draws.Plan, channels_last: bool = True
) -> Policy:
    """The kernel's compile-time constants."""
    red, green, blue = policy.fill or (0, 0, 0)
    return Policy(
        *plan.size,
        channels_last=channels_last,
        taps=0 if policy.random_resized_crop is None else TAPS[policy.random_resized_crop.interpolation],
        fallback=plan.crop_fallback,
        translate=plan.translate,
        padding=policy.padding,
        fill=red | green << 8 | blue << 16,
        flip=plan.flip,
        low=plan.factor_low,
        levels=plan.factor_levels,
        hue=plan.hue_reach,
        cutout=plan.cutout,
        noise=policy.noise > 0,
        **_mixing(mix) | {name: _threshold(chance) for name, chance in plan.chances.items()},
    )


def _mixing(mix: recipe.MixConfig) -> dict[str, Any]:
    """The fields of a kernel's Policy that say how a batch is mixed."""
    return {
        "mixup": mix.mixup_alpha is not None,
        "cutmix": mix.cutmix_alpha is not None,
        "mix": _threshold(np.float32(mix.prob)),
        "switch": _threshold(np.float32(mix.switch_prob)),
        "until": mix.until,
    }


def _compiler_options(warps: int) -> dict[str, Any]:
    """The interpreter knows no options for the compiler."""
    return {"num_warps": warps} if triton.knobs.runtime.interpret else {"num_warps": warps, **OPTIONS}


def _threshold(p: np.float32) -> int:
    """u < p for u = n·2⁻²⁴ is n < this, exactly."""
    return math.ceil(float(p) * 2**24)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """An `Augment`'s tensors on a device for images of one size."""

    launch: Launch
    tables: Tensor
    factors: Tensor
    across: Tensor | None
    down: Tensor | None
    seed: Tensor
    """int64 [1]: `reseed` changes it under captured launches."""


def reseed(augment: AugmentSpec) -> None:
    """Let what was prepared for `augment`, captured launches included, draw by the seed that it has now."""
    for prepared in augment.prepared.values():
        prepared.seed.fill_(augment.seed)


def _prepared(augment: AugmentSpec, size: draws.Size, device: torch.device, mixes: bool) -> _Prepared:
    """Made once, and kept as long as the `Augment` lives."""
    key = (size, device, mixes)
    if key not in augment.prepared:
        plan = augment.plan(size)
        policy = kernel_policy(augment.policy, augment.mix, plan, augment.channels_last)
        if not mixes:
            policy = replace(policy, mixup=False, cutmix=False)
        constants = np.stack(
            [augment.normalization[0], augment.normalization[1], augment.noise_scale, augment.normalization[5]]
        )
        across = down = None
        if augment.policy.random_resized_crop is not None:
            interpolation = augment.policy.random_resized_crop.interpolation
            down, across = (torch.from_numpy(tap_table(side, interpolation)).to(device) for side in size)
        tables, factors = (torch.from_numpy(each).to(device) for each in (level_tables(plan, augment.mix), constants))
        seed = torch.tensor([augment.seed], device=device)
        augment.prepared[key] = _Prepared(launch(policy), tables, factors, across, down, seed)
    prepared: _Prepared = augment.prepared[key]
    return prepared


def mix_batch(
    batch: Tensor,
    labels: Tensor,
    mix: recipe.MixConfig,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    step: int | Tensor = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`pipeline.mix_batch` in one launch on a CUDA device, where `epoch` and `step` may be tensors, or interpreted.

    Returns the mixed batch, in the layout of `batch`; `labels`; the labels of the samples that were mixed in, each the
    one before, int64 [B]; and the weight λ of `labels`, fp32 [1]. The loss is λ·(labels) + (1 - λ)·(mixed in).
    """
    count, channels, height, width = batch.shape
    channels_last = batch.is_contiguous(memory_format=torch.channels_last)
    batch = batch.detach() if channels_last else batch.detach().contiguous()
    policy = Policy(height, width, channels_last=channels_last, **_mixing(mix))
    out, partners, weight = torch.empty_like(batch), torch.empty_like(labels), torch.ones(1, device=batch.device)
    if not policy.mixes or not count:
        return out.copy_(batch), labels, partners.copy_(labels), weight
    tables = _mix_tables(mix.mixup_alpha, mix.cutmix_alpha, batch.device)
    mix_kernel[count, -(-channels * height * width // BLOCK)](
        batch, out, labels, partners, weight, tables, seed, epoch, step,
        CHANNELS=channels, POLICY=policy, BLOCK=BLOCK, **_compiler_options(4),
    )  # fmt: skip
    return out, labels, partners, weight


@functools.cache
def _mix_tables(mixup_alpha: float | None, cutmix_alpha: float | None, device: torch.device) -> Tensor:
    rows = np.zeros((TABLE_ROWS, LEVELS), dtype=np.float32)
    rows[MIX_TABLES.value : MIX_TABLES.value + 2] = _mix_rows(mixup_alpha, cutmix_alpha)
    return torch.from_numpy(rows).to(device)


def level_tables(plan: draws.Plan, mix: recipe.MixConfig) -> NDArray[np.float32]:
    """The kernel's `tables`, fp32 [9, 4096]: see augment_draws.TABLE_ROWS."""
    mixing = _mix_rows(mix.mixup_alpha, mix.cutmix_alpha)
    return np.concatenate([_box_rows(plan.crop), _box_rows(plan.erase), mixing, normal_table()[None]])


def _mix_rows(mixup_alpha: float | None, cutmix_alpha: float | None) -> NDArray[np.float32]:
    rows = np.zeros((2, LEVELS), dtype=np.float32)
    if mixup_alpha is not None:
        rows[0] = mix_tables(mixup_alpha).weight
    if cutmix_alpha is not None:
        rows[1] = mix_tables(cutmix_alpha).half_side
    return rows


def _box_rows(tables: BoxTables | None) -> NDArray[np.float32]:
    if tables is None:
        return np.zeros((3, LEVELS), dtype=np.float32)
    return np.stack([tables.twice_side, tables.widen, tables.narrow])


@functools.cache
def tap_table(size: int, interpolation: str) -> NDArray[np.int32]:
    """int32 [size + 1, size, taps + 1]: for each side of a crop and each position, the first pixel and the weights."""
    table = taps(size, interpolation)
    return np.concatenate([table.first[..., None], table.weight], axis=-1)
