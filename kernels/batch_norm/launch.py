"""Launching the BatchNorm kernels: outputs and workspaces are allocated here, plans made, and nothing else decided.

Tensors are channels-last [N, C, H, W] (fp32, fp16 or bf16) on a CUDA device, or anywhere in Triton's interpreter; what
belongs to a channel is fp32 [C]. `second` is the residual or the other BatchNorm's input.
"""

import functools
import math
from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
import triton
from torch import Tensor

from fastres.kernels.batch_norm.resident import resident_backward_kernel, resident_forward_kernel
from fastres.kernels.batch_norm.routing import MERGE_SPLITS, OPTIONS, Plan, Problem, Tile, plan
from fastres.kernels.batch_norm.two_pass import apply_kernel, gradient_kernel, reduce_kernel, statistics_kernel
from fastres.kernels.batch_norm.types import Norm

P = ParamSpec("P")
T = TypeVar("T")

NO_NORM = Norm(None, None, None, None)

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 when the process began)."""


def _on_their_device(function: Callable[Concatenate[Tensor, P], T]) -> Callable[Concatenate[Tensor, P], T]:
    """Triton launches on the current device, wherever its tensors are. PyTorch's operators first make that of their
    tensors the current one, and so does this, for about a microsecond a call."""

    @functools.wraps(function)
    def launch(x: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with torch.cuda.device_of(x):
            return function(x, *args, **kwargs)

    return launch


class Forward(NamedTuple):
    """Results of a forward pass."""

    y: Tensor
    statistics: Tensor
    """fp32 [2, C] (dual: [4, C]): mean and 1/deviation; empty where running statistics normalised."""
    bits: Tensor
    """uint8 [M, ⌈C/8⌉]: which outputs relu kept; empty where the backward pass does not need them."""


class Backward(NamedTuple):
    """Results of a backward pass; empty tensors for those not requested."""

    dx: Tensor
    dsecond: Tensor
    sums: Tensor
    """fp32 [2, C] (dual: [4, C]): gradients of bias and weight, for x and for z."""


@_on_their_device
def forward(
    x: Tensor,
    second: Tensor | None,
    x_norm: Norm,
    z_norm: Norm | None,
    training: bool,
    activation: str,
    keep: bool,
    route: Plan | None = None,
) -> Forward:
    """activation(BN(x) + second); dual where `z_norm` is given. `keep`: a backward pass will follow."""
    kind = _kind(second, z_norm)
    z_norm = z_norm or NO_NORM
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    y = torch.empty_like(x, memory_format=torch.channels_last)
    needs_bits = keep and kind == "add" and activation == "relu"
    bits = x.new_empty((rows, -(-channels // 8)) if needs_bits else 0, dtype=torch.uint8)
    statistics = x.new_empty((4 if kind == "dual" else 2, channels) if training else 0, dtype=torch.float32)
    problem = Problem("forward", kind, x.itemsize, rows, channels, multiprocessors(x.device), activation)
    route = route or plan(problem, training)
    grid = (math.ceil(channels / route.sums.columns), route.splits)
    given_bits = bits if needs_bits else None

    if training and route.form == "resident":
        split = route.splits > 1
        workspace = _workspace(x, route, grid, statistics.shape[0], "barrier")
        for phase in _phases(split):
            resident_forward_kernel[grid](
                x, second, y, given_bits, statistics, *workspace,
                *x_norm[2:5], *x_norm[:2], *z_norm[2:5], *z_norm[:2],
                rows, channels, route.rows_per_split, route.splits,
                x_norm.eps, z_norm.eps, x_norm.momentum, z_norm.momentum,
                SECOND=kind, ACTIVATION=activation, SPLIT=split, PHASE=phase,
                **_tile(route.sums, merges=route.form), **_cooperative(split),
            )  # fmt: skip
        return Forward(y, statistics, bits)

    if training:
        statistics_kernel[grid](
            x, second if kind == "dual" else None, *_workspace(x, route, grid, statistics.shape[0], "ticket"),
            statistics, *x_norm[2:5], *z_norm[2:5],
            rows, channels, route.rows_per_split, route.splits,
            x_norm.eps, z_norm.eps, x_norm.momentum, z_norm.momentum,
            DUAL=kind == "dual", **_tile(route.sums, merges=route.form),
        )  # fmt: skip
    tile = route.output
    apply_kernel[_tiles(tile, rows, channels)](
        x, second, y, given_bits, statistics,
        *x_norm[2:4], *x_norm[:2], *z_norm[2:4], *z_norm[:2],
        rows, channels, x_norm.eps, z_norm.eps,
        SECOND=kind, ACTIVATION=activation, FROM_RUNNING=not training, **_tile(tile),
    )  # fmt: skip
    return Forward(y, statistics, bits)


@_on_their_device
def backward(
    dy: Tensor,
    dy2: Tensor | None,
    x: Tensor,
    second: Tensor | None,
    kind: str,
    bits: Tensor | None,
    statistics: Tensor,
    x_norm: Norm,
    z_norm: Norm | None,
    training: bool,
    activation: str,
    needs_x: bool,
    needs_second: bool,
    needs_norms: bool,
    route: Plan | None = None,
) -> Backward:
    """The gradients of `forward` from the gradient dy of its output, or from two gradients that are summed here.

    `second` is needed by the dual form and, without bits, by activations after a residual. `needs_…`: which gradients
    are wanted: of x, of `second`, of weights and biases.
    """
    z_norm = z_norm or NO_NORM
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    dual = kind == "dual"
    # Two of nothing: an operator may not return one tensor twice.
    dx = torch.empty_like(x, memory_format=torch.channels_last) if needs_x else x.new_empty(0)
    dsecond = torch.empty_like(x, memory_format=torch.channels_last) if needs_second else x.new_empty(0)
    needs_sums = needs_norms or (training and (needs_x or (dual and needs_second)))
    sums = x.new_empty((4 if dual else 2, channels) if needs_sums else 0, dtype=torch.float32)
    given_dx = dx if needs_x else None
    dz = dsecond if dual and needs_second else None
    g_out = dsecond if not dual and needs_second else None
    given_second = second if dual or (kind == "add" and bits is None and activation != "none") else None

    problem = Problem("backward", kind, x.itemsize, rows, channels, multiprocessors(x.device), activation)
    route = route or plan(problem, training and needs_sums)
    grid = (math.ceil(channels / route.sums.columns), route.splits)
    shape = (rows, channels)
    if route.form == "resident" and training and needs_sums:
        split = route.splits > 1
        workspace = _workspace(x, route, grid, 3 if dual else 2, "barrier")
        for phase in _phases(split):
            resident_backward_kernel[grid](
                dy, dy2, x, given_second, bits, given_dx, dz, g_out, sums, *workspace, statistics,
                *x_norm[:2], *z_norm[:2], *shape, route.rows_per_split, route.splits,
                SECOND=kind, ACTIVATION=activation, SPLIT=split, PHASE=phase,
                **_tile(route.sums, merges=route.form), **_cooperative(split),
            )  # fmt: skip
        return Backward(dx, dsecond, sums)

    terms = (*x_norm[2:4], *x_norm[:2], *z_norm[2:4], *z_norm[:2], *shape)
    eps = (x_norm.eps, z_norm.eps)
    if needs_sums:
        reduce_kernel[grid](
            dy, dy2, x, given_second, bits, g_out, sums, *_workspace(x, route, grid, 3 if dual else 2, "ticket"),
            statistics, *terms, route.rows_per_split, route.splits, *eps,
            SECOND=kind, ACTIVATION=activation, FROM_RUNNING=not training, **_tile(route.sums, merges=route.form),
        )  # fmt: skip
        if g_out is not None:
            # g stands there: what is left is the gradient of a BatchNorm alone.
            dy, dy2, given_second, bits, g_out, kind, activation = g_out, None, None, None, None, "none", "none"
    if needs_x or dz is not None or g_out is not None:
        tile = route.output
        gradient_kernel[_tiles(tile, rows, channels)](
            dy, dy2, x, given_second, bits, given_dx, dz, g_out, sums, statistics, *terms, *eps,
            SECOND=kind, ACTIVATION=activation, FROM_RUNNING=not training, **_tile(tile),
        )  # fmt: skip
    return Backward(dx, dsecond, sums)


def _kind(second: Tensor | None, z_norm: Norm | None) -> str:
    return "none" if second is None else "add" if z_norm is None else "dual"


def _tile(tile: Tile, merges: str | None = None) -> dict[str, int]:
    options = {"BLOCK_M": tile.rows, "BLOCK_C": tile.columns, "num_warps": tile.warps}
    if not INTERPRETED:
        options |= OPTIONS
    return {**options, "BLOCK_S": MERGE_SPLITS[merges]} if merges else options


def _tiles(tile: Tile, rows: int, channels: int) -> tuple[int]:
    """A program for each tile, in one dimension: `two_pass.tile_from_the_end` says why."""
    return (math.ceil(channels / tile.columns) * math.ceil(rows / tile.rows),)


def _phases(split: bool) -> tuple[str, ...]:
    """In the interpreter programs run one after another, and none may wait for the next."""
    if INTERPRETED:
        return ("sums", "output") if split else ("output",)
    return ("all",)


def _cooperative(split: bool) -> dict[str, bool]:
    """A launch whose programs all run at once, or fails; the interpreter knows no such option and needs none."""
    return {"launch_cooperative_grid": True} if split and not INTERPRETED else {}


def _workspace(x: Tensor, route: Plan, grid: tuple[int, int], values: int, use: str) -> tuple[Tensor, Tensor]:
    """Room for the splits' sums, and a zeroed counter for each column of programs."""
    splits, channels = (route.splits, x.shape[1]) if route.splits > 1 or use == "ticket" else (0, 0)
    partials = x.new_empty((splits, values, channels), dtype=torch.float32)
    return partials, _counters(x.device, use).take(grid[0])


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; elsewhere, in the interpreter, those of an H100 or H200."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 132


