"""The augmentation kernels against the plain reference: operations, the report's policy, mixing, sizes and types."""

from typing import Any

import pytest
import torch
from augment_cases import CROP, DEVICE, EVERYTHING, JITTER, MIX, PLAIN, REPORT, Case, assert_rounded, expected
from covering import ONE_IN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastres import recipe
from fastres.augment import draws
from fastres.augment.gpu import augment_batch, mix_batch

OPERATIONS: dict[str, dict[str, Any]] = {
    "normalise": {},
    "bilinear crop": {"random_resized_crop": {**CROP, "interpolation": "bilinear"}},
    "bicubic crop": {"random_resized_crop": {**CROP, "interpolation": "bicubic"}},
    "translate, zero": {"translate": 4, "padding": "zero"},
    "translate, reflect": {"translate": 4, "padding": "reflect"},
    "translate, constant": {"translate": 4, "padding": "constant", "fill": [1, 20, 250]},
    "flip": {"flip": "random"},
    "alternating flip": {"flip": "alternating"},
    "brightness": {"color_jitter": {"brightness": 0.7}},
    "contrast": {"color_jitter": {"contrast": 2.0}},
    "saturation": {"color_jitter": {"saturation": 1.5}},
    "hue": {"color_jitter": {"hue": 0.5}},
    "jitter": {"color_jitter": JITTER},
    "autocontrast": {"autocontrast": 0.7},
    "grayscale": {"grayscale": 0.5},
    "cutout": {"cutout": 5},
    "erasing": {"erasing": {"p": 0.8}},
    "erasing with a colour": {"erasing": {"p": 0.8, "value": [0.1, 0.9, 0.5]}},
    "noise": {"noise": 0.2},
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name: str) -> None:
    """Each alone, on images whose sides are no powers of two; 12 has no row of whole octets, 8 has."""
    for size in ((9, 12), (11, 8)):
        Case({**PLAIN, **OPERATIONS[name]}, size).check()


@pytest.mark.parametrize("size", [(32, 32), (7, 5), (33, 40), (1, 1), (1, 6), (64, 3)], ids=str)
@pytest.mark.parametrize("policy", [REPORT, EVERYTHING], ids=["report", "everything"])
def test_policy(policy: dict[str, Any], size: tuple[int, int]) -> None:
    fitting = {**policy, "translate": min(policy["translate"], min(size) - 1), "cutout": min(3, min(size))}
    Case(fitting if policy is EVERYTHING else policy, size, count=3).check()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("policy", "dtype"),
    [*(({"translate": 2}, dtype) for dtype in DTYPES), (REPORT, torch.bfloat16)],
    ids=["shift fp32", "shift fp16", "shift bf16", "report bf16"],
)
def test_output(policy: dict[str, Any], channels_last: bool, dtype: torch.dtype) -> None:
    """Each type and layout, with all three kinds of mixing."""
    case = Case(policy, (8, 8), {**MIX, "prob": 0.7}, dtype, channels_last, count=3)
    steps = {case.augment().draw_mix(3, step, case.size).kind: step for step in range(20)}
    assert len(steps) == 3
    for step in steps.values():
        case.check(step=step)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [(66, 40), (3, 1100)], ids=str)
def test_large_images(size: tuple[int, int], channels_last: bool) -> None:
    """Beyond 64×64 images are made tile by tile, with statistics from a kernel of their own."""
    Case({**EVERYTHING, "noise": 0}, size, MIX, channels_last=channels_last, count=2).check(step=1)


@pytest.mark.parametrize("table", [{"mixup_alpha": 0.3}, {"cutmix_alpha": 1.0}, {**MIX, "until": 3}], ids=str)
def test_one_kind_or_none(table: dict[str, Any]) -> None:
    for policy in ({"translate": 1}, EVERYTHING):
        Case(policy, (7, 8), table).check(step=2)


def test_without_mixing_no_table_is_needed() -> None:
    Case({"translate": 1}).check(step=0)


@pytest.mark.parametrize("policy", [{"translate": 2}, REPORT], ids=["shift", "report"])
def test_batch_does_not_matter(policy: dict[str, Any]) -> None:
    """An image is the same alone, in any order, and from a batch instead of a store."""
    case = Case(policy, (8, 11))
    augment, images = case.augment(), case.images()
    rows, indices, _ = case.batch()
    whole, _, _ = augment_batch(augment, images, rows, indices, 4)
    turned, _, _ = augment_batch(augment, images, rows.flip(0), indices.flip(0), 4)
    assert torch.equal(turned.flip(0), whole)
    loaded, _, _ = augment_batch(augment, images[rows], None, indices, 4)
    assert torch.equal(loaded, whole)
    alone, _, _ = augment_batch(augment, images, rows[2:3], indices[2:3], 4)
    assert torch.equal(alone[0], whole[2])


