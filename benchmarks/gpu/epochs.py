"""Whole epochs of a recipe, by fastres's own training loop on real images: how fast, how much of the time the device
does nothing, and whether the host waits for it.

An epoch here is its training steps; evaluation is timed apart. All epochs that are measured have the same number, so
that nothing that a schedule changes comes between them.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastres.bench.timing import wait
from fastres.recipe import Recipe
from fastres.training.epoch import Launch, Runner
from fastres.training.session import Session

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("report_best", "speed/94")
PAPER_STEPS = 200_000
"""Of the report's run on CIFAR-10: 100 epochs of 40,000 images in batches of 20."""
PAPER_EVALUATED = 100 * 10_000 + 10_000
"""Images that it evaluates: the 10,000 to validate on after each epoch, the test images in the end."""
WARM_UP = 3
"""Epochs before any is timed: what a run captures, it captures when it meets a shape for the third time, and the last,
partial batch of an epoch comes once in each."""
WINDOW = 50
"""Steps under the profiler."""
_EPOCH = 1
_DRY = {
    "report_best": ["model.channels=[16,16,16,16]", "train.batch_size=16"],
    "speed/94": ["model.widths=[8,8,8]", "model.whiten_images=16", "train.batch_size=16", "eval.batch_size=32"],
}
_DRY_ALL = ["train.compile=false", "train.precision=fp32", "data.train_images=100", "data.test_images=32"]


def recipe_of(name: str, source: str, root: str, *, dry: bool) -> Recipe:
    """The recipe `name`, of NAMES, on `source`, with stores in `root`; in a dry run a tiny one."""
    changes = [f"data.source={source}", f"data.root={root}"]
    if name.startswith("speed/"):
        changes += ["data.split=none"]  # as records are run: on all training images
    if dry:
        changes += [*_DRY[name], *_DRY_ALL]
    return Recipe.load(RECIPES / f"{name}.toml", changes)


def measure(name: str, source: str, root: str, device: torch.device, *, dry: bool = False) -> dict[str, Any]:
    """Figures of the recipe `name`, ready for JSON: images and seconds an epoch, evaluation, synchronisations, gaps;
    for the report's recipe its whole run, projected. Raises UserError where `source` cannot be read."""
    recipe = recipe_of(name, source, root, dry=dry)
    session = Session(recipe, device, quiet=True)
    data_module, runner = session.data_module, session.runner
    try:
        for _ in range(WARM_UP):
            train(runner)
        warm = time.perf_counter() - session.opened
        seconds, images = _timed(runner)
        steps = len(data_module.train)
        step_seconds = statistics.median(seconds) / steps
        figures: dict[str, Any] = {
            "recipe": name,
            "source": data_module.dataset.name,
            "loader": data_module.loading.name,
            "loader_because": data_module.loading.reason,
            "captured": runner.captured,
            "not_captured_because": runner.fallback_reason,
            "steps": steps,
            "images": images,
            "warm_up_seconds": warm,
            "seconds": statistics.median(seconds),
            "each_seconds": seconds,
            "images_per_second": images / statistics.median(seconds),
            "milliseconds_per_step": step_seconds * 1e3,
        }
        evaluation = _evaluation(session)
        figures["evaluated_images_per_second"] = evaluation
        figures |= synchronisations(lambda: _run_through(runner), device)
        figures |= _gaps(runner, step_seconds)
        if name == "report_best":
            figures["projected_run_seconds"] = PAPER_STEPS * step_seconds + PAPER_EVALUATED / evaluation
            figures["projection"] = (
                f"{PAPER_STEPS:,} steps and {PAPER_EVALUATED:,} evaluated images at the measured rates; start, "
                "compilation, checkpoints and page not included"
            )
        return figures
    finally:
        data_module.close()


def train(runner: Runner) -> tuple[float, int]:
    """One epoch's seconds, until the device has done it, and its images."""
    wait(runner.step.device)
    began = time.perf_counter()
    images = _run_through(runner)
    wait(runner.step.device)
    return time.perf_counter() - began, images


def _epoch(runner: Runner) -> Iterator[Launch]:
    return runner.epoch(_EPOCH, 0, len(runner.data_module.train))


def _run_through(runner: Runner) -> int:
    """Enqueue an epoch; returns its images."""
    return sum(launch.images for launch in _epoch(runner))


def _timed(runner: Runner) -> tuple[list[float], int]:
    """Seconds of up to five epochs, of one if it is long, and the images of each."""
    seconds: list[float] = []
    images = 0
    while not seconds or (len(seconds) < 5 and sum(seconds) < 2.0):
        took, images = train(runner)
        seconds.append(took)
    return seconds, images


def _evaluation(session: Session) -> float:
    """Images a second that are evaluated, without test-time augmentation, once compiled."""
    for _ in range(3):
        session.evaluator.logits(session.data_module.test)
    began = time.perf_counter()
    count = len(session.evaluator.logits(session.data_module.test))  # on the CPU: it has waited
    return count / (time.perf_counter() - began)


def synchronisations(epoch: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Number of times that the host waits for the device in `epoch`, as PyTorch notices: `synchronisations`, and of
    the first `synchronises` says what; None on a CPU."""
    if device.type != "cuda":
        epoch()
        return {"synchronisations": None, "synchronises": None}
    wait(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        epoch()
        return {"synchronisations": 0, "synchronises": None}
    except RuntimeError as error:
        first = str(error)[:500]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wait(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    count = sum("synchronizing" in str(each.message) for each in caught)
    return {"synchronisations": count, "synchronises": first}


def _gaps(runner: Runner, step_seconds: float) -> dict[str, Any]:
    """The device's own time a step, from the profiler, and the share of a step's wall time in which it does nothing.

    The wall time is that of epochs without the profiler, which slows the host down. Kernels that overlap count once.
    """
    device = runner.step.device
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    for _ in range(2):  # the first attaches the profiler, which takes its time
        wait(device)
        with torch.profiler.profile(activities=[activity], acc_events=True) as profile:
            began = time.perf_counter()
            steps = _some(_epoch(runner))
            wait(device)
            window = time.perf_counter() - began
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU  # type: ignore[attr-defined]
    spans = [
        (each.time_range.start, each.time_range.end)
        for each in profile.events()
        # Ranges that somebody has named, such as an optimizer's step, span the gaps within.
        if each.device_type == kind and not getattr(each, "is_user_annotation", False)
    ]
    kernels = covered(spans) / 1e6 / steps
    return {
        "profiled_steps": steps,
        "kernels_per_step": len(spans) / steps,
        "kernel_milliseconds_per_step": kernels * 1e3,
        "gap_share": max(0.0, 1 - kernels / step_seconds),
        "gap_share_while_profiled": max(0.0, 1 - kernels * steps / window),
    }


def _some(launches: Iterator[Launch]) -> int:
    """Go through launches until WINDOW steps are done, or all; returns the steps. Asking the epoch for so many steps
    would cut its last launch short, to a length that no epoch has and that is not captured."""
    steps = 0
    for launch in launches:
        steps += launch.steps
        if steps >= WINDOW:
            break
    return steps


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
