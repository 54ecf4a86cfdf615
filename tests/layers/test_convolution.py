"""The convolution by matrix products is a convolution."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastres.layers import convolution
from fastres.layers.convolution import Conv2d, ProductConvolution


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 3),
    channels=st.integers(1, 4),
    outputs=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    last=st.booleans(),
)
def test_values_and_gradients_in_fp64(
    count: int, channels: int, outputs: int, kernel: int, stride: int, rows: int, columns: int, last: bool
) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(count, channels, rows * stride, columns * stride, dtype=torch.float64).contiguous(
        memory_format=layout
    )
    weight = torch.randn(outputs, channels, kernel, kernel, dtype=torch.float64).contiguous(memory_format=layout)
    x.requires_grad_()
    weight.requires_grad_()
    ours = ProductConvolution.apply(x, weight, stride)
    theirs = F.conv2d(x, weight, stride=stride, padding=kernel // 2)
    gradient = torch.randn_like(theirs)
    # fp64 sums of at most 100 products of numbers near 1.
    assert torch.allclose(ours, theirs, atol=1e-12)
    for mine, other in zip(
        torch.autograd.grad(ours, (x, weight), gradient),
        torch.autograd.grad(theirs, (x, weight), gradient),
        strict=True,
    ):
        assert torch.allclose(mine, other, atol=1e-11)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: ProductConvolution.apply(a, b, 2), (x, weight))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("channels", "side", "stride", "kernel"), [(128, 4, 1, 3), (128, 8, 2, 3), (128, 8, 2, 1)])
def test_bf16_is_as_close_to_fp64_as_torchs(
    compiled: bool, channels: int, side: int, stride: int, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "HAS_AMX", True)
    torch.manual_seed(0)
    layer = Conv2d(channels, 64, kernel, stride).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, channels, side, side).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = layer.weight.detach().bfloat16()

    def run(convolve: object) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = convolve(x)  # type: ignore[operator]
        gradient = torch.ones_like(y) * 0.5
        gradient[::2] *= -3
        return [y, *torch.autograd.grad(y, (x, layer.weight), gradient)]

    exact_x, exact_weight = x.detach().double().requires_grad_(), weight.double().requires_grad_()
    exact = F.conv2d(exact_x, exact_weight, stride=stride, padding=kernel // 2)
    gradient = torch.ones_like(exact) * 0.5
    gradient[::2] *= -3
    expected = [exact, *torch.autograd.grad(exact, (exact_x, exact_weight), gradient)]
    ours = run(torch.compile(layer, dynamic=False, fullgraph=True) if compiled else layer)
    theirs = run(super(Conv2d, layer).forward)
    for mine, other, truth in zip(ours, theirs, expected, strict=True):
        assert mine.shape == other.shape
        ours_off, theirs_off = (mine - truth).abs().max().item(), (other - truth).abs().max().item()
        # Patches are rounded to bf16 before they are added: nine roundings where oneDNN has one, of random sign.
        assert ours_off <= 3 * theirs_off + 1e-6


def test_the_product_is_taken_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(ProductConvolution, "apply", lambda x, weight, stride: taken.append(x.shape))
    monkeypatch.setattr(convolution, "HAS_AMX", True)
    layer, wide = Conv2d(128, 8, 3), Conv2d(128, 8, 3, 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(torch.zeros(1, 128, 8, 8, dtype=torch.bfloat16))  # a map too large
        layer(torch.zeros(1, 128, 4, 4))  # fp32
        wide(torch.zeros(1, 128, 7, 7, dtype=torch.bfloat16))  # not divided by the stride
        assert taken == []
        layer(torch.zeros(1, 128, 4, 4, dtype=torch.bfloat16))
        wide(torch.zeros(1, 128, 16, 16, dtype=torch.bfloat16))
        assert len(taken) == 2
        monkeypatch.setattr(convolution, "HAS_AMX", False)
        layer(torch.zeros(1, 128, 4, 4, dtype=torch.bfloat16))
        assert len(taken) == 2


NARROW = """
import sys, torch
from fastres.layers.convolution import Conv2d
torch.manual_seed(0)
torch.set_num_threads(2)
dtype, tolerance = getattr(torch, sys.argv[1]), float(sys.argv[2])
for channels, outputs in ((4, 8), (7, 3), (1, 1), (8, 16), (15, 16)):
    layer = Conv2d(channels, outputs, 1, 2).to(dtype, memory_format=torch.channels_last)
    for images, size in ((8, 32), (31, 16)):
        x = torch.randn(images, channels, size, size, dtype=dtype)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        exact = torch.nn.functional.conv2d(x.double(), layer.weight.double(), stride=2)
        gradient = torch.randn_like(exact).to(dtype)
        wanted = torch.autograd.grad(exact, (x, layer.weight), gradient.double())
        found = torch.autograd.grad(layer(x), (x, layer.weight), gradient)
        for mine, other in zip(found, wanted):
            assert torch.allclose(mine.double(), other.double(), rtol=tolerance, atol=tolerance), (channels, outputs)
print("done")
"""


# Sums of at most 2048 products of numbers near 1, so up to 2⁸: their rounding in fp32; a rounding of partial sums to
# bf16's eight bits where the CPU has none.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", "1e-3"), ("bfloat16", "1")])
@pytest.mark.parametrize("isa", ["AVX2", "DEFAULT"])
def test_a_stride_with_few_channels_does_not_reach_the_kernels_that_write_beside(
    isa: str, dtype: str, tolerance: str
) -> None:
    """It crashes, or never comes back: in a process of its own, with a limit."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    command = [sys.executable, "-c", NARROW, dtype, tolerance]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr
