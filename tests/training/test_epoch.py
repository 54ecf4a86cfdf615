"""Steps whose numbers live on the device, as a GPU runs them, against steps that the host runs one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from update_options import AVERAGES, OPTIMIZERS, SCHEDULES, recipe

from fastres.models import build
from fastres.recipe import Recipe
from fastres.training.data import DataModule, open_data_module
from fastres.training.epoch import Runner
from fastres.training.metrics import EpochMetrics, StallMeter
from fastres.training.step import Step

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, IMAGES = 12, 44  # three whole batches and a partial one: four steps an epoch, as update_options has it
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Each optimizer with each average, and with as many schedules.
OPTIONS = [
    (optimizer, list(SCHEDULES)[(one + other) % len(SCHEDULES)], average)
    for one, optimizer in enumerate(OPTIMIZERS)
    for other, average in enumerate(AVERAGES)
]


class Training:
    """A tiny run of a recipe: feed, step and runner."""

    def __init__(self, options: Recipe, device: str, on_device: bool, steps_per_launch: bool = False) -> None:
        where = torch.device(device)
        self.data_module: DataModule = open_data_module(options, where, quiet=True)
        torch.manual_seed(0)
        network = build(options.model, 10, 32).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.step = Step(network, options, len(self.data_module.train), where)
        self.epoch_metrics = EpochMetrics(where)
        self.runner = Runner(self.step, self.data_module, self.epoch_metrics, StallMeter(where), on_device=on_device)
        if on_device and not steps_per_launch:
            self.runner.steps_per_launch = 1

    def run(self, first: int = 0, last: int | None = None) -> list[float]:
        """Steps `first` to `last`, counted over the run; the mean loss after each launch since its epoch began."""
        losses, per_epoch = [], len(self.data_module.train)
        at, end = first, self.step.steps if last is None else last
        while at < end:
            epoch, within = divmod(at, per_epoch)
            if not within:
                self.epoch_metrics.clear()
            for done in self.runner.epoch(epoch, within, min(per_epoch - within, end - at)):
                at += done.steps
                losses.append(self.epoch_metrics.read()[0])
        return losses


def tiny(optimizer: str = "sgd", schedule: str = "constant", average: str = "none", **tables: Any) -> Recipe:
    options = recipe(optimizer, schedule, average, batch_size=BATCH, **tables.pop("train", {})).model_dump()
    data = {"source": "shapes10", "train_images": IMAGES, "test_images": 10, "split": "none"} | tables.pop("data", {})
    return Recipe.model_validate(options | {"data": data} | tables)


def needs(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def flat(network: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().double().flatten().cpu() for tensor in network.state_dict().values()])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("optimizer", "schedule", "average"), OPTIONS, ids=str)
def test_numbers_on_the_device_train_alike(optimizer: str, schedule: str, average: str, device: str) -> None:
    needs(device)
    options = tiny(optimizer, schedule, average)
    by_host, by_device = (Training(options, device, on_device) for on_device in (False, True))
    expected, losses = by_host.run(), by_device.run()
    # The rates are rounded to fp32 (6e-8) and averages are summed in another order; ten steps of a network this small
    # multiply that by less than tenfold each, and Muon's polynomial amplifies small singular values 3.4445⁵ times.
    assert losses == pytest.approx(expected, rel=1e-3)
    assert torch.allclose(flat(by_device.step.averaged), flat(by_host.step.averaged), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "tables",
    [
        {"mix": {"cutmix_alpha": 1.0, "mixup_alpha": 0.5}},
        {"data": {"loader": "torch", "workers": 0}},
        {"train": {"epochs": 4.0, "drop_last": True}},
        {"train": {"grad_clip": 0.1}},
        {"model": {"blocks": [1], "channels": [4], "strides": [2], "dropout": 0.3}},
        {"augment": {"translate": 2, "flip": "alternating", "cutout": 8}},
    ],
    ids=str,
)
def test_what_else_a_step_reads(tables: dict[str, Any], device: str) -> None:
    """Mixing, batches that arrive, clipping, dropout's seeds and augmentation follow the counters."""
    needs(device)
    options = tiny("sgd", "linear", **tables)
    by_host, by_device = (Training(options, device, on_device) for on_device in (False, True))
    assert by_device.run() == pytest.approx(by_host.run(), rel=1e-4)  # rates are rounded to fp32, as above


@pytest.mark.parametrize("optimizer", ["muon, adamw", "nesterov"])
def test_going_on_in_the_middle_leaves_the_same_bits(optimizer: str) -> None:
    options = tiny(optimizer, "knots", "growing lookahead and ema")
    straight, first, second = (Training(options, "cpu", True) for _ in range(3))
    straight.run()
    first.run(0, 6)
    second.step.load_state(first.step.state())
    second.run(6)
    assert torch.equal(flat(second.step.averaged), flat(straight.step.averaged))


def test_small_batches_are_launched_together() -> None:
    options = tiny("sgd", "linear", train={"epochs": 2.0}, data={"train_images": 100})
    steps_per_launch, apart = (Training(options, "cpu", True, joined) for joined in (True, False))
    assert steps_per_launch.runner.steps_per_launch == 21
    launches = [done.steps for done in steps_per_launch.runner.epoch(0, 1, 6)]
    assert launches == [6]
    assert [done.steps for done in steps_per_launch.runner.epoch(0, 7, 2)] == [1, 1], (
        "whole batches, then the partial one"
    )
    assert [done.steps for done in apart.runner.epoch(0, 1, 8)] == [1] * 8
    assert torch.equal(flat(steps_per_launch.step.network), flat(apart.step.network))


def test_what_has_faded_gets_no_gradient() -> None:
    options = tiny("nesterov", "linear", train={"epochs": 2.0})
    training = Training(options, "cpu", False)
    bias = training.step.network.get_parameter("whiten.bias")
    training.run(0, 3)  # it fades over 0.75 epochs of four steps
    assert bias.grad is not None
    before = bias.detach().clone()
    training.run(3, 5)
    assert bias.grad is None and torch.equal(bias, before) and bias.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_fifty_captured_steps_without_waiting(optimizer: str) -> None:
    """Captured against eager for 50 steps, and no synchronisation within an epoch."""
    # Without partial batches: a rare kind of step would still run kernel by kernel, or be captured, late in the run.
    options = tiny(optimizer, "linear", train={"epochs": 12.5, "drop_last": True}, data={"train_images": 4 * BATCH})
    eager, captured = (Training(options, "cuda", on_device) for on_device in (False, True))
    expected = eager.run()
    # Two eager passes of each kind of launch, then captures, which synchronise by themselves: the first three epochs.
    losses = captured.run(0, 12)
    assert captured.runner.fallback_reason is None and captured.runner.captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        for epoch in range(3, 12):
            captured.epoch_metrics.clear()
            for _ in captured.runner.epoch(epoch, 0, 4):
                pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    captured.epoch_metrics.clear()
    losses += captured.run(48)
    # As above for 10 steps; 50 steps of a network that has nearly converged spread rounding a little further.
    assert losses[-1] == pytest.approx(expected[-1], rel=2e-2)
