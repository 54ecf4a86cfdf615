"""Time whole training steps, ours against the rivals of rivals/steps.py, and beside what the matrix units can do.

Variants take turns in one process, each launched as a run would launch it, the host's part included. Ours is the
training loop of fastres (`fastres/bench/training.py`) on a set of random pixels that lies on the device.
"""

import gc
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from benchmarks.kernels.variants import figures, tried
from benchmarks.rivals.steps import DRY_RIVALS, RIVALS, PlainResNet
from fastres.bench.ceilings import matrix_rate
from fastres.bench.timing import DRY, GPU, STEPS, Call, measure, wait
from fastres.bench.training import Ours, random_data_module
from fastres.engine.precision import DTYPES
from fastres.models import count_parameters, layers
from fastres.recipe import AugmentConfig, Recipe
from fastres.recipe.networks import ModelConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "report_best.toml"
IMAGES = 46_080
"""In the set: whole batches of 20, 512 and 1,024, and of 240, the images of 12 steps at 20."""
SHIFTS = AugmentConfig(translate=4, flip="random")
"""Augmentation that the rivals do as well."""
GROUPS = (("eager", "graphed"), ("max-autotune",))
"""Rivals that are measured together with ours. What may compile for minutes comes last."""
RATE_OF = {"bf16": "bf16", "fp16": "fp16", "fp32": "tf32"}
"""The matrix rate that a step's precision is compared with: cuDNN's fp32 convolutions run in TF32 by default."""

# One rate for each precision in a run.
_matrix_rate = cache(matrix_rate)


