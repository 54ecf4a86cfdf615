"""A training run with the fused layers ends where one with separate layers does, as nearly as rounding lets any two."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.layers import BatchNormAct2d, BatchNormAddAct2d, DualBatchNormAddAct2d, fuse, fused_sites

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 200


class Plain(nn.Module):
    """Stem, a block with the identity as its skip, one with a convolution, and a classifier of 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(3, 16, 3, 2, 1, bias=False)]
            + [nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2)]
            + [nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.Conv2d(16, 16, 3, padding=1, bias=False)]
            + [nn.Conv2d(16, 16, 1, 2, bias=False)]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(6))
        self.relu = nn.ReLU()
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        stem, one, two, three, four, skip = self.convolutions
        n: Any = self.norms
        x = self.relu(n[0](stem(x)))
        x = self.relu(n[2](two(self.relu(n[1](one(x))))) + x)
        x = self.relu(n[4](four(self.relu(n[3](three(x))))) + n[5](skip(x)))
        return self.fc(x.mean((2, 3)))


class Fused(Plain):
    """The same of fused layers; forks where two read."""

    def __init__(self, plain: Plain, backend: str = "auto") -> None:
        super().__init__()
        self.convolutions, self.fc = copy.deepcopy(plain.convolutions), copy.deepcopy(plain.fc)
        kinds = (BatchNormAct2d, BatchNormAct2d, BatchNormAddAct2d, BatchNormAct2d)
        layers = [kind(16, backend=backend) for kind in kinds]
        self.norms = nn.ModuleList([*layers, DualBatchNormAddAct2d(16, backend=backend)])

    def forward(self, x: Tensor) -> Tensor:
        stem, one, two, three, four, skip = self.convolutions
        n: Any = self.norms
        x, again = n[0](stem(x), fork=True)
        x, again = n[2](two(n[1](one(x))), again, fork=True)
        return self.fc(n[4](four(n[3](three(x))), skip(again)).mean((2, 3)))


def losses(model: nn.Module, steps: int, autocast: bool, device: str = "cpu") -> Tensor:
    """Training losses of `steps` steps of SGD on the same noisy pictures of 10 classes."""
    generator = torch.Generator().manual_seed(5)
    patterns = torch.randn(10, 3, 8, 8, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    seen = []
    model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _ in range(steps):
        labels = torch.randint(10, (32,), generator=generator)
        images = (patterns[labels] + 2 * torch.randn(32, 3, 8, 8, generator=generator)).to(device)
        labels = labels.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return torch.tensor(seen)


def nudged(model: Plain, seed: int) -> Plain:
    """A copy whose weights differ by about one rounding of fp32 each, which is what another order of sums does."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + torch.finfo(p.dtype).eps * torch.randn(p.shape, generator=generator).sign())
    return model


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_200_steps_agree_within_the_spread_of_rounding(autocast: bool) -> None:
    torch.manual_seed(0)
    start = Plain()
    plain = losses(copy.deepcopy(start), STEPS, autocast)
    spread = torch.stack([(losses(nudged(start, seed), STEPS, autocast) - plain).abs() for seed in range(3)])
    by_modules = losses(Fused(start), STEPS, autocast)
    # Compiled on a CPU, the layers write BatchNorm out, with sums of their own; eager, they call PyTorch's.
    compiled = losses(torch.compile(Fused(start), fullgraph=True, backend="aot_eager"), STEPS, autocast)  # type: ignore[arg-type]
    model = copy.deepcopy(start)
    assert [site.form for site in fused_sites(fuse(model))] == [
        "bn+relu", "bn+relu", "bn+add+relu", "bn+relu", "bn+bn+add+relu"
    ]  # fmt: skip
    by_fuse = losses(model, STEPS, autocast)
    assert plain[-20:].mean() < 0.6 * plain[:20].mean()  # it learns: the comparison is not of two constants
    # Two runs that differ by roundings part exponentially until they differ as two seeds do. Three such runs beside the
    # plain one say how far: no more than twice the largest difference of any of them up to that step, and at the first
    # step, where they have not parted yet, ten roundings of a loss near 2.3: in fp32 of 1.2e-7, in bf16 of 4e-3 each.
    allowed = 2 * spread.amax(0).cummax(0).values + 10 * (4e-3 if autocast else 1.2e-7) * 2.3
    for ours in (by_modules, by_fuse, compiled):
        assert (ours - plain).abs().le(allowed).all()


def by_the_kernels(steps: int) -> list[list[float]]:
    """Losses of the first steps by PyTorch and by the kernels, run in Triton's interpreter."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = Plain()
    plain = losses(copy.deepcopy(start), steps, autocast=False)
    return [plain.tolist(), losses(Fused(start, "triton"), steps, autocast=False).tolist()]


@pytest.mark.slow
@pytest.mark.kernels
def test_first_steps_by_the_kernels_agree() -> None:
    """In a process of its own: Triton learns that it is to interpret when it is imported. A step takes it 15 s."""
    steps = 4
    program = f"import json, test_fused_training as t; print(json.dumps(t.by_the_kernels({steps})))"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, ours = map(torch.tensor, json.loads(done.stdout))
    # Ten roundings of a loss near 2.3 at the first step; each step may double what came before (above, 200 steps take
    # one rounding to 0.03, a factor of 1.06 a step, so this is ample).
    assert (ours - plain).abs().le(10 * 1.2e-7 * 2.3 * 2.0 ** torch.arange(steps)).all()
    assert len(set(ours.tolist())) == steps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_200_steps_on_a_gpu_agree_within_the_spread_of_rounding(autocast: bool) -> None:
    """As above, where the layers take the Triton kernels by themselves."""
    torch.manual_seed(0)
    start = Plain()
    plain = losses(copy.deepcopy(start), STEPS, autocast, "cuda")
    spread = torch.stack([(losses(nudged(start, seed), STEPS, autocast, "cuda") - plain).abs() for seed in range(3)])
    allowed = 2 * spread.amax(0).cummax(0).values + 10 * (4e-3 if autocast else 1.2e-7) * 2.3
    ours = losses(Fused(start), STEPS, autocast, "cuda")
    assert (ours - plain).abs().le(allowed).all()
