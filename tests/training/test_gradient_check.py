"""Gradients that compiled code loses are found in its first step; those that are zero by right are let be."""

import copy
from typing import Any

import pytest
import torch
from losing import Loses
from torch import Tensor, nn

from fastres.models import build
from fastres.recipe import Recipe
from fastres.training import gradient_check
from fastres.training.step import Step


def step_of(network: nn.Module, compile: bool, **train: Any) -> Step:
    recipe = Recipe.model_validate({"train": {"precision": "fp32", "compile": compile, **train}})
    return Step(network, recipe, 10, torch.device("cpu"))


def small(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    recipe = Recipe.model_validate({"model": {"blocks": [1], "channels": [16], "strides": [2], **options}})
    return build(recipe.model, 10, 8)


def everything(step: Step) -> list[Tensor]:
    return [*step.network.state_dict().values(), *step.state()["optimizer"]["state"][0].values()]


class Losing(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return Loses.apply(self.inner(x), False)  # type: ignore[no-any-return, no-untyped-call]


@pytest.fixture
def eager_steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A name for each eager step that a check took."""
    taken: list[str] = []
    real = gradient_check._set_buffers

    def counted(network: nn.Module, values: list[Tensor]) -> None:
        taken.append("buffers")
        real(network, values)

    monkeypatch.setattr(gradient_check, "_set_buffers", counted)
    return taken


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_planted_zero_gradient_ends_in_an_eager_run(precision: str) -> None:
    """The whole run is the eager one's, to the bit: the first step is taken once."""
    network = small()
    network.conv1 = Losing(network.conv1)  # type: ignore[arg-type]
    twin = copy.deepcopy(network)
    checked, eager = step_of(network, True, precision=precision), step_of(twin, False, precision=precision)
    for number in range(2):
        images = torch.rand(8, 3, 8, 8)
        losses = [step(number, images, torch.arange(8))[0] for step in (checked, eager)]
        assert torch.equal(*losses)
    assert all(torch.equal(*pair) for pair in zip(everything(checked), everything(eager), strict=True))
    assert not checked.loss_and_correct.active
    reason = checked.loss_and_correct.fallback_reason
    lost = "the gradient of conv1.inner.weight is zero, which it is not eagerly"
    assert reason == f"compiled by torch {torch.__version__}, {lost}"


def test_a_residual_branch_that_starts_at_zero_stays_compiled(eager_steps: list[str]) -> None:
    """Below it gradients are zero by right, and the compiled step counts: to the bit what it is without the check."""
    networks = [small() for _ in range(2)]
    for network in networks:
        last = [module for module in network.modules() if type(module).__name__ == "BatchNormAddAct2d"]
        assert last
        for norm in last:
            nn.init.zeros_(norm.weight)
    checked, unchecked = (step_of(network, True) for network in networks)
    unchecked._unchecked = False
    images = torch.rand(8, 3, 8, 8)
    for step in (checked, unchecked):
        step(0, images, torch.arange(8))
        assert step.loss_and_correct.active
    assert eager_steps == ["buffers"] * 2, "statistics set back before the eager step and after it"
    assert all(torch.equal(*pair) for pair in zip(everything(checked), everything(unchecked), strict=True))


def test_a_sound_step_is_not_taken_twice(eager_steps: list[str]) -> None:
    step = step_of(small(), True)
    for number in range(2):
        step(number, torch.rand(8, 3, 8, 8), torch.arange(8))
    assert step.loss_and_correct.active and not eager_steps


def test_only_the_first_step_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of(small(), True)
    step(0, torch.rand(8, 3, 8, 8), torch.arange(8))
    monkeypatch.setattr("fastres.training.step.first_step", None)
    step(1, torch.rand(8, 3, 8, 8), torch.arange(8))


def test_magnitudes_by_hand() -> None:
    network = nn.Linear(2, 2)
    network.weight.grad = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    assert gradient_check._sizes(network) == {"weight": 3.0, "bias": 0.0}
    network.weight.requires_grad_(False)
    assert gradient_check._sizes(network) == {"bias": 0.0}
