"""Schedules against torch's own, groups, averages."""

import math

import pytest
import torch
from torch import nn

from fastres.optim import Ema, build_optimizer, factor, parameter_groups
from fastres.recipe import Adam, AdamW, Constant, Cosine, Linear, OneCycle, Sgd, Step


def torchs(scheduler: type, steps: int, **options: object) -> list[float]:
    """The rates that a scheduler of torch gives an optimizer of rate 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = scheduler(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def ours(schedule: object, epochs: int, steps_per_epoch: int = 1) -> list[float]:
    return [factor(schedule, step, steps_per_epoch, epochs) for step in range(epochs * steps_per_epoch)]  # type: ignore[arg-type]


# torch updates its rates recursively in double precision: 1e-9 allows for the rounding of 50 such steps.
EXACT = 1e-9


def test_cosine_once_an_epoch_is_the_reports() -> None:
    lr = torch.optim.lr_scheduler
    theirs = torchs(lr.CosineAnnealingLR, 50, T_max=50)
    assert ours(Cosine(per="epoch"), 50) == pytest.approx(theirs, abs=EXACT)
    twice = [rate for rate in theirs for _ in range(4)]
    assert ours(Cosine(per="epoch"), 50, 4) == pytest.approx(twice, abs=EXACT)


def test_linear_and_step_and_constant() -> None:
    lr = torch.optim.lr_scheduler
    theirs = torchs(lr.LinearLR, 20, start_factor=1.0, end_factor=0.1, total_iters=20)
    assert ours(Linear(final=0.1), 20) == pytest.approx(theirs, abs=EXACT)
    theirs = torchs(lr.MultiStepLR, 20, milestones=[5, 12], gamma=0.2)
    assert ours(Step(milestones=[5, 12], gamma=0.2, per="epoch"), 20) == pytest.approx(theirs, abs=EXACT)
    assert ours(Step(milestones=[0.5], gamma=0.5), 1, 4) == [1, 1, 0.5, 0.5]
    assert ours(Constant(), 3, 2) == [1.0] * 6


def test_one_cycle_is_torchs_up_to_one_step() -> None:
    steps = 1000
    theirs = torchs(
        torch.optim.lr_scheduler.OneCycleLR, steps, max_lr=1.0, total_steps=steps, cycle_momentum=False, pct_start=0.3
    )
    # torch lets each phase end on its last step, we let it end after it: a shift of one step in 300, at a slope of at
    # most (π/2)/300 a step.
    assert ours(OneCycle(), 10, 100) == pytest.approx(theirs, abs=math.pi / 2 / 300 * 1.01)


def test_warm_up_rises_evenly_to_the_start_of_the_rest() -> None:
    rates = ours(Constant(warmup_epochs=2), 4, 3)
    assert rates == pytest.approx([1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1, 1, 1, 1, 1, 1])
    rates = ours(Cosine(warmup_epochs=2, per="epoch"), 6)
    assert rates == pytest.approx([1 / 3, 2 / 3, *torchs(torch.optim.lr_scheduler.CosineAnnealingLR, 4, T_max=4)])


def test_groups_keep_norms_and_biases_from_decaying() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decaying, resting = parameter_groups(network, 0.1, decay_norm_and_bias=False)
    assert [parameter.ndim for parameter in decaying["params"]] == [4, 2]
    assert [parameter.ndim for parameter in resting["params"]] == [1, 1, 1, 1]
    assert (decaying["weight_decay"], resting["weight_decay"]) == (0.1, 0.0)
    [everything] = parameter_groups(network, 0.1, decay_norm_and_bias=True)
    assert len(everything["params"]) == 6


@pytest.mark.parametrize(
    "options", [Sgd(nesterov=True, lr=0.001, momentum=0.9, weight_decay=0.0), Adam(lr=0.05), AdamW(lr=0.05)]
)
def test_optimizers_descend_rosenbrocks_valley(options: Sgd | Adam | AdamW) -> None:
    """(1 − x)² + 100 (y − x²)², minimum 0 at (1, 1); from (-1, 1), where it is 4."""
    point = nn.Module()
    point.xy = nn.Parameter(torch.tensor([-1.0, 1.0]))
    optimizer = build_optimizer(options, point)
    for _ in range(4000):
        optimizer.zero_grad()
        x, y = point.xy
        value = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        value.backward()
        optimizer.step()
    # The valley is flat: 0.05 means that the curve of the valley has been followed almost to its end.
    assert value.item() < 0.05


def test_the_average_against_a_loop_in_double_precision() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema = Ema(network, 0.9)
    expected = network[0].weight.detach().double().clone()
    for update in range(30):
        with torch.no_grad():
            network[0].weight.add_(torch.randn_like(network[0].weight))
            network[1].num_batches_tracked.add_(1)  # type: ignore[operator, union-attr]
        ema.update(network)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * network[0].weight.detach().double()
    averaged = ema.network.get_parameter("0.weight").double()
    # fp32 rounds each of 30 updates by up to 6e-8 of a value below 10.
    assert torch.allclose(averaged, expected, atol=2e-5)
    assert ema.network.get_buffer("1.num_batches_tracked").item() == 30
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
