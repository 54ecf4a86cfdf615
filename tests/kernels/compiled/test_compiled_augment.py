"""The augmentation and mixing kernels as Triton compiles them, executed: no value differs from the CPU's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from augment_cases import EVERYTHING, MIX, REPORT, Case, assert_rounded
from ptx.machine import Order
from ptx.session import TOTAL, running

from fastres import recipe
from fastres.augment import Augment, draws
from fastres.augment.gpu import augment_batch, mix_batch
from fastres.recipe import Recipe

CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[3] / "recipes"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def recipes() -> dict[tuple[str, str], Recipe]:
    """One recipe for each augmentation and mixing that occurs in the folder of recipes."""
    loaded = (Recipe.load(path) for path in sorted(RECIPES.rglob("*.toml")))
    return {(each.augment.model_dump_json(), each.mix.model_dump_json()): each for each in loaded}


def check_recipe(chosen: Recipe, dtype: torch.dtype, **options: Any) -> None:
    """A batch of 32 × 32 pixels by the kernels and by the CPU, bit for bit, with each kind of mixing that is drawn."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8, generator=generator)
    rows, labels = torch.tensor([3, 0, 8]), torch.arange(3)
    indices = rows * 11 + 2
    augment = Augment(
        chosen.augment, (0.49, 0.48, 0.44), (0.25, 0.24, 0.26), mix=chosen.mix, seed=7, dtype=dtype, channels_last=True
    )
    kinds = {augment.draw_mix(3, step, (32, 32)).kind: step for step in range(20)}
    for step in kinds.values():
        wanted = augment(images, labels, indices, 3, step, rows)
        with running(exact=True, **options) as session:
            batch, partners, weight = augment_batch(augment, images, rows, indices, 3, step, labels)
        assert session.executed
        for name, found, value in zip(
            ("batch", "partners", "weight"), (batch, partners, weight), (wanted[0], wanted[2], wanted[3]), strict=True
        ):
            assert found is not None and torch.equal(found, value.reshape(found.shape)), name


def test_recipe() -> None:
    check_recipe(Recipe.load(RECIPES / "speed" / "94.toml"), torch.bfloat16)


@pytest.mark.parametrize("policy", [REPORT, EVERYTHING], ids=["report", "everything"])
def test_mixing(policy: dict[str, Any]) -> None:
    """A partner's image is the partner's: once Triton took it for unchanged in a loop, and batches mixed with black."""
    case = Case(policy, (8, 8), MIX, count=3, device=CPU)
    kinds = {case.augment().draw_mix(3, step, case.size).kind: step for step in range(20)}
    assert {draws.MIXUP, draws.CUTMIX} <= kinds.keys()
    for step in kinds.values():
        with running(exact=True):
            case.check(step=step)


def test_large_images() -> None:
    """Tile by tile, with statistics from a kernel of their own, blocks and warps in any order."""
    for order in (None, Order(2, warps=True)):
        with running(exact=True, order=order) as session:
            Case({**EVERYTHING, "noise": 0}, (66, 40), MIX, torch.bfloat16, count=2, device=CPU).check(step=1)
        assert [each.launch.kernel for each in session.executed] == ["measure_kernel", "tile_kernel"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_mix_batch(dtype: str) -> None:
    batch = torch.randn(3, 5, 7, 3, generator=torch.Generator().manual_seed(1)).to(DTYPES[dtype])
    mix = recipe.MixConfig(**MIX)
    for step in range(3):
        with running(exact=True):
            out, _, partners, weight = mix_batch(batch, torch.arange(3), mix, seed=3, epoch=1, step=step)
        wanted = draws.draw_mix(mix, 3, 1, step, (7, 3))
        other, values = batch.roll(1, 0).float(), batch.float().clone()
        if wanted.kind == draws.MIXUP:
            share = torch.tensor(wanted.weight)
            values = values * share + other * (1 - share)
        else:
            top, left, bottom, right = wanted.box
            values[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        assert_rounded(out, values.permute(0, 2, 3, 1).numpy())
        assert weight.item() == float(wanted.weight) and partners.tolist() == [2, 0, 1]


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("capability", [90, 80])
def test_every_recipe(capability: int, record_property: Any) -> None:
    """Every augmentation of the folder of recipes, in each type."""
    before = TOTAL.copy()
    found = recipes()
    for chosen in found.values():
        for dtype in DTYPES.values():
            check_recipe(chosen, dtype, capability=capability)
    done = TOTAL - before
    record_property(
        "log",
        f"augmentation, sm_{capability}: {len(found)} policies of recipes, {done['kernels']} kernels, "
        f"{done['launches']} launches, no value differs from the CPU's",
    )