def test_empty_batch() -> None:
    nothing = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    case = Case({"translate": 1}, mix=MIX)
    found, partners, weight = augment_batch(case.augment(), case.images(), nothing, nothing, 0, 0, nothing)
    assert found.shape == (0, 3, 9, 12) and partners is not None and len(partners) == 0 and weight.item() == 1


@pytest.mark.parametrize("policy", [{"translate": 2}, REPORT], ids=["shift", "report"])
def test_epoch_and_step_in_device_memory(policy: dict[str, Any]) -> None:
    """What a captured launch needs: the same tensors with other numbers in them give another epoch and step."""
    case = Case(policy, (8, 8), MIX, count=3)
    epoch, step = (torch.zeros((), dtype=torch.int64, device=DEVICE) for _ in range(2))
    for numbers in ((0, 0), (1, 0), (1, 5)):
        epoch.fill_(numbers[0])
        step.fill_(numbers[1])
        for found, wanted in zip(case.run(epoch, step), case.run(*numbers), strict=True):
            assert found is not None and wanted is not None and torch.equal(found, wanted)
    short = epoch.to(torch.int32)
    assert torch.equal(case.run(short, step)[0], case.run(1, 5)[0])


@settings(max_examples=max(5, 20 // ONE_IN), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_policy(data: st.DataObject) -> None:
    """Any operations together, on any small size."""
    size = (data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13)))
    policy: dict[str, Any] = dict(PLAIN)
    for name in data.draw(st.lists(st.sampled_from(sorted(OPERATIONS)), unique=True, max_size=6)):
        # One colour at most: `fill` belongs to one kind of padding.
        policy |= {"fill": None} | OPERATIONS[name] if "translate" in OPERATIONS[name] else OPERATIONS[name]
    policy["translate"] = min(policy["translate"], min(size) - 1)
    policy["cutout"] = min(policy.get("cutout", 0), min(size))
    mix = data.draw(st.sampled_from([{}, MIX]))
    case = Case(policy, size, mix, seed=data.draw(st.integers(0, 2**32 - 1)), count=2)
    case.check(data.draw(st.integers(0, 2**20)), data.draw(st.integers(0, 2**20)) if mix else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (2, 5, 7, 3), (3, 1, 40, 60)], ids=str)
def test_mix_batch(shape: tuple[int, int, int, int], channels_last: bool, dtype: torch.dtype) -> None:
    """Any float batch: own and partner in fp32, rounded once."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype).to(memory_format=layout)
    labels, before = torch.arange(shape[0], device=DEVICE), batch.clone()
    mix = recipe.MixConfig(**MIX, prob=0.7)
    steps = {draws.draw_mix(mix, 3, 1, step, shape[2:]).kind: step for step in range(20)}
    assert len(steps) == 3
    for step in steps.values():
        out, own, partners, weight = mix_batch(batch, labels, mix, seed=3, epoch=1, step=step)
        wanted = draws.draw_mix(mix, 3, 1, step, shape[2:])
        other = batch.roll(1, 0).float()
        values = batch.float().clone()
        if wanted.kind == draws.MIXUP:
            share = torch.tensor(wanted.weight)
            values = values * share + other * (1 - share)
        elif wanted.kind == draws.CUTMIX:
            top, left, bottom, right = wanted.box
            values[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        assert_rounded(out, values.permute(0, 2, 3, 1).cpu().numpy())
        assert out.stride() == batch.stride() and torch.equal(batch, before)
        assert torch.equal(own, labels) and weight.item() == float(wanted.weight)
        assert torch.equal(partners, labels.roll(1) if wanted.kind else labels)


def test_mix_batch_without_a_table() -> None:
    batch, labels = torch.randn(2, 3, 4, 4, device=DEVICE), torch.arange(2, device=DEVICE)
    out, _, partners, weight = mix_batch(batch, labels, recipe.MixConfig())
    assert torch.equal(out, batch) and torch.equal(partners, labels) and weight.item() == 1


def test_the_reference_changes_images() -> None:
    """The tests above compare two sides; here, that the side they trust does something."""
    case = Case(EVERYTHING)
    rows, indices, _ = (tensor.cpu() for tensor in case.batch())
    first, second = (expected(case.augment(), case.images().cpu(), rows, indices, epoch) for epoch in (0, 1))
    assert (first != second).mean() > 0.5
