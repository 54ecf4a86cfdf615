"""Ours against float64 on the device itself, beside what PyTorch's operators err in the same type.

The pytest suite checks the same functions in Triton's interpreter; this is for the machine code, whose rounding, fused
multiply-adds and NaN rules differ, and for shapes that an interpreter is too slow for.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.cases import eager
from fastres.bench.norms import Case, Forward, Problem, ours, problem
from fastres.engine.cuda_graph import gc_disabled, side_stream
from fastres.kernels import ACTIVATIONS

# Channels that are no multiple of any block, one map element, rows that end in mid-tile, the report's extremes.
SHAPES = ((4, 64, 8, 8), (3, 13, 7, 5), (20, 512, 4, 4), (8, 72, 1, 1), (20, 64, 32, 32), (512, 64, 32, 32))
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def cases() -> Iterator[Case]:
    """Every form, activation and type at every shape, what training uses first; at the largest shape, which takes a
    hundred times as long, ReLU only."""
    activations = sorted(ACTIVATIONS, key=("relu", "none", "silu", "gelu").index)
    for activation, dtype, join, shape in itertools.product(activations, DTYPES, ("none", "add", "dual"), SHAPES):
        if shape[0] < 512 or activation == "relu":
            yield Case(join, activation, *shape, dtype)


def results(forward: Forward, example: Problem, training: bool) -> dict[str, Tensor]:
    """Output, gradients by leaf and running statistics of one pass over a copy of `example`."""
    own = example.copy()
    y = forward(own, training)
    leaves = own.leaves
    gradients = torch.autograd.grad(y, tuple(leaves.values()), own.gradient)
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True)), **own.statistics}


def check(case: Case, device: torch.device, *, forward: Forward = ours, seed: int = 0) -> dict[str, Any]:
    """Compare ours (`forward`) with float64, in training and evaluation; a record, ready for JSON.

    `errors` has, for each tensor, ‖ours - reference‖ / ‖reference‖, the same of PyTorch's operators in the case's
    type, and the limit: twice the latter plus a term for its being exact by luck. NaN passes no limit. `repeats`: a
    second run gives the same bits. `graph`: on a GPU, the replay of a captured graph on other values gives the bits of
    a direct run; None on a CPU.
    """
    errors: dict[str, tuple[float, float, float]] = {}
    repeats = True
    example = problem(case, device, seed)
    for training in (True, False):
        mine, theirs = results(forward, example, training), results(eager, example, training)
        exact = results(eager, example.copy(torch.float64), training)
        for name, reference in exact.items():
            # A quarter of a bf16 or fp16 unit is one good rounding's error. Four units of fp32: sums over all rows in
            # different orders differ by that much even when one of them happens to be exact.
            epsilon = torch.finfo(mine[name].dtype).eps
            slack = epsilon / 4 if mine[name].dtype.itemsize == 2 else 4 * epsilon
            error, usual = _distance(mine[name], reference), _distance(theirs[name], reference)
            errors[f"{'training' if training else 'eval'} {name}"] = (error, usual, 2 * usual + slack)
        again = results(forward, example, training)
        repeats &= all(torch.equal(mine[name], again[name]) for name in mine)
    graph = _graph_agrees(case, device, forward, seed) if device.type == "cuda" else None
    within = all(error <= limit for error, _, limit in errors.values())
    return {
        "case": case.name,
        "passed": within and repeats and graph is not False,
        "repeats": repeats,
        "graph": graph,
        "worst_share_of_limit": max(error / limit for error, _, limit in errors.values()),
        "failures": {name: values for name, values in errors.items() if not values[0] <= values[2]},
        "errors": errors,
    }


def _distance(value: Tensor, reference: Tensor) -> float:
    """‖value - reference‖ / ‖reference‖, or ‖value‖ where the reference is 0; infinite for NaN."""
    difference = torch.linalg.vector_norm(value.double() - reference)
    scale = torch.linalg.vector_norm(reference)
    distance = float(difference / scale) if scale > 0 else float(difference)
    return float("inf") if math.isnan(distance) else distance


def _graph_agrees(case: Case, device: torch.device, forward: Forward, seed: int) -> bool:
    """Capture a training step's two passes, replay them on other values; whether a direct run has the same bits."""
    captured, fresh = problem(case, device, seed), problem(case, device, seed + 1)
    with side_stream(device), gc_disabled():
        for _ in range(3):
            results(forward, captured, True)
        static = captured.copy()
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            y = forward(static, True)
            gradients = torch.autograd.grad(y, tuple(static.leaves.values()), static.gradient)
        finally:
            graph.capture_end()
        with torch.no_grad():
            given = {**fresh.leaves, **fresh.statistics, "gradient": fresh.gradient}
            for name, target in {**static.leaves, **static.statistics, "gradient": static.gradient}.items():
                target.copy_(given[name])
        graph.replay()
        replayed = {"y": y.detach(), **dict(zip(static.leaves, gradients, strict=True)), **static.statistics}
        direct = results(forward, fresh, True)
        torch.cuda.synchronize(device)
    return all(torch.equal(replayed[name], direct[name]) for name in direct)
