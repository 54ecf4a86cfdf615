"""What a machine computes is compared with fp64: sound on this one, and what is planted is found."""

import math
from typing import Any

import pytest
import torch
from losing import Loses
from torch import Tensor

from fastres.bench import numerics
from fastres.bench.numerics import Finding
from fastres.layers.convolution import Conv2d
from fastres.recipe import Recipe

CPU = torch.device("cpu")
MODEL = {"blocks": [1, 1], "channels": [16, 32], "strides": [2, 2]}


def recipe(*, compile: bool = False, precision: str = "fp32", **model: Any) -> Recipe:
    tables = {"model": MODEL | model, "train": {"precision": precision, "compile": compile, "batch_size": 8}}
    return Recipe.model_validate({**tables, "mix": {"mixup_alpha": 0.5}})


def wrong(found: numerics.Numerics) -> list[str]:
    return [finding.name for finding in found.findings if not finding.sound]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_this_machine_is_sound(precision: str) -> None:
    found = numerics.numerics(recipe(precision=precision, dropout=0.5), CPU)
    assert wrong(found) == [] and found.sound
    names = [finding.name for finding in found.findings]
    assert names[0] == "convolution 3×3, 3 → 16, 32×32"
    assert "convolution 1×1, stride 2, 16 → 32, 16×16" in names
    assert "dual bn add relu, 32 channels, 8×8" in names
    assert names[-2:] == ["gradients of the step", "augmentation, values that differ"]
    assert found.left_out == ["compiled layers: train.compile is false", "a compiled step: train.compile is false"]
    assert all(error > 0 for finding in found.findings[:-1] for error in finding.eager), "nothing is exact"


def test_compiled_code_is_compared_too() -> None:
    found = numerics.numerics(recipe(compile=True), CPU)
    assert found.sound and found.left_out == []
    assert [len(finding.compiled or ()) for finding in found.findings[:-2]] == [3] * (len(found.findings) - 2)
    step = found.findings[-2]
    assert step.compiled is not None and step.compiled[0] <= step.limit


def test_a_planted_wrong_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strided convolutions read one pixel beside those that they should."""
    real = Conv2d.forward

    def beside(self: Conv2d, x: Tensor) -> Tensor:
        return real(self, x.roll(1, -1) if self.stride != (1, 1) and x.dtype != torch.float64 else x)

    monkeypatch.setattr(Conv2d, "forward", beside)
    names = wrong(numerics.numerics(recipe(), CPU))
    assert "convolution 1×1, stride 2, 16 → 32, 16×16" in names and "gradients of the step" in names
    assert not [name for name in names if name.startswith("convolution") and "stride" not in name]


def test_a_planted_zero_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A distance of 1, all of the gradient; the outputs are right."""
    real = Conv2d.forward

    def losing(self: Conv2d, x: Tensor) -> Tensor:
        y = real(self, x)
        return y if x.dtype == torch.float64 else Loses.apply(y, True)  # type: ignore[no-any-return, no-untyped-call]

    monkeypatch.setattr(Conv2d, "forward", losing)
    found = numerics.numerics(recipe(), CPU)
    convolutions = [finding for finding in found.findings if finding.name.startswith("convolution")]
    assert all(finding.eager[0] < finding.limit for finding in convolutions)
    assert all(finding.eager[1:] == [1.0, 1.0] and not finding.sound for finding in convolutions)
    assert found.findings[-2].eager == [1.0] and not found.findings[-2].sound


def test_branches_that_start_at_zero_are_sound() -> None:
    """What lies below them has a gradient of zero, of which any rounding would be all."""
    assert wrong(numerics.numerics(recipe(zero_init_residual=True), CPU)) == []


@pytest.mark.parametrize("error", [None, 0.2])
def test_one_error_is_enough(error: float | None) -> None:
    finding = Finding(name="", eager=[0.0, 0.1], compiled=None, limit=0.1)
    assert finding.sound
    assert not finding.updated(eager=[0.0, error]).sound
    assert not finding.updated(compiled=[error]).sound


def test_what_is_no_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Conv2d.forward
    monkeypatch.setattr(
        Conv2d, "forward", lambda self, x: real(self, x) * (1 if x.dtype == torch.float64 else math.nan)
    )
    found = numerics.numerics(recipe(), CPU)
    assert found.findings[0].eager == [None, None, None] and found.findings[-2].eager == [None] and not found.sound
    assert numerics.lines(found)[0][1:4] == ["no number"] * 3


def test_distances_by_hand() -> None:
    assert numerics.distance(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])) == 5.0
    assert numerics.distance(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(1 / 5)
