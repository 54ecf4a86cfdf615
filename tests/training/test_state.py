"""State of a run in a checkpoint: taken over to the bit where it is one, refused where it is anything else."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastres.models import build
from fastres.recipe import Recipe
from fastres.runs.schema import Best
from fastres.training.state import TrainState
from fastres.training.step import Step

TABLES = {
    "model": {"blocks": [1], "channels": [8], "strides": [4]},
    "train": {"precision": "fp16", "compile": False, "ema": 0.9, "lookahead": {"every": 1}},
}
OPTIMIZERS = {
    "sgd": {"name": "sgd"},
    "adamw": {"name": "adamw"},
    "muon": {"name": "muon", "auxiliary": {"name": "adamw"}},
}


def step_of(optimizer: str, seed: int = 0) -> Step:
    recipe = Recipe.model_validate(TABLES | {"optimizer": OPTIMIZERS[optimizer]})
    torch.manual_seed(seed)
    return Step(build(recipe.model, 10, 8), recipe, 10, torch.device("cpu"))


def trained(optimizer: str) -> dict[str, Any]:
    step = step_of(optimizer)
    step(0, torch.rand(4, 3, 8, 8), torch.arange(4))
    return copy.deepcopy(step.state())


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict | list):
        return [
            tensor for part in (value.values() if isinstance(value, dict) else value) for tensor in tensors_of(part)
        ]
    return [value] if isinstance(value, torch.Tensor) else []


def states_of(state: dict[str, Any]) -> list[dict[int, dict[str, Any]]]:
    """Of each optimizer of a step."""
    return [part["state"] for part in state["optimizer"].get("optimizers", [state["optimizer"]])]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_of_what_was_read_is_kept(optimizer: str) -> None:
    """Those are views of a file: where somebody cut it short, a step would end the process."""
    given, step = trained(optimizer), step_of(optimizer)
    step.load_state(given)
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(given)}
    kept = tensors_of(step.state())
    assert len(kept) == len(tensors_of(given))
    assert all(tensor.untyped_storage().data_ptr() not in places for tensor in kept)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_taken_over_to_the_bit_with_the_recipes_rates(optimizer: str) -> None:
    state = trained(optimizer)
    for part in state["optimizer"].get("optimizers", [state["optimizer"]]):
        for group in part["param_groups"]:
            group["lr"] = group["weight_decay"] = 1e9  # a file sets no rate
    resumed, straight = step_of(optimizer, seed=1), step_of(optimizer)
    straight(0, torch.rand(4, 3, 8, 8), torch.arange(4))
    straight.load_state(trained(optimizer))
    resumed.load_state(state)
    images = torch.rand(4, 3, 8, 8)
    for step in (resumed, straight):
        step(1, images, torch.arange(4))
    for part in ("network", "ema", "lookahead"):
        after = straight.state()[part]
        assert all(torch.equal(tensor, after[name]) for name, tensor in resumed.state()[part].items())


def drop(state: dict[str, Any]) -> None:
    del state["network"]["fc.weight"]


def add(state: dict[str, Any]) -> None:
    state["ema"]["more"] = torch.zeros(1)


def reshape(state: dict[str, Any]) -> None:
    state["network"]["fc.bias"] = torch.zeros(1)  # which would be broadcast


def retype(state: dict[str, Any]) -> None:
    state["lookahead"]["fc.bias"] = state["lookahead"]["fc.bias"].double()


def no_average(state: dict[str, Any]) -> None:
    state["ema"] = None


def scale_of_text(state: dict[str, Any]) -> None:
    state["scaler"]["scale"] = "65536"


def moment_of_another_shape(state: dict[str, Any]) -> None:
    moments = states_of(state)[-1]
    first = next(iter(moments))
    moments[first] = {key: torch.zeros(3, 5, 7) for key in moments[first]}


def moment_of_no_parameter(state: dict[str, Any]) -> None:
    states_of(state)[-1][999] = {}


def other_parameters(state: dict[str, Any]) -> None:
    part = state["optimizer"].get("optimizers", [state["optimizer"]])[-1]
    part["param_groups"][0]["params"] = part["param_groups"][0]["params"][1:]


def no_optimizer(state: dict[str, Any]) -> None:
    state["optimizer"] = {"state": [], "param_groups": None}


DAMAGES = (
    *(drop, add, reshape, retype, no_average, scale_of_text),
    *(moment_of_another_shape, moment_of_no_parameter, other_parameters, no_optimizer),
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_another_steps_state_is_refused(damage: Callable[[dict[str, Any]], None], optimizer: str) -> None:
    state = trained(optimizer)
    damage(state)
    with pytest.raises((ValueError, TypeError, KeyError)):
        step_of(optimizer).load_state(state)


def test_progress_comes_back() -> None:
    at = TrainState(epoch=3, step=2, best=Best(metric="val_loss", epoch=2, value=0.5), seconds=1.5)
    assert TrainState.of(at.state()) == at
    assert TrainState.of({"epoch": 1, "step": 0}) == TrainState(epoch=1), "of a version that counted less"


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": 1.5},
        {"epoch": "1"},
        {"step": 10**20},
        {"seconds": float("nan")},
        {"seconds": -1.0},
        {"best": {"metric": "val_loss", "epoch": -1, "value": 0.5}},
        {"best": 3},
        {"images": None},
        {"epok": 1},
    ],
)
def test_progress_that_no_run_made_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        TrainState.of(TrainState().state() | change)
