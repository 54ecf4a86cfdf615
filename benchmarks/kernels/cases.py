"""BatchNorm with what follows it, as the report's network meets it: shapes, traffic, ours and the rivals.

Variants: `ours` is fastres.kernels as a user calls it (`backend="auto"`). `eager` is PyTorch's native kernels, then an
addition and an activation in place, as torchvision writes them. `cudnn` is the same with cuDNN's BatchNorm on
channels-last tensors; PyTorch (2.11 to 2.13 at least) gives it no bf16, so a bf16 case measures it in fp16, which moves
the same bytes, and its figures name the type. cuDNN's own fused BN+add+ReLU has no binding in PyTorch. `inductor` is
torch.compile in its default mode, which is what `fastres train` and most users compile with; `max-autotune` tunes
matrix products above all and compiles for several times as long. `inductor-cooperative` forces Inductor's cooperative
reductions: switched on alone, its heuristic takes them only for up to 16 channels, which here never happens.
"""

import itertools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.nn import functional as F

from fastres.bench.norms import Case, Forward, Problem, ours
from fastres.kernels import Norm

STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and side of the maps in the report's network, blocks 1, 1, 1, 1 on 32×32 images."""

BATCHES = (512, 20, 128, 1024)
"""The most telling first: past the L2, and the report's own."""


def cases(dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    """All forms at all shapes of the report's network, the most telling first."""
    forms = (("none", "relu"), ("add", "relu"), ("dual", "relu"), ("none", "none"))
    for batch, (join, activation), (channels, side) in itertools.product(BATCHES, forms, STAGES):
        yield Case(join, activation, batch, channels, side, side, dtype)


@dataclass(frozen=True)
class Variant:
    """One way to compute a case."""

    forward: Forward
    dtype: torch.dtype
    """Of its maps; the case's, unless that cannot be had."""


def _batch_norm(x: Tensor, norm: Norm, training: bool) -> Tensor:
    weight, bias, mean, variance, _, momentum, eps = norm
    return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)


def _plain(
    x: Tensor, norm: Norm, other: Tensor | None, other_norm: Norm | None, activation: str, training: bool
) -> Tensor:
    y = _batch_norm(x, norm, training)
    if other is not None:
        y += other if other_norm is None else _batch_norm(other, other_norm, training)
    if activation == "relu":
        return F.relu_(y)
    return {"none": lambda y: y, "silu": F.silu, "gelu": F.gelu}[activation](y)


def eager(problem: Problem, training: bool, *, cudnn: bool = False) -> Tensor:
    """PyTorch's own operators, one after another; with `cudnn` BatchNorm by cuDNN where PyTorch lets it."""
    with torch.backends.cudnn.flags(enabled=cudnn):
        return _plain(problem.x, problem.norm, problem.other, problem.other_norm, problem.activation, training)


def cudnn_takes(case: Case, device: torch.device) -> bool:
    """Whether PyTorch's F.batch_norm gives the case's training forward to cuDNN."""
    shape = case.batch, case.channels, case.height, case.width
    x = torch.empty(shape, dtype=case.dtype, device=device).contiguous(memory_format=torch.channels_last)
    vectors = [torch.empty(case.channels, device=device) for _ in range(4)]
    with torch.backends.cudnn.flags(enabled=True):
        chosen = torch._C._select_batch_norm_backend(x, *vectors, True, 1e-5)
    return bool(chosen == torch._C._BatchNormBackend.Cudnn)  # type: ignore[attr-defined]


_COOPERATIVE = {"triton.cooperative_reductions": True, "triton.force_cooperative_reductions": True}
_serial = itertools.count()


def compiled(options: dict[str, Any], *, dry: bool, retained: bool) -> Forward:
    """torch.compile of the eager form. With `dry` without Inductor, whose compilations take seconds on a CPU.

    `retained`: for a backward that runs more than once on one forward, which Inductor refuses while it lets the
    backward write over what the forward saved (donated buffers).
    """
    # A code object of its own: Dynamo keeps what it compiled with the code, gives up after 8 shapes, and would take one
    # compilation for both kinds of `retained`.
    code = _plain.__code__.replace(co_name=f"plain_{next(_serial)}")
    function = types.FunctionType(code, _plain.__globals__)
    how: dict[str, Any] = {"backend": "aot_eager"} if dry else {"options": options}
    run = torch.compile(function, dynamic=False, fullgraph=True, **how)

    def forward(problem: Problem, training: bool) -> Tensor:
        return run(problem.x, problem.norm, problem.other, problem.other_norm, problem.activation, training)

    def keeping(problem: Problem, training: bool) -> Tensor:
        with torch._functorch.config.patch(donated_buffer=False):
            return forward(problem, training)

    return keeping if retained else forward


def variants(
    case: Case, device: torch.device, *, dry: bool, retained: bool
) -> tuple[dict[str, Variant], dict[str, str]]:
    """Ours and the rivals, and why one is missing."""
    found = {"ours": Variant(ours, case.dtype), "eager": Variant(eager, case.dtype)}
    missing: dict[str, str] = {}
    half = Case(case.join, case.activation, case.batch, case.channels, case.height, case.width, torch.float16)
    taken = next((each for each in (case, half) if device.type == "cuda" and cudnn_takes(each, device)), None)
    if taken is None or taken.dtype.itemsize != case.dtype.itemsize:
        missing["cudnn"] = "PyTorch gives cuDNN no BatchNorm of this type and size here"
    else:
        found["cudnn"] = Variant(partial(eager, cudnn=True), taken.dtype)
    found["inductor"] = Variant(compiled({}, dry=dry, retained=retained), case.dtype)
    found["inductor-cooperative"] = Variant(compiled(_COOPERATIVE, dry=dry, retained=retained), case.dtype)
    return found, missing
