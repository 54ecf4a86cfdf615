"""`fastres bench roofline`: a training step and its parts against what this machine's memory and arithmetic allow.

The model is that of Williams, Waterman and Patterson (2009), "Roofline: an insightful visual performance model for
multicore architectures": a kernel with I operations to each byte that it moves does at most min(products, I · memory)
operations a second. Both ceilings are measured in the same run, before and after the kernels, because other work on the
machine may meet one of the two; operations and bytes are counted (counts.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import torch
import torch._functorch.config

from fastres.bench import norms, roofline_page
from fastres.bench.ceilings import cache_bytes, last_level_cache, machine, matrix_rate, memory_rates
from fastres.bench.schema import Machine, MatrixRate, Point, Roofline
from fastres.bench.step_parts import Part, StepParts
from fastres.bench.timing import DRY, GPU, STEPS, Call, Effort, Timing, measure, sets_for_cold_cache
from fastres.bench.training import load_recipe
from fastres.engine.cpp_compiler import missing_compiler
from fastres.engine.cuda_graph import side_stream
from fastres.engine.device import choose_device
from fastres.errors import UserError
from fastres.recipe import Recipe
from fastres.runs.many import Results, whole_folder
from fastres.training.data import shape_of
from fastres.training.session import prepare_process
from fastres.utils.machine import contention

Measured = TypeVar("Measured")
ROOM = 1.1
"""Factor above its roof up to which a point is not reported: ceilings and points drift apart by some percent on a
machine that others use as well, and no product of square matrices is quite the fastest there is."""


@dataclass(frozen=True)
class Scale:
    """Extent of the measurement."""

    effort: Effort
    copied_bytes: int
    """Of each tensor whose copies tell the rate of the memory."""
    sides: tuple[int, ...]
    """Of the matrices whose products tell the rate of arithmetic: the best counts."""
    cache_bytes: int


def scale_for(device: torch.device) -> Scale:
    """A measurement of a few minutes on a CPU, less on a GPU."""
    if device.type == "cuda":
        return Scale(GPU, 2**30, (4096, 8192, 16384), cache_bytes(device))
    cache = last_level_cache()
    effort = Effort(rounds=9, target_seconds=0.05, settle_seconds=0.3)
    return Scale(effort, max(2**28, 4 * cache), (512, 1024, 2048), cache)


TINY = Scale(DRY, 2**16, (32, 64), 2**13)
"""To run the code, not to measure."""


def roofline(
    path: Path | None = None,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    device: str = "auto",
    scale: Scale | None = None,
) -> Results[Roofline]:
    """Measure the step of the recipe at `path`, by default that of `Recipe()`, on random images, and write table and
    figure into the new folder `out`, by default runs/roofline-<time>.

    Raises UserError for what the user can put right; nothing is left behind then.
    """
    where = choose_device(device)
    recipe = load_recipe(path, settings)
    if recipe.method.adds_to_steps:
        raise UserError(
            f"{path}: a step with {recipe.method.setting} has parts that nobody counts: "
            "give a recipe that learns from labels alone"
        )
    with whole_folder(out, "roofline") as folder:
        measured = measure_step(recipe, where, scale or scale_for(where))
        facts = measured.updated(recipe="the defaults" if path is None else path.name, set=[*settings])
        roofline_page.write(folder, facts)
    return Results(folder, facts)


def measure_step(recipe: Recipe, device: torch.device, scale: Scale) -> Roofline:
    """Contents of roofline.json except the recipe's name."""
    busy = contention()
    prepare_process(recipe, device)
    torch.manual_seed(0)
    classes, side, _ = shape_of(recipe.data)
    image_bytes = 3 * side**2
    images = max(2 * recipe.train.batch_size, min(50_000, 3 * scale.cache_bytes // image_bytes))
    parts = StepParts(recipe, classes, side, device, images, _forward(recipe, device)).all()
    precisions = sorted({"fp32", "bf16", *(part.products for part in parts)})
    before, products_before = _ceilings(precisions, device, scale)
    sets = {
        part.name: 1 if part.kind == "whole step" else sets_for_cold_cache(part.bytes, scale.cache_bytes)
        for part in parts
    }
    timings = _time(parts, sets, device, scale.effort)
    after, products_after = _ceilings(precisions, device, scale)
    memory = better(before, after, float)
    products = better(products_before, products_after, attrgetter("operations_per_second"))
    best = max(memory.values())
    points = [
        point(part, timings[part.name], best, products[part.products].operations_per_second, sets[part.name])
        for part in parts
    ]
    return Roofline(
        recipe="",
        set=[],
        batch_size=recipe.train.batch_size,
        precision=recipe.train.precision,
        machine=Machine(**machine(device)),
        memory=memory,
        products=products,
        points=points,
        above=above(points),
        contention=busy,
    )


def _ceilings(
    precisions: Sequence[str], device: torch.device, scale: Scale
) -> tuple[dict[str, float], dict[str, MatrixRate]]:
    """Rates of the memory's passes, and the best product of each precision."""
    with side_stream(device):
        memory = memory_rates(scale.copied_bytes, device, scale.effort)
        products = {name: matrix_rate(name, device, effort=scale.effort, sides=scale.sides) for name in precisions}
    return memory, {name: MatrixRate(**rate) for name, rate in products.items()}


def better(
    one: dict[str, Measured], other: dict[str, Measured], rate: Callable[[Measured], float]
) -> dict[str, Measured]:
    """Each of the two with the higher rate: what a machine does once, it can do."""
    return {name: max(one[name], other[name], key=rate) for name in one}


def _forward(recipe: Recipe, device: torch.device) -> norms.Forward:
    """BN as the step does it: on a CPU a compiled step compiles it."""
    if device.type == "cuda" or not recipe.train.compile or missing_compiler() is not None:
        return norms.ours
    return norms.compiled()


def _time(parts: Sequence[Part], sets: dict[str, int], device: torch.device, effort: Effort) -> dict[str, Timing]:
    """All parts by turns. On a GPU the step comes after the others: it captures itself."""
    together = [part for part in parts if device.type != "cuda" or part.kind != "whole step"]
    with side_stream(device):
        calls: dict[str, list[Call]] = {part.name: [part.make() for _ in range(sets[part.name])] for part in together}
        timings = measure(calls, device, effort)
    for part in parts:
        if part not in together:
            with side_stream(device):
                timings |= measure({part.name: [part.make()]}, device, STEPS)
    return timings


def point(part: Part, timing: Timing, memory: float, products: float, sets: int = 1) -> Point:
    """A part's place in the figure."""
    intensity, rate = part.operations / part.bytes, part.operations / timing.seconds
    roof = attainable(intensity, memory, products)
    position = {"intensity": intensity, "operations_per_second": rate, "roof": roof, "share": rate / roof}
    return Point.of(part, timing, quartiles_seconds=timing.quartiles, sets=sets, **position)


def attainable(intensity: float, memory: float, products: float) -> float:
    """Operations a second at `intensity` operations a byte, below `memory` bytes and `products` operations a second."""
    return min(products, intensity * memory)


def above(points: Sequence[Point]) -> list[str]:
    """Names of the points that lie above their roofs by more than ROOM: what cannot be, unless operations or bytes are
    counted wrong or a cache kept what was counted as coming from memory."""
    return [each.name for each in points if each.share > ROOM]
