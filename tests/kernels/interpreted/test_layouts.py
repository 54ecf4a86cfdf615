"""Tensors as they come: NCHW, expanded, sliced. All give the bits of their channels-last copies."""

from typing import Any

import pytest
import torch
from norm_cases import DEVICE, SECONDS, Case, assert_same, draw
from torch import Tensor

from fastres.kernels import batch_norm_act, dual_batch_norm_act

CASE = Case("add", "relu", dtype=torch.bfloat16, shape=(3, 6, 5, 4))


def run(second: str, x: Tensor, other: Tensor | None, dy: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Output and gradients, through the public functions."""
    inputs = draw(Case(second, "relu", dtype=x.dtype, shape=tuple(x.shape)), seed)  # type: ignore[arg-type]
    x = x.detach().requires_grad_()
    other = None if other is None else other.detach().requires_grad_()
    options: dict[str, Any] = {"training": True, "activation": "relu", "backend": "triton"}
    if second == "dual":
        assert other is not None and inputs.z_norm is not None
        y = dual_batch_norm_act(x, inputs.x_norm, other, inputs.z_norm, **options)
    else:
        y = batch_norm_act(x, *inputs.x_norm[:4], other, **options)
    assert y.is_contiguous(memory_format=torch.channels_last)
    leaves = [x] if other is None else [x, other]
    return {"y": y.detach(), **dict(zip(("dx", "dsecond"), torch.autograd.grad(y, leaves, dy), strict=False))}


def sliced(x: Tensor) -> Tensor:
    """The same values, every second one of a larger tensor in every direction."""
    large = torch.full([2 * size for size in x.shape], float("nan"), dtype=x.dtype, device=x.device)
    view = large.contiguous(memory_format=torch.channels_last)[::2, ::2, ::2, ::2]
    return view.copy_(x)


def some_channels(x: Tensor) -> Tensor:
    """The same values, the middle channels of a channels-last tensor: each row contiguous, rows apart."""
    n, c, h, w = x.shape
    large = torch.full((n, 3 * c, h, w), float("nan"), dtype=x.dtype, device=x.device)
    return large.contiguous(memory_format=torch.channels_last)[:, c : 2 * c].copy_(x)


def turned(x: Tensor) -> Tensor:
    """The same values with height and width swapped in memory."""
    return x.transpose(2, 3).contiguous(memory_format=torch.channels_last).transpose(2, 3)


LAYOUTS: dict[str, Any] = {
    "NCHW": lambda x: x.contiguous(memory_format=torch.contiguous_format),
    "sliced": sliced,
    "some channels": some_channels,
    "turned": turned,
}


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, second: str) -> None:
    """Of the input, of what is added, of the gradient, and of all."""
    lay = LAYOUTS[layout]
    inputs = draw(Case(second, "relu", dtype=torch.bfloat16, shape=CASE.shape))
    tensors = inputs.x, inputs.second, inputs.dy
    expected = run(second, *tensors)
    for which in ((0,), (1,), (2,), (0, 1, 2)):
        changed = [lay(t) if index in which and t is not None else t for index, t in enumerate(tensors)]
        assert_same(expected, run(second, *changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("second", SECONDS)
def test_expanded_gradient(second: str) -> None:
    """What y.sum().backward() and y.mean((2, 3)) send back: strides of 0."""
    inputs = draw(Case(second, "relu", dtype=torch.bfloat16, shape=CASE.shape))
    one = torch.ones((), dtype=torch.bfloat16, device=DEVICE)
    rows = inputs.dy[:, :, :1, :1]
    for thin in (one, rows):
        wide = thin.expand(CASE.shape)
        full = wide.contiguous(memory_format=torch.channels_last)
        assert 0 in wide.stride()
        assert 0 not in full.stride()
        expected = run(second, inputs.x, inputs.second, full)
        assert_same(expected, run(second, inputs.x, inputs.second, wide))


@pytest.mark.parametrize("second", SECONDS)
def test_sum_backward(second: str) -> None:
    """The sum over a batch of what BatchNorm alone puts out does not depend on x: its gradient is 0."""
    inputs = draw(Case(second, "none", shape=CASE.shape))
    x = inputs.x.requires_grad_()
    if inputs.z_norm is not None:
        assert inputs.second is not None
        y = dual_batch_norm_act(x, inputs.x_norm, inputs.second, inputs.z_norm, training=True, backend="triton")
    else:
        y = batch_norm_act(x, *inputs.x_norm[:4], inputs.second, training=True, backend="triton")
    y.sum().backward()
    assert x.grad is not None
    # 1 − 60/60 is exact; x̂·Σx̂/60 is not: Σx̂ is off by √60 roundings of about 3, scale and x̂ are below 3 each.
    assert x.grad.abs().max().item() <= 3 * 3 * 8 * 3 * 2**-24


def test_inputs_are_left_alone() -> None:
    """Only the running statistics change."""
    inputs = draw(Case("dual", "relu", shape=CASE.shape))
    assert inputs.second is not None and inputs.z_norm is not None
    tensors = [inputs.x, inputs.second, inputs.dy, *inputs.x_norm[:2], *inputs.z_norm[:2]]
    before = [t.clone() for t in tensors]  # type: ignore[union-attr]
    x = inputs.x.detach().requires_grad_()
    y = dual_batch_norm_act(
        x, inputs.x_norm, inputs.second, inputs.z_norm, training=True, activation="relu", backend="triton"
    )
    y.backward(inputs.dy)
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (1, 1, 6, 6), (1, 5, 1, 9), (4, 1, 3, 3)], ids=str)
def test_shapes_whose_layout_is_ambiguous(shape: tuple[int, int, int, int]) -> None:
    """With one channel or one position NCHW and channels-last are the same memory, whatever the strides say."""
    inputs = draw(Case("add", "relu", shape=shape))
    tensors = inputs.x, inputs.second, inputs.dy
    expected = run("add", *tensors)
    assert_same(expected, run("add", *(t.contiguous() if t is not None else t for t in tensors)))  # type: ignore[arg-type]
