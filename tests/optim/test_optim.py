"""Schedules against torch's own, groups, averages."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from update_options import batch, recipe, step_for

from fastres.optim import Ema, Lookahead, build_optimizer, factor, fading, total_steps
from fastres.optim.groups import group_names, group_rates, parameter_groups
from fastres.recipe import (
    AdamConfig,
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    KnotsConfig,
    LinearConfig,
    MuonConfig,
    OneCycleConfig,
    SgdConfig,
    StepConfig,
)
from fastres.recipe import LookaheadConfig as LookaheadOptions


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


def ours(schedule: object, epochs: float, steps_per_epoch: int = 1) -> list[float]:
    steps = total_steps(epochs, steps_per_epoch)
    return [factor(schedule, step, steps_per_epoch, epochs) for step in range(steps)]  # type: ignore[arg-type]


# torch updates its rates recursively in double precision: 1e-9 allows for the rounding of 50 such steps.
EXACT = 1e-9


def test_cosine_once_an_epoch_is_the_reports() -> None:
    lr = torch.optim.lr_scheduler
    theirs = torchs(lr.CosineAnnealingLR, 50, T_max=50)
    assert ours(CosineConfig(per="epoch"), 50) == pytest.approx(theirs, abs=EXACT)
    twice = [rate for rate in theirs for _ in range(4)]
    assert ours(CosineConfig(per="epoch"), 50, 4) == pytest.approx(twice, abs=EXACT)


def test_linear_and_step_and_constant() -> None:
    lr = torch.optim.lr_scheduler
    theirs = torchs(lr.LinearLR, 20, start_factor=1.0, end_factor=0.1, total_iters=20)
    assert ours(LinearConfig(final=0.1), 20) == pytest.approx(theirs, abs=EXACT)
    theirs = torchs(lr.MultiStepLR, 20, milestones=[5, 12], gamma=0.2)
    assert ours(StepConfig(milestones=[5, 12], gamma=0.2, per="epoch"), 20) == pytest.approx(theirs, abs=EXACT)
    assert ours(StepConfig(milestones=[0.5], gamma=0.5), 1, 4) == [1, 1, 0.5, 0.5]
    assert ours(ConstantConfig(), 3, 2) == [1.0] * 6


def test_one_cycle_is_torchs_up_to_one_step() -> None:
    steps = 1000
    theirs = torchs(
        torch.optim.lr_scheduler.OneCycleLR, steps, max_lr=1.0, total_steps=steps, cycle_momentum=False, pct_start=0.3
    )
    # torch lets each phase end on its last step, we let it end after it: a shift of one step in 300, at a slope of at
    # most (π/2)/300 a step.
    assert ours(OneCycleConfig(), 10, 100) == pytest.approx(theirs, abs=math.pi / 2 / 300 * 1.01)


def test_warm_up_rises_evenly_to_the_start_of_the_rest() -> None:
    rates = ours(ConstantConfig(warmup_epochs=2), 4, 3)
    assert rates == pytest.approx([1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1, 1, 1, 1, 1, 1])
    rates = ours(CosineConfig(warmup_epochs=2, per="epoch"), 6)
    assert rates == pytest.approx([1 / 3, 2 / 3, *torchs(torch.optim.lr_scheduler.CosineAnnealingLR, 4, T_max=4)])


def test_knots_are_straight_lines_and_jumps() -> None:
    points = [[0.5, 0.2], [1, 1], [2, 1], [2, 0.5], [3.5, 0]]
    epochs = np.arange(4 * 8) / 8
    expected = np.interp(epochs, [0.5, 1, 2 - 1e-12, 2, 3.5], [0.2, 1, 1, 0.5, 0])
    assert ours(KnotsConfig(points=points), 4, 8) == pytest.approx(expected, abs=EXACT)
    assert ours(KnotsConfig(points=points, per="epoch"), 4, 8) == pytest.approx(np.repeat([0.2, 1, 0.5, 1 / 6], 8))


def test_a_last_epoch_that_stops_in_its_middle() -> None:
    assert [total_steps(epochs, 10) for epochs in (7.5, 0.26, 0.001, 1.1, 3)] == [75, 3, 1, 11, 30]
    steps = ours(LinearConfig(), 2.5, 4)
    assert steps == pytest.approx([1 - step / 10 for step in range(10)])
    assert ours(LinearConfig(per="epoch"), 2.5, 4) == pytest.approx([1] * 4 + [0.6] * 4 + [0.2] * 2)
    assert ours(KnotsConfig(points=[[0, 1], [2.5, 0]]), 2.5, 4) == pytest.approx(steps)
    warm = ours(LinearConfig(warmup_epochs=0.5), 2.5, 4)
    assert warm[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert warm[-1] == pytest.approx(1 / 8)
    assert [fading(step, 4, 1.5) for step in (0, 3, 6, 9)] == [1, 0.5, 0, 0]


def test_groups_keep_norms_and_biases_from_decaying() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    options = SgdConfig(weight_decay=0.1, decay_norm_and_bias=False)
    decaying, resting = parameter_groups(group_names(network), options, group_rates(network, options))
    assert [parameter.ndim for parameter in decaying["params"]] == [4, 2]
    assert [parameter.ndim for parameter in resting["params"]] == [1, 1, 1, 1]
    assert (decaying["weight_decay"], resting["weight_decay"]) == (0.1, 0.0)
    [everything] = parameter_groups(group_names(network), SgdConfig(), {})
    assert len(everything["params"]) == 6


def test_groups_have_rates_and_decays_of_their_own() -> None:
    step = step_for(recipe("nesterov"))
    names = {id(parameter): name for name, parameter in step.network.named_parameters()}
    found = {
        names[id(parameter)]: (group["initial_lr"], group["weight_decay"] * group["initial_lr"], group["fades_after"])
        for group in step.optimizer.param_groups
        for parameter in group["params"]
    }
    # From the recipe: lr 0.02, decay 0.001 a step for what has more than one axis, whatever its rate.
    decay = pytest.approx(0.001)
    assert found["group1.conv1.weight"] == (0.02, decay, 0)
    assert found["fc.weight"] == (0.01, decay, 0)
    assert found["group2.norm1.bias"] == (0.08, 0, 0)
    assert found["whiten.bias"] == (0.04, 0, 0.75)
    assert len(step.optimizer.param_groups) == 4
    rates = []
    for number in range(4):
        step(number, *batch(number))
        rates.append(next(group["lr"] for group in step.optimizer.param_groups if group["fades_after"]))
    assert rates == pytest.approx([0.04, 0.04 * 2 / 3, 0.04 / 3, 0])


@pytest.mark.parametrize("kind", [SgdConfig, AdamWConfig])
def test_decoupled_decay_is_the_same_at_any_rate(kind: type[SgdConfig | AdamWConfig]) -> None:
    for lr in (0.1, 0.4):
        network = nn.Linear(3, 3)
        options = kind(lr=lr, weight_decay=0.01, decouple_decay=True)
        before = network.weight.detach().clone()
        optimizer = build_optimizer(options, network)
        network.weight.grad, network.bias.grad = torch.zeros(3, 3), torch.zeros(3)
        optimizer.step()
        # A product and a sum in fp32.
        assert torch.allclose(network.weight, before * 0.99, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "torchs_own"),
    [
        (SgdConfig(lr=0.05, nesterov=True), lambda p: torch.optim.SGD(p, 0.05, 0.9, nesterov=True, weight_decay=5e-4)),
        (AdamConfig(lr=0.01), lambda p: torch.optim.Adam(p, 0.01)),
        (AdamWConfig(lr=0.01), lambda p: torch.optim.AdamW(p, 0.01)),
    ],
)
def test_a_small_regression_against_torchs_plain_loops(options: Any, torchs_own: Any) -> None:
    torch.manual_seed(0)
    x, networks = torch.randn(64, 5), [nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(2)]
    y = x.prod(1, keepdim=True).tanh()
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [build_optimizer(options, networks[0]), torchs_own(networks[1].parameters())]
    losses = []
    for _ in range(100):
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            loss = (network(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-2] < 0.8 * losses[0]
    # Fused kernels round differently, by 6e-8; Adam divides by roots of small moments, which a hundred steps amplify.
    assert losses[-2] == pytest.approx(losses[-1], rel=1e-3)


def test_lookahead_by_hand() -> None:
    """Zhang et al. 2019, algorithm 1, with a share that grows over the run; BN's statistics follow the weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    weight, mean = network[0].weight, network[1].get_buffer("running_mean")
    lookahead = Lookahead(network, LookaheadOptions(every=2, decay=0.8, power=3), steps=6)
    slow, slow_mean = weight.detach().double(), mean.double().clone()
    for step in range(6):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
            mean.add_(1)
            network[1].num_batches_tracked.add_(1)  # type: ignore[operator, union-attr]
        fast, fast_mean = weight.detach().double().clone(), mean.double().clone()
        assert lookahead.due(step) == (step % 2 == 1)
        if lookahead.due(step):
            lookahead.exchange(network, lookahead.fraction(step))
        else:
            assert torch.equal(weight.detach().double(), fast), "nothing happens between exchanges"
            continue
        keep = 0.8 * ((step + 1) / 6) ** 3
        slow, slow_mean = keep * slow + (1 - keep) * fast, keep * slow_mean + (1 - keep) * fast_mean
        # fp32 rounds three exchanges of values below 10 by up to 1e-6 each.
        assert torch.allclose(weight.detach().double(), slow, atol=5e-6)
        assert torch.allclose(mean.double(), slow_mean, atol=5e-6)
        assert torch.equal(lookahead.network.get_parameter("0.weight"), weight)
    assert lookahead.fraction(5) == pytest.approx(0.2)
    assert lookahead.network.get_buffer("1.num_batches_tracked").item() == 6


@pytest.mark.parametrize(
    "options",
    [
        SgdConfig(nesterov=True, lr=0.001, momentum=0.9, weight_decay=0.0),
        AdamConfig(lr=0.05),
        AdamWConfig(lr=0.05),
        MuonConfig(auxiliary=AdamConfig(lr=0.05)),  # the point has one axis: all of it is the auxiliary's
    ],
)
def test_optimizers_descend_rosenbrocks_valley(options: SgdConfig | AdamConfig | AdamWConfig | MuonConfig) -> None:
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
        ema.update(network, ema.fraction(update))
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * network[0].weight.detach().double()
    averaged = ema.network.get_parameter("0.weight").double()
    # fp32 rounds each of 30 updates by up to 6e-8 of a value below 10.
    assert torch.allclose(averaged, expected, atol=2e-5)
    assert ema.network.get_buffer("1.num_batches_tracked").item() == 30
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