class Counters:
    """A ring of counters that every launch leaves as it found them, so that they are zeroed once in a process.

    Each launch takes the next ones. Launches that run at the same time, on other streams or in replayed graphs, meet on
    the same counters only if the ring has gone round in between: after some thousand launches. While a graph is
    captured nothing can be zeroed outside it: where no ring exists yet, the graph then makes and zeroes its own.
    """

    SIZE = 1 << 16
    ALIGNED = 4
    """Counters in 16 bytes. Triton compiles a kernel once for pointers that are aligned to as many and once for others:
    were some aligned and some not, a capture could meet a kernel that is not loaded yet, and loading breaks it."""

    def __init__(self, device: torch.device) -> None:
        self.ring = torch.zeros(self.SIZE, dtype=torch.int32, device=device)
        self.next = 0

    def take(self, count: int) -> Tensor:
        """`count` counters in a row."""
        if self.next + count > self.SIZE:
            self.next = 0
        first = self.next
        self.next += math.ceil(count / self.ALIGNED) * self.ALIGNED
        return self.ring[first : first + count]


_RINGS: dict[tuple[torch.device, str], Counters] = {}


def _counters(device: torch.device, use: str) -> Counters:
    """One ring for tickets and one for barriers, whose counters do not return to zero but to 0 or 2³¹."""
    ring = _RINGS.get((device, use))
    if ring is None:
        ring = Counters(device)
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if not capturing:
            _RINGS[device, use] = ring
    return ring
