"""What every optimizer, schedule and average must do, by itself and together: learn, resume to the bit, compile."""

import io
import random

import pytest
import torch
from torch import Tensor, nn
from update_options import AVERAGES, EPOCHS, OPTIMIZERS, SCHEDULES, STEPS_PER_EPOCH, batch, recipe, step_for

from fastres.optim import total_steps
from fastres.optim.rules import RULES
from fastres.recipe import optimizers, schedules

STEPS = total_steps(EPOCHS, STEPS_PER_EPOCH)
ALONE = [
    *((name, "constant", "none") for name in OPTIMIZERS),
    *(("sgd", name, "none") for name in SCHEDULES),
    *(("sgd", "constant", name) for name in AVERAGES),
]
# Each optimizer with each average, and with as many schedules.
TOGETHER = [
    (optimizer, list(SCHEDULES)[(one + other) % len(SCHEDULES)], average)
    for one, optimizer in enumerate(OPTIMIZERS)
    for other, average in enumerate(AVERAGES)
]


def bits(network: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in network.state_dict().values()])


def test_every_kind_is_in_the_registry() -> None:
    tables = optimizers.OPTIMIZERS.under(optimizers.OptimizerConfig)
    assert {table["name"] for table in OPTIMIZERS.values()} == set(tables)
    assert set(RULES) == set(tables.values())
    assert set(SCHEDULES) == set(schedules.SCHEDULES.under(schedules.ScheduleConfig))


@pytest.mark.parametrize(("optimizer", "schedule", "average"), ALONE, ids=str)
def test_the_loss_falls(optimizer: str, schedule: str, average: str) -> None:
    step = step_for(recipe(optimizer, schedule, average))
    losses = [step(number, *batch())[0].item() for number in range(STEPS)]
    assert losses[-1] < 0.9 * losses[0], losses
    assert step.is_finite()


@pytest.mark.parametrize(("optimizer", "schedule", "average"), TOGETHER, ids=str)
def test_an_interruption_anywhere_leaves_the_same_bits(optimizer: str, schedule: str, average: str) -> None:
    options = recipe(optimizer, schedule, average)
    straight = step_for(options)
    interrupted = step_for(options)
    at = random.Random(f"{optimizer} {schedule} {average}").randint(1, STEPS - 1)
    for number in range(STEPS):
        if number == at:
            file = io.BytesIO()
            torch.save(interrupted.state(), file)
            file.seek(0)
            interrupted = step_for(options)
            interrupted(0, *batch(99))  # whatever this leaves behind has to go
            interrupted.load_state(torch.load(file, weights_only=True))
        straight(number, *batch(number))
        interrupted(number, *batch(number))
    assert torch.equal(bits(straight.network), bits(interrupted.network)), f"interrupted after {at} steps"
    assert torch.equal(bits(straight.averaged), bits(interrupted.averaged))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "schedule", "average"),
    [("muon", "knots", "lookahead"), ("muon, adamw", "linear", "ema"), ("nesterov", "knots", "none")],
    ids=str,
)
def test_compiled_agrees_with_eager(optimizer: str, schedule: str, average: str) -> None:
    losses = []
    for compiled in (False, True):
        step = step_for(recipe(optimizer, schedule, average, compile=compiled))
        losses.append([step(number, *batch(number % 2))[0].item() for number in range(8)])
        assert step.loss_and_correct.active == compiled
    # fp32 rounds by 6e-8; what fusing changes of it grows by less than tenfold a step of such a small network, in which
    # an orthogonalised update amplifies small singular values up to 3.4445⁵ times.
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_update_of_muon_compiles_without_a_break() -> None:
    """No value is read back and no branch depends on one: the same mathematics as one graph."""
    from fastres.optim.muon import orthogonalise

    torch.manual_seed(0)
    updates = [torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3), torch.randn(12, 2, 1, 1)]
    compiled = torch.compile(lambda *x: orthogonalise(list(x), 5), fullgraph=True, dynamic=False)(*updates)
    for one, other in zip(compiled, orthogonalise(updates, 5), strict=True):
        # As above: 6e-8, amplified by at most 3.4445⁵ = 485.
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_an_optimizers_step_can_be_captured(optimizer: str) -> None:
    """The optimizer alone as a CUDA graph, with rates that are tensors, against the eager step."""
    steps = [step_for(recipe(optimizer), "cuda") for _ in range(2)]
    eager, captured = (step.optimizer for step in steps)
    for optimiser in (eager, captured):
        for group in optimiser.param_groups:
            group["lr"] = torch.tensor(group["lr"], device="cuda")
            group["capturable"] = True
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter).cumsum(0) * 1e-3
    eager.step()
    captured.step()  # what is allocated at first, is
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for _ in range(3):
        eager.step()
        graph.replay()
    torch.cuda.synchronize()
    assert torch.allclose(bits(steps[0].network), bits(steps[1].network), rtol=1e-6, atol=1e-7)
