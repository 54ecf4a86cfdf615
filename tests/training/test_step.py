"""One step against the same mathematics written out, in fp64; compiled against eager; state and its restoring."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.engine.compile import Compiled
from fastres.models import Network, build
from fastres.recipe import Recipe
from fastres.training.step import Step

CPU = torch.device("cpu")


def recipe(**train: Any) -> Recipe:
    model = {"blocks": [1, 1], "channels": [8, 16], "strides": [1, 2], "kernels": [3, 3], "skip_kernels": [1, 1]}
    model |= train.pop("model", {})
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    train = {"compile": False, "precision": "fp32"} | train
    schedule = {"name": "constant"}
    return Recipe.model_validate({"model": model, "optimizer": optimizer, "schedule": schedule, "train": train})


def step_for(options: Recipe, steps_per_epoch: int = 10) -> Step:
    torch.manual_seed(0)
    network = build(options.model, 10, 16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Step(network, options, steps_per_epoch, CPU)


def batch(number: int = 0, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size, 3, 16, 16, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 10, (size,), generator=generator)


def flat(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize(
    ("compiled", "smoothing"),
    [(False, 0.0), (False, 0.1), *(pytest.param(True, each, marks=pytest.mark.slow) for each in (0.0, 0.1))],
)
def test_a_mixed_batch_against_dense_targets_in_fp64(smoothing: float, compiled: bool) -> None:
    step = step_for(recipe(label_smoothing=smoothing, compile=compiled))
    reference = copy.deepcopy(step.network).double()
    images, labels = batch()
    partners, weight = labels.roll(1), torch.tensor([0.7])
    loss, correct = step(0, images, labels, partners, weight)
    logits = reference(images.double())
    dense = 0.7 * F.one_hot(labels, 10).double() + 0.3 * F.one_hot(partners, 10).double()
    targets = dense * (1 - smoothing) + smoothing / 10
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    # fp32 rounds each of some hundred operations a logit by 6e-8, and 0.7 itself by 1e-8.
    assert loss.item() == pytest.approx(expected.item(), rel=2e-5)
    assert correct.item() == pytest.approx(dense.gather(1, logits.argmax(1, keepdim=True)).sum().item(), abs=1e-6)
    gradients = torch.autograd.grad(expected, list(reference.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(reference.parameters(), gradients, strict=True):
            parameter -= 0.1 * (gradient + 0.01 * parameter)
    # One step of 0.1 times gradients near 1, with relative errors of some 1e-6 after two BatchNorms.
    assert torch.allclose(flat(step.network), flat(reference), atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_two_steps_against_fp64(smoothing: float, clip: float | None) -> None:
    options = recipe(label_smoothing=smoothing, grad_clip=clip)
    step = step_for(options)
    reference = copy.deepcopy(step.network).double()
    velocity = [torch.zeros_like(parameter) for parameter in reference.parameters()]
    for number in range(2):
        images, labels = batch(number)
        loss, correct = step(number, images, labels)
        logits = reference(images.double())
        targets = F.one_hot(labels, 10).double() * (1 - smoothing) + smoothing / 10
        expected = -(targets * logits.log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(expected, list(reference.parameters()))
        norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))  # type: ignore[arg-type]
        scale = min(1.0, clip / norm.item()) if clip else 1.0
        with torch.no_grad():
            for parameter, gradient, speed in zip(reference.parameters(), gradients, velocity, strict=True):
                speed.mul_(0.9).add_(gradient * scale + 0.01 * parameter)
                parameter.sub_(0.1 * speed)
        assert correct.item() == (logits.argmax(1) == labels).sum().item()
        # fp32 carries 6e-8; sums over up to 12·16·16 terms and two steps multiply it by less than 100.
        assert loss.item() == pytest.approx(expected.item(), rel=6e-6)
    assert torch.allclose(flat(step.network), flat(reference), atol=2e-5)


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_compiled_agrees_with_eager(precision: str) -> None:
    losses = []
    for compiled in (False, True):
        step = step_for(recipe(compile=compiled, precision=precision))
        losses.append([step(number, *batch(number % 2))[0].item() for number in range(6)])
        assert step.loss_and_correct.active == compiled
    # bf16 has 8 bits: fusing changes which intermediate results are rounded, by 2⁻⁸ each, and six steps spread that.
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 0.05)
    assert losses[1][5] < losses[1][0]


def test_fp16_scales_its_loss() -> None:
    step = step_for(recipe(precision="fp16"))
    assert step.scaler.is_enabled()
    first = step(0, *batch())[0]
    for number in range(1, 8):
        last = step(number, *batch())[0]
    assert last < first


def test_memory_layout_changes_speed_only() -> None:
    images, labels = batch()
    step, other = step_for(recipe()), step_for(recipe())
    other.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for number in range(3):
        loss, _ = step(number, images, labels)
        expected, _ = other(number, images.contiguous(), labels)
    # The same fp32 sums in another order.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": 0.9},
        {"precision": "fp16"},
        {"model": {"dropout": 0.3}},
        pytest.param({"model": {"dropout": 0.3}, "compile": True, "precision": "bf16"}, marks=pytest.mark.slow),
        {"channels_last": False},
    ],
    ids=str,
)
def test_a_restored_step_goes_on_with_the_same_bits(options: dict[str, Any]) -> None:
    settings = recipe(**options)
    straight = step_for(settings)
    for number in range(4):
        straight(number, *batch(number))
    state = None
    halves = step_for(settings)
    for number in range(2):
        halves(number, *batch(number))
    state = copy.deepcopy(halves.state())
    resumed = step_for(settings)
    torch.manual_seed(99)
    resumed.load_state(state)
    for number in range(2, 4):
        resumed(number, *batch(number))
    assert torch.equal(flat(resumed.network), flat(straight.network))
    assert torch.equal(flat(resumed.averaged), flat(straight.averaged))


def test_dropout_draws_anew_each_step() -> None:
    step = step_for(recipe(model={"dropout": 0.5}))
    step.optimizer.param_groups[0]["initial_lr"] = 0.0
    losses = {step(number, *batch())[0].item() for number in (0, 1, 0)}
    assert len(losses) == 2, "two different masks, and the first again"


def test_the_rate_of_each_step_reaches_the_optimizer() -> None:
    settings = Recipe.model_validate(recipe(epochs=2).model_dump() | {"schedule": {"name": "linear"}})
    step = step_for(settings, steps_per_epoch=2)
    rates = []
    for number in range(4):
        step(number, *batch(number))
        rates.append(step.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_what_cannot_be_compiled_runs_eagerly_and_says_why() -> None:
    def unsupported(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1

    compiled = Compiled(unsupported, enabled=True)
    assert compiled(torch.zeros(2)).tolist() == [1, 1]
    assert not compiled.active
    assert compiled.fallback_reason is not None
    assert compiled.fallback_reason.startswith("compilation failed")


def test_without_a_compiler_the_note_has_the_line_that_installs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    compiled = Compiled(lambda x: x, enabled=True)
    assert not compiled.active
    assert "apt-get install g++" in str(compiled.fallback_reason)


UPDATES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"name": "sgd", "momentum": 0.0}},
    "momentum": {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}},
    "adam": {"optimizer": {"name": "adam", "lr": 0.01}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.01}},
    "muon": {"optimizer": {"name": "muon", "renormalise_every": 2, "auxiliary": {"momentum": 0.9}}},
    "muon and adam": {"optimizer": {"name": "muon", "auxiliary": {"name": "adamw", "lr": 0.01}}},
    "ema": {"train": {"ema": 0.9}},
    "lookahead": {"train": {"lookahead": {"every": 2}}},
    "both": {"train": {"lookahead": {"every": 2}, "ema": 0.9}},
    "dropout": {"model": {"dropout": 0.5}},
    "fp16": {"train": {"precision": "fp16", "grad_clip": 1.0}},
}


def drawn(options: Recipe, seed: int) -> Network:
    torch.manual_seed(seed)
    return build(options.model, 10, 16)


@pytest.mark.parametrize("name", UPDATES)
def test_a_restarted_step_trains_to_the_bits_of_a_new_one(name: str) -> None:
    """Weights, statistics, optimizer, averages and scale, after a start from other weights and another seed."""
    values = UPDATES[name]
    model = {"blocks": [1, 1], "channels": [8, 16], "strides": [1, 2], "kernels": [3, 3], "skip_kernels": [1, 1]}
    values = values | {
        "model": model | values.get("model", {}),
        "train": {"compile": False, "precision": "fp32", "epochs": 2} | values.get("train", {}),
    }
    options = Recipe.model_validate(values)
    restarted = Step(drawn(options, 0).to(memory_format=torch.channels_last), options, 3, CPU)  # type: ignore[call-overload]
    for number in range(3):
        restarted(number, *batch(number + 10))
    places = [tensor.data_ptr() for tensor in tensors_of(restarted.state())]
    restarted.restart(drawn(options, 7), 7)

    values["train"] |= {"seed": 7}
    options = Recipe.model_validate(values)
    new = Step(drawn(options, 7).to(memory_format=torch.channels_last), options, 3, CPU)  # type: ignore[call-overload]
    for number in range(4):
        results = [step(number, *batch(number)) for step in (restarted, new)]
        assert torch.equal(results[0][0], results[1][0])
    found, expected = (list(tensors_of(step.state())) for step in (restarted, new))
    assert len(found) == len(expected) > 20
    assert all(
        torch.equal(one, other) and one.stride() == other.stride() for one, other in zip(found, expected, strict=True)
    )
    assert [tensor.data_ptr() for tensor in found] == places, "nothing has moved"
    for average, twin in ((restarted.ema, new.ema), (restarted.lookahead, new.lookahead)):
        assert (average is None) == (twin is None)
    assert restarted.scaler.state_dict() == new.scaler.state_dict()


def tensors_of(state: Any) -> Iterator[Tensor]:
    """All tensors inside dictionaries and lists, in order."""
    if isinstance(state, Tensor):
        yield state
    for value in state.values() if isinstance(state, dict) else state if isinstance(state, list) else ():
        yield from tensors_of(value)
