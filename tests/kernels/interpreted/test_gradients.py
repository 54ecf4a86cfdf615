"""The functions in autograd: who needs a gradient, how often, through which output; parameters that are absent."""

import itertools
from typing import Any

import pytest
import torch
from norm_cases import (
    FORMS,
    SECONDS,
    Case,
    assert_same,
    by_function,
    by_pytorch,
    call,
    clone,
    compare,
    draw,
    leaves,
    plan_of,
    statistics,
)
from torch.autograd import forward_ad

from fastres.kernels import Norm
from fastres.kernels.batch_norm import launch

CASE = Case("add", "relu", shape=(3, 6, 3, 4))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("fork", [False, True], ids=["one reader", "two readers"])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("second", SECONDS)
def test_function(second: str, activation: str, fork: bool, training: bool) -> None:
    case = Case(second, activation, dtype=torch.bfloat16, training=training, fork=fork, shape=CASE.shape)
    inputs = draw(case)
    found = by_function(case, inputs)
    compare(case, inputs, found)
    assert_same(found, by_function(case, inputs))


def test_two_forwards_before_one_backward() -> None:
    """A layer that is used twice: each call keeps its own statistics, the running ones move twice."""
    case = CASE
    first, second = draw(case, 1), draw(case, 2)
    shared = draw(case, 3).x_norm
    first, second = (inputs._replace(x_norm=shared) for inputs in (first, second))

    apart = [by_pytorch(case, inputs, torch.float64) for inputs in (first, second)]
    together = clone(first)
    norm = together.x_norm
    assert norm.weight is not None and norm.num_batches_tracked is not None
    x1, x2 = (inputs.x.clone().requires_grad_() for inputs in (first, second))
    norm.weight.requires_grad_()
    y1 = call(case, first._replace(x=x1, x_norm=norm))
    y2 = call(case, second._replace(x=x2, x_norm=norm))
    dx1, dx2, weight = torch.autograd.grad([y1, y2], [x1, x2, norm.weight], [first.dy, second.dy])
    # Gradients and sums of 36 rows below 50 in fp32, a few roundings each: 50·2⁻²⁴·8 = 2.4e-5.
    for found, expected in (
        (dx1, apart[0]["dx"]),
        (dx2, apart[1]["dx"]),
        (weight, apart[0]["x_weight"] + apart[1]["x_weight"]),
    ):
        assert torch.allclose(found.double(), expected, rtol=0, atol=2.4e-5)
    moved = clone(first, torch.float64)
    by = [moved._replace(x=inputs.x.double()) for inputs in (first, second)]
    for inputs in by:
        torch.nn.functional.batch_norm(inputs.x, *moved.x_norm[2:4], training=True)
    # Values below 3, two updates of three roundings each.
    assert torch.allclose(norm.running_mean.double(), moved.x_norm.running_mean, rtol=0, atol=18 * 2**-24)  # type: ignore[arg-type,union-attr]
    assert norm.num_batches_tracked == 5


@pytest.mark.parametrize("second", SECONDS)
def test_backward_twice(second: str) -> None:
    """retain_graph: the same bits again; without it PyTorch's error."""
    case = Case(second, "relu", shape=CASE.shape)
    inputs = draw(case)
    x = inputs.x.requires_grad_()
    y = call(case, inputs)
    (once,) = torch.autograd.grad(y, x, inputs.dy, retain_graph=True)
    (twice,) = torch.autograd.grad(y, x, inputs.dy)
    assert torch.equal(once, twice)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, inputs.dy)


