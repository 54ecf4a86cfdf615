"""The device's draws and colours against their specification, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from augment_cases import DEVICE, EVERYTHING, MIX, PLAIN, REPORT

from fastres import recipe
from fastres.augment import draws, gpu, reference
from fastres.augment.philox import philox_4x32
from fastres.kernels.augment.colour import turn_hue
from fastres.kernels.augment.draws import draw_cutout, draw_erase, draw_geometry, draw_mixing, draw_sample, random_bits
from fastres.kernels.augment.kernel import OPTIONS
from fastres.kernels.batch_norm import launch

COMPILER: dict[str, Any] = {} if launch.INTERPRETED else OPTIONS
INDICES = torch.cat([torch.arange(20), torch.tensor([2**31 - 1, 2**31, 2**32 - 1])]).to(DEVICE)


@triton.jit(do_not_specialize=["seed", "epoch", "block"])
def words_kernel(indices, out, seed, epoch, stream: tl.constexpr, block):
    sample = tl.program_id(0)
    first, second, third, fourth = random_bits(seed, tl.load(indices + sample), epoch, stream, block)
    tl.store(out + 4 * sample, first)
    tl.store(out + 4 * sample + 1, second)
    tl.store(out + 4 * sample + 2, third)
    tl.store(out + 4 * sample + 3, fourth)


@pytest.mark.parametrize(
    ("seed", "epoch", "stream", "block"), [(0, 0, 0, 0), (2**32 - 1, 2**31, 5, 1023), (123, 99, 3, 10)]
)
def test_words(seed: int, epoch: int, stream: int, block: int) -> None:
    out = torch.zeros(len(INDICES), 4, dtype=torch.uint32, device=DEVICE)
    words_kernel[(len(INDICES),)](INDICES, out, seed, epoch, stream, block, **COMPILER)
    wanted = philox_4x32((INDICES.cpu().numpy(), epoch, stream, block), (seed, 0))
    np.testing.assert_array_equal(out.cpu().numpy().T, wanted)


@triton.jit(do_not_specialize=["seed", "epoch"])
def draws_kernel(indices, out, tables, seed, epoch, POLICY: tl.constexpr):
    sample = tl.program_id(0)
    index = tl.load(indices + sample)
    place, crop, colour = draw_sample(tables, seed, index, epoch, POLICY)
    down, right, flip = draw_geometry(seed, index, epoch, POLICY)
    cutout = draw_cutout(seed, index, epoch, POLICY)
    erase = draw_erase(tables, seed, index, epoch, POLICY)
    out += 26 * sample
    for entry in tl.static_range(4):
        tl.store(out + entry, crop[entry])
        tl.store(out + 15 + entry, cutout[entry])
        tl.store(out + 19 + entry, erase[entry])
    for entry in tl.static_range(3):
        tl.store(out + 4 + entry, place[entry])
    for entry in tl.static_range(8):
        tl.store(out + 7 + entry, colour[entry])
    tl.store(out + 23, down)
    tl.store(out + 24, right)
    tl.store(out + 25, flip)


NAMES = ("top", "left", "height", "width", "down", "right", "flip", "jitter", "order", "brightness", "contrast",
         "saturation", "hue", "autocontrast", "grayscale")  # fmt: skip


@pytest.mark.parametrize(("size", "epoch"), [((32, 32), 0), ((7, 5), 5), ((300, 21), 2**31)], ids=str)
@pytest.mark.parametrize(
    "policy",
    [
        REPORT,
        EVERYTHING,
        # Strips that never fit: the fallback, and an empty box.
        {**EVERYTHING, "random_resized_crop": {"scale": [1, 1], "ratio": [9, 9]}, "erasing": {"ratio": [1e-4, 1e-4]}},
        {**EVERYTHING, "color_jitter": {"brightness": 2, "contrast": 2, "saturation": 2, "hue": 0.5}, "flip": "random"},
    ],
    ids=["report", "everything", "fallback", "strong"],
)
def test_draws(policy: dict[str, Any], size: tuple[int, int], epoch: int) -> None:
    """Every integer that is drawn."""
    given = recipe.AugmentConfig(**policy)
    plan = draws.plan(given, size)
    out = torch.zeros(len(INDICES), 26, dtype=torch.int32, device=DEVICE)
    tables = torch.from_numpy(gpu.level_tables(plan, recipe.MixConfig())).to(DEVICE)
    draws_kernel[(len(INDICES),)](
        INDICES, out, tables, 5, epoch, POLICY=gpu.kernel_policy(given, recipe.MixConfig(), plan), **COMPILER
    )
    found = dict(zip(NAMES, out.cpu().numpy().T, strict=False))
    wanted = draws.draw(plan, 5, epoch, INDICES.cpu().numpy())
    for name in NAMES:
        # A policy without the operation draws factors of one level, which nobody reads.
        np.testing.assert_array_equal(found[name], getattr(wanted, name), err_msg=name)
    if given.cutout:
        np.testing.assert_array_equal(out[:, 15:19].cpu().numpy().T, wanted.cutout)
    if given.erasing is not None:
        np.testing.assert_array_equal(out[:, 19:23].cpu().numpy().T, wanted.erase)
    for column, name in enumerate(("down", "right", "flip"), 23):
        np.testing.assert_array_equal(out[:, column].cpu().numpy(), getattr(wanted, name), err_msg=name)


@triton.jit(do_not_specialize=["seed", "epoch"])
def mixing_kernel(out, weights, tables, seed, epoch, POLICY: tl.constexpr):
    step = tl.program_id(0)
    kind, weight, top, left, bottom, right = draw_mixing(tables, seed, epoch, step, POLICY)
    tl.store(weights + step, weight)
    tl.store(out + 5 * step, kind)
    tl.store(out + 5 * step + 1, top)
    tl.store(out + 5 * step + 2, left)
    tl.store(out + 5 * step + 3, bottom)
    tl.store(out + 5 * step + 4, right)


@pytest.mark.parametrize(
    "table",
    [
        MIX,
        {"mixup_alpha": 0.2},
        {"cutmix_alpha": 1.0, "prob": 0.5, "until": 9},
        {**MIX, "prob": 0.7, "switch_prob": 0.3, "until": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(32, 32), (7, 5), (1, 1)], ids=str)
def test_mixing(table: dict[str, Any], size: tuple[int, int]) -> None:
    """Kind, weight and box of fifty batches, at an epoch where the last table has stopped mixing."""
    mix, steps, epoch = recipe.MixConfig(**table), 50, 3
    plan = draws.plan(recipe.AugmentConfig(**PLAIN), size)
    tables = torch.from_numpy(gpu.level_tables(plan, mix)).to(DEVICE)
    out = torch.zeros(steps, 5, dtype=torch.int32, device=DEVICE)
    weights = torch.zeros(steps, device=DEVICE)
    policy = gpu.kernel_policy(recipe.AugmentConfig(**PLAIN), mix, plan)
    mixing_kernel[(steps,)](out, weights, tables, 11, epoch, POLICY=policy, **COMPILER)
    for step in range(steps):
        wanted = draws.draw_mix(mix, 11, epoch, step, size)
        assert out[step].tolist() == [wanted.kind, *wanted.box]
        # fp32 on both sides, from the same table or one correctly rounded division: the same bits.
        assert weights[step].item() == float(wanted.weight)


@triton.jit
def hue_kernel(pixels, out, shift, SIZE: tl.constexpr):
    at = (tl.program_id(0) * SIZE + tl.arange(0, SIZE)) * 3
    red = tl.load(pixels + at).to(tl.int32)
    green = tl.load(pixels + at + 1).to(tl.int32)
    blue = tl.load(pixels + at + 2).to(tl.int32)
    red, green, blue = turn_hue(red, green, blue, shift)
    tl.store(out + at, red.to(tl.uint8))
    tl.store(out + at + 1, green.to(tl.uint8))
    tl.store(out + at + 2, blue.to(tl.uint8))


@pytest.mark.parametrize("shift", [0, 1, 255])
def test_hue(shift: int) -> None:
    """Half a million colours, spread over all 2²⁴ by an odd step: Pillow's fp64 has the floors of the kernel's fp32."""
    count = 2**19
    colours = (np.arange(count, dtype=np.uint32) * 15_485_863 + shift) & 0xFFFFFF
    pixels = np.stack([colours & 255, (colours >> 8) & 255, colours >> 16], axis=-1).astype(np.uint8)[None]
    given = torch.from_numpy(pixels).to(DEVICE)
    out = torch.zeros_like(given)
    size = count if launch.INTERPRETED else 1024
    hue_kernel[(count // size,)](given, out, shift, SIZE=size, **COMPILER)
    np.testing.assert_array_equal(out.cpu().numpy(), reference.hue(pixels, shift))
