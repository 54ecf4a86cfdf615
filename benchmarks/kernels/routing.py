"""Time every form and tile that `kernels/batch_norm/routing.py` may choose, and write the table that it chooses by.

Each candidate is launched as the layers launch it, on buffers that together exceed the second-level cache three times
where the tensors are large, and on the same buffers where they are small: at the sizes where a form could profit from
the cache, a network's activations have just been written by the convolution before.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from benchmarks.kernels.cases import BATCHES, STAGES
from benchmarks.kernels.variants import tried
from fastres.bench.ceilings import cache_bytes
from fastres.bench.norms import Case, problem
from fastres.bench.timing import GPU, Effort, measure, sets_for_cold_cache
from fastres.engine.cuda_graph import side_stream
from fastres.kernels.batch_norm import routing
from fastres.utils.files import write_json

EFFORT = replace(GPU, rounds=7)
SECONDS = ("none", "add", "dual")
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Route:
    """A direction of a case; what one entry of the table is about."""

    case: Case
    direction: str

    @property
    def name(self) -> str:
        return f"{self.direction} {self.case.name}"

    def problem(self, multiprocessors: int) -> routing.Problem:
        """As the routing sees it."""
        case = self.case
        rows = case.batch * case.height * case.width
        return routing.Problem(self.direction, case.join, case.dtype.itemsize, rows, case.channels, multiprocessors)


def routes(dtype: torch.dtype = torch.bfloat16) -> Iterator[Route]:
    """Both directions of relu at the report network's shapes, the most telling batches first."""
    for batch in BATCHES:
        for channels, side in STAGES:
            for second in SECONDS:
                for direction in DIRECTIONS:
                    yield Route(Case(second, "relu", batch, channels, side, side, dtype), direction)


def time_route(route: Route, device: torch.device, effort: Effort = EFFORT) -> dict[str, Any]:
    """Time all candidates that fit; a record, ready for JSON, whose `entry` is the fastest one's for the table.

    `rule_is_times_as_slow`: what the rule's choice would cost against the fastest.
    """
    from fastres.kernels.batch_norm.launch import multiprocessors

    asked = route.problem(multiprocessors(device))
    cuts = [(choice, routing.split(choice, asked)) for choice in routing.candidates(asked)]
    fitting = {_label(choice): (choice, cut) for choice, cut in cuts if cut}
    ruled = _label(routing.rule(asked))
    tensors = 2 if route.direction == "forward" else 3
    moved = tensors * route.case.tensor_bytes
    sets = sets_for_cold_cache(moved, cache_bytes(device)) if moved > cache_bytes(device) else 1
    with side_stream(device):
        prepared = [_launchers(route, device, seed) for seed in range(sets)]
        # What fails takes too many registers for this device, say.
        running, failed = tried({label: partial(prepared[0], cut) for label, (_, cut) in fitting.items()})
        calls = {label: [partial(launch, fitting[label][1]) for launch in prepared] for label in running}
        timings = measure(calls, device, effort)
    fastest = min(timings, key=lambda label: timings[label].seconds)
    choice = fitting[fastest][0]
    return {
        "route": route.name,
        "microseconds": {label: timing.seconds * 1e6 for label, timing in timings.items()},
        "failed": failed,
        "fastest": fastest,
        "rule": ruled,
        "rule_is_times_as_slow": timings[ruled].seconds / timings[fastest].seconds if ruled in timings else math.inf,
        "entry": entry(asked, choice),
    }


def entry(asked: routing.Problem, choice: routing.Choice) -> dict[str, Any]:
    """A line of the table."""
    keys = ("direction", "second", "itemsize", "rows", "channels")
    tiles = {name: [*astuple(getattr(choice, name))] for name in ("sums", "output")}
    return {**{key: asdict(asked)[key] for key in keys}, "form": choice.form, **tiles}


def write_table(path: Path, device_name: str, **found: Any) -> None:
    """Write what was found (`entries`, `symmetric_rows`) into a table that `routing` reads, keeping what it has
    besides, and make this process use it."""
    table = json.loads((path if path.is_file() else routing.TABLE).read_text())
    write_json(path, {**table, "measured_on": device_name, **found})
    routing.use_table(path)


def _label(choice: routing.Choice) -> str:
    sums, output = choice.sums, choice.output
    second = "" if choice.form == "resident" else f" + {output.rows}x{output.columns}/{output.warps}w"
    return f"{choice.form} {sums.rows}x{sums.columns}/{sums.warps}w{second}"


def _launchers(route: Route, device: torch.device, seed: int) -> Callable[[routing.Plan], object]:
    """One set of buffers, and the launch of a plan on them."""
    from fastres.kernels.batch_norm import launch

    given = tree_map_only(Tensor, Tensor.detach, problem(route.case, device, seed))
    x, other, norm, other_norm = given.x, given.other, given.norm, given.other_norm
    if route.direction == "forward":
        return lambda cut: launch.forward(x, other, norm, other_norm, True, "relu", True, cut)
    done = launch.forward(x, other, norm, other_norm, True, "relu", True)
    bits = done.bits if done.bits.numel() else None
    needs_second = other is not None
    return lambda cut: launch.backward(
        given.gradient, None, x, other, route.case.join, bits, done.statistics, norm, other_norm, True, "relu",
        True, needs_second, True, cut,
    )  # fmt: skip