@dataclass(frozen=True)
class StepCase:
    """A network, batch size and precision."""

    network: str
    """`report_best`: the report's network with its augmentation; `resnet18`, with flips and shifts."""
    batch: int
    precision: str
    steps: int
    """In one timed call."""
    goals: tuple[tuple[str, float], ...] = ()
    """Goals: `microseconds` a step at most, `share_of_matrix_rate` and `times_max_autotune` at least."""
    rivals: tuple[str, ...] = ()
    """Those that are measured with it."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.label}: {', '.join(self.rivals)}"

    @property
    def label(self) -> str:
        """As tables show it."""
        return f"{self.network} {self.batch} {self.precision}"

    def recipe(self, dry: bool) -> Recipe:
        """Recipe of our side; in a dry run with narrow layers and uncompiled."""
        changes = [f"train.batch_size={self.batch}", f"train.precision={self.precision}", "data.split=none"]
        changes += ["train.best=train_loss"]
        if self.network == "resnet18":
            changes += ["model.blocks=[2,2,2,2]", "model.max_parameters=20000000"]
        if dry:
            changes += ["model.channels=[16,16,16,16]", "train.compile=false"]
        recipe = Recipe.load(RECIPE, changes)
        return recipe.model_copy(update={"augment": SHIFTS}) if self.network == "resnet18" else recipe


_AUTOTUNE = ("times_max_autotune", 1.4)
CASES = (
    StepCase("report_best", 20, "bf16", 48, (("microseconds", 290.0), _AUTOTUNE)),
    StepCase("report_best", 512, "bf16", 6, (("share_of_matrix_rate", 0.5), _AUTOTUNE)),
    StepCase("resnet18", 1024, "bf16", 5, (_AUTOTUNE,)),
    StepCase("report_best", 20, "fp32", 48),
)
DRY_CASES = (StepCase("report_best", 4, "bf16", 2, CASES[0].goals), StepCase("resnet18", 4, "fp32", 2))


def in_groups(cases: Sequence[StepCase]) -> list[StepCase]:
    """All cases with the first of GROUPS, then all with the next."""
    return [replace(case, rivals=group) for group in GROUPS for case in cases]


def time_steps(
    case: StepCase, device: torch.device, *, dry: bool = False, limit: float = float("inf")
) -> dict[str, Any]:
    """Measure ours and the rivals in turn; figures for JSON. On a GPU it must run within `side_stream`.

    A rival that is not ready after `limit` seconds is given up. What fails is named under `missing` with the reason. Of
    each variant: microseconds a step (median, quartiles), images a second, operations a second (six for each
    multiply-add of the forward pass: it, the inputs' gradients and the weights'), their share of the rate of plain
    matrix products, device memory at most (weights, optimizer and activations; not the images), and how many times as
    fast ours is.
    """
    recipe = case.recipe(dry)
    product = _matrix_rate(RATE_OF[case.precision], device, effort=DRY if dry else GPU)
    data_module = random_data_module(recipe, 16 * case.batch if dry else IMAGES, device)
    assert isinstance(recipe.model, ModelConfig)
    shape = recipe.model.blocks, recipe.model.channels
    plain = PlainResNet(*shape)
    multiply_adds = sum(layer.multiply_adds for layer in layers(plain, 32))
    loops: list[Ours] = []

    def make(name: str) -> Call:
        if name == "ours":
            loops.append(Ours(recipe, data_module, 10, 32, device))
            return loops[0].steps(case.steps)
        rival, train = (DRY_RIVALS if dry else RIVALS)[name], data_module.train
        return rival(PlainResNet(*shape), train.source, train.labels, case.batch, DTYPES[case.precision], case.steps)

    limits = {"ours": float("inf"), **dict.fromkeys(case.rivals, limit)}
    makers = {name: partial(_made, partial(make, name), device, name, limits[name]) for name in limits}
    made, missing = tried(makers)
    calls = measure({name: [each.call] for name, each in made.items()}, device, DRY if dry else STEPS)
    samples = {name: [seconds / case.steps for seconds in each.samples] for name, each in calls.items()}
    timings = {name: replace(each, samples=samples[name]) for name, each in calls.items()}
    operations = 6 * multiply_adds * case.batch
    variants = figures(timings)
    for name, timing in timings.items():
        variants[name] |= {
            "images_per_second": case.batch / timing.seconds,
            "operations_per_second": operations / timing.seconds,
            "share_of_matrix_rate": operations / timing.seconds / product["operations_per_second"],
            "peak_bytes": made[name].peak_bytes,
            "first_call_seconds": made[name].first_call_seconds,
        }
    return {
        "case": case.label,
        "network": case.network,
        "batch": case.batch,
        "precision": case.precision,
        "rivals": list(case.rivals),
        "parameters": count_parameters(plain),
        "multiply_adds": multiply_adds,
        "matrix_product": product,
        "goals": dict(case.goals),
        "captured": bool(loops) and loops[0].runner.captured,
        "not_captured_because": loops[0].runner.fallback_reason if loops else None,
        "variants": variants,
        "missing": missing,
    }


def forget(device: torch.device) -> None:
    """Let go of what has been compiled and of memory that is not in use."""
    torch.compiler.reset()
    gc.collect()  # a network and its compiled code refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Made(NamedTuple):
    """A variant that is warm."""

    call: Call
    peak_bytes: int | None
    """Device memory at most; None on a CPU."""
    first_call_seconds: float
    """Until its first call was done, compilation and capture included."""


def _made(make: Callable[[], Call], device: torch.device, name: str, limit: float) -> Made:
    """Make a variant and warm it up. Raises what it raises, TimeoutError after `limit` seconds."""
    on_gpu = device.type == "cuda"
    with within(limit):
        began = time.perf_counter()
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        _reset_peak(device)
        call = make()
        call()
        wait(device)
        first = time.perf_counter() - began
        if name == "max-autotune":
            _reset_peak(device)  # candidates that were tried took memory of their own
        for _ in range(3):
            call()
        wait(device)
    return Made(call, torch.cuda.max_memory_allocated(device) - before if on_gpu else None, first)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block when it has run so long, wherever Python runs then; up to three times, as a
    compiler may swallow one. For the main thread."""
    raised = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        raised += 1
        if raised == 3:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise TimeoutError(f"not ready after {seconds:.0f} s")

    if seconds == float("inf"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 3.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
