"""What is launched, seen without launching: the kernels are replaced, tensors have shapes and no memory."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastres.kernels import Norm
from fastres.kernels.batch_norm import launch

KERNELS = (
    "statistics_kernel",
    "apply_kernel",
    "reduce_kernel",
    "gradient_kernel",
    "resident_forward_kernel",
    "resident_backward_kernel",
)


class Launches:
    """Grids of the kernels by name, in order, and the tensors whose devices were current then."""

    def __init__(self) -> None:
        self.grids: list[tuple[str, tuple[int, ...]]] = []
        self.current: Tensor | None = None
        self.devices: list[Tensor | None] = []

    def kernel(self, name: str) -> Any:
        class Kernel:
            def __getitem__(_, grid: tuple[int, ...]) -> Any:
                def launched(*args: Any, **kwargs: Any) -> None:
                    self.grids.append((name, grid))
                    self.devices.append(self.current)

                return launched

        return Kernel()

    @contextlib.contextmanager
    def device_of(self, tensor: Tensor) -> Iterator[None]:
        self.current = tensor
        yield
        self.current = None


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    recorded = Launches()
    for name in KERNELS:
        monkeypatch.setattr(launch, name, recorded.kernel(name))
    monkeypatch.setattr(torch.cuda, "device_of", recorded.device_of)
    monkeypatch.setattr(launch, "_RINGS", {})
    return recorded


def both_ways(second: str, shape: tuple[int, ...], dtype: torch.dtype, training: bool) -> tuple[Tensor, Tensor]:
    """Launch forward and backward, all gradients wanted; x and dy."""
    x, z, dy = (torch.empty(shape, dtype=dtype, device="meta") for _ in range(3))
    none = Norm(None, None, None, None)
    other = None if second == "none" else z
    z_norm = none if second == "dual" else None
    _, statistics, bits = launch.forward(x, other, none, z_norm, training, "relu", True)
    by_bits = bits if bits.numel() else None
    launch.backward(
        dy, None, x, other, second, by_bits, statistics, none, z_norm, training, "relu", True, other is not None, True
    )
    return x, dy


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("second", ["none", "add", "dual"])
def test_grids_fit_a_gpu(launches: Launches, second: str, training: bool) -> None:
    """Of CUDA's limits: 2³¹ − 1 programs in the first dimension, 65,535 in the others. 3.2 million rows are the first
    layer of a ResNet on 256 images of 224 × 224."""
    shapes = ((256, 64, 112, 112), (4096, 64, 32, 32), (256, 8, 256, 256), (2, 4096, 32, 32), (20, 512, 4, 4))
    for shape, dtype in itertools.product(shapes, (torch.bfloat16, torch.float32)):
        both_ways(second, shape, dtype, training)
    assert {name for name, _ in launches.grids} >= {"apply_kernel", "gradient_kernel"}
    for name, (first, *others) in launches.grids:
        assert 0 < first < 2**31, name
        assert all(0 < size < 2**16 for size in others), (name, first, *others)


@pytest.mark.parametrize("shape", [(512, 64, 32, 32), (20, 512, 4, 4)], ids=["two_pass", "resident"])
def test_launched_on_the_device_of_the_tensors(launches: Launches, shape: tuple[int, ...]) -> None:
    """Which need not be the current one: with the second of two GPUs' tensors, Triton would launch on the first."""
    x, dy = both_ways("add", shape, torch.bfloat16, True)
    assert len(launches.devices) in (2, 4)
    half = len(launches.devices) // 2
    assert all(tensor is x for tensor in launches.devices[:half])
    assert all(tensor is dy for tensor in launches.devices[half:])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_another_device_than_the_current_one() -> None:
    from fastres.kernels import batch_norm_act

    torch.manual_seed(0)
    found = []
    for index in (0, 1):
        x = torch.randn(20, 64, 8, 8, generator=torch.Generator().manual_seed(0)).to(f"cuda:{index}")
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        y = batch_norm_act(x, None, None, None, None, training=True, activation="relu", backend="triton")
        y.square().sum().backward()
        assert torch.cuda.current_device() == 0
        found.append((y.detach().cpu(), x.grad.cpu()))  # type: ignore[union-attr]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