def test_second_derivative_is_refused() -> None:
    """The gradient comes from kernels, through which autograd does not see: it would be silently wrong."""
    inputs = draw(CASE)
    x = inputs.x.requires_grad_()
    (dx,) = torch.autograd.grad(call(CASE, inputs), x, inputs.dy.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_is_refused(grad: bool) -> None:
    """Under no_grad too, which it passes through: without a word the derivative would be lost."""
    inputs = draw(CASE)
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        x = forward_ad.make_dual(inputs.x, inputs.dy)
        with pytest.raises(NotImplementedError, match="forward mode"):
            call(CASE, inputs._replace(x=x))


def test_saved_tensors_that_were_changed_are_noticed() -> None:
    inputs = draw(CASE)
    weight = inputs.x_norm.weight
    assert weight is not None
    y = call(CASE, inputs._replace(x=inputs.x.requires_grad_()))
    weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(inputs.dy)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("second", SECONDS)
def test_some_gradients(second: str, training: bool) -> None:
    """Frozen weights, an input or a residual without gradient: the others keep their bits."""
    case = Case(second, "relu", training=training, shape=(2, 6, 3, 3))
    inputs = draw(case)
    everything = by_function(case, inputs)
    names = list(leaves(inputs))
    kinds = [["dx"], ["dsecond"], ["x_weight", "z_weight"], ["x_bias", "z_bias"]]
    for chosen in itertools.product([False, True], repeat=len(kinds)):
        wanted = [name for on, kind in zip(chosen, kinds, strict=True) if on for name in kind if name in names]
        fresh = clone(inputs)
        for name in wanted:
            leaves(fresh)[name].requires_grad_()
        y = call(case, fresh)
        assert torch.equal(y, everything["y"])
        assert y.requires_grad == bool(wanted)
        if wanted:
            y.backward(inputs.dy)
        for name, tensor in leaves(fresh).items():
            assert (tensor.grad is not None) == (name in wanted)
            if tensor.grad is not None:
                assert torch.equal(tensor.grad, everything[name]), (name, wanted)


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("form", FORMS)
def test_some_gradients_in_every_form(form: str, second: str) -> None:
    """What the launcher is not asked for it does not compute, and the rest keeps its bits (fp32: nothing is rounded
    on its way through memory)."""
    for training, activation in ((True, "relu"), (False, "silu")):
        case = Case(second, activation, form, training=training, fork=True, shape=(3, 6, 3, 5))
        x, other, x_norm, z_norm, dy, dy2 = draw(case)
        plan = plan_of(form, case.rows)
        _, moments, bits = launch.forward(x, other, x_norm, z_norm, training, activation, True, plan)
        given = bits if bits.numel() else None
        results = {
            needs: launch.backward(
                dy, dy2, x, other, second, given, moments, x_norm, z_norm, training, activation, *needs, plan
            )
            for needs in itertools.product([True, False], [True, False] if second != "none" else [False], [True, False])
        }
        everything = results[True, second != "none", True]
        for needs, found in results.items():
            for need, name in zip(needs, ("dx", "dsecond", "sums"), strict=True):
                value = getattr(found, name)
                if need:
                    assert torch.equal(value, getattr(everything, name)), (needs, name)
                elif name != "sums":
                    assert not value.numel()


@pytest.mark.parametrize("second", SECONDS)
def test_fork_of_which_one_is_read(second: str) -> None:
    """Either output alone gives the bits of a call that does not fork; a gradient of zeros for the other, too."""
    case = Case(second, "relu", shape=CASE.shape)
    inputs = draw(case)
    expected = by_function(case, inputs)
    zeros = torch.zeros_like(inputs.dy)
    for index in (0, 1, 2):
        fresh = clone(inputs)
        wanted = leaves(fresh)
        for tensor in wanted.values():
            tensor.requires_grad_()
        outputs = call(case, fresh, fork=True)
        if index < 2:
            gradients = torch.autograd.grad(outputs[index], list(wanted.values()), inputs.dy)
        else:
            gradients = torch.autograd.grad(outputs, list(wanted.values()), [zeros, inputs.dy])
        for name, gradient in zip(wanted, gradients, strict=True):
            assert torch.equal(gradient, expected[name])


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("absent", ["weight", "bias", "both"])
def test_without_weight_or_bias(absent: str, second: str) -> None:
    for training in (True, False):
        case = Case(second, "silu", training=training, shape=CASE.shape)
        inputs = draw(case)
        gone: dict[str, Any] = dict.fromkeys(("weight", "bias") if absent == "both" else (absent,))
        z_norm = inputs.z_norm and inputs.z_norm._replace(**gone)
        inputs = inputs._replace(x_norm=inputs.x_norm._replace(**gone), z_norm=z_norm)
        compare(case, inputs, by_function(case, inputs))


@pytest.mark.parametrize("second", SECONDS)
def test_without_running_statistics(second: str) -> None:
    case = Case(second, "relu", shape=CASE.shape)
    inputs = draw(case)
    gone: dict[str, Any] = dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"))
    z_norm = inputs.z_norm and inputs.z_norm._replace(**gone)
    inputs = inputs._replace(x_norm=inputs.x_norm._replace(**gone), z_norm=z_norm)
    compare(case, inputs, by_function(case, inputs))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_momentum_and_eps(momentum: float) -> None:
    """Each BatchNorm's own; 0 leaves the running statistics as they are, bit for bit, 1 replaces them."""
    case = Case("dual", "none", shape=CASE.shape)
    inputs = draw(case)
    assert inputs.z_norm is not None
    x_norm = inputs.x_norm._replace(momentum=momentum, eps=0.1)
    inputs = inputs._replace(x_norm=x_norm, z_norm=inputs.z_norm._replace(momentum=0.25, eps=1.0))
    found = by_function(case, inputs)
    compare(case, inputs, found)
    if momentum == 0:
        assert torch.equal(found["x_running_mean"], inputs.x_norm.running_mean)  # type: ignore[arg-type]
        assert torch.equal(found["x_running_var"], inputs.x_norm.running_var)  # type: ignore[arg-type]


@pytest.mark.parametrize("second", SECONDS)
def test_no_grad(second: str) -> None:
    """The same output, running statistics that move, nothing kept."""
    case = Case(second, "relu", shape=CASE.shape)
    inputs = draw(case)
    expected = by_function(case, inputs)
    fresh = clone(inputs)
    fresh.x.requires_grad_()
    with torch.no_grad():
        y = call(case, fresh)
    assert not y.requires_grad
    assert torch.equal(y, expected["y"])
    for name, value in statistics(fresh).items():
        assert torch.equal(value, expected[name])
    kept = launch.forward(*fresh[:4], True, "relu", False)
    assert not kept.bits.numel()


def test_running_statistics_of_views() -> None:
    """Statistics that are parts of one flat tensor move in place there."""
    inputs = draw(CASE)
    flat = torch.zeros(12, device=inputs.x.device)
    norm = Norm(*inputs.x_norm[:2], flat[:6], flat[6:])
    call(CASE, inputs._replace(x_norm=norm))
    assert flat.ne(0).all()
