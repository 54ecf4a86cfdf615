"""The recipe for 94%, trained as many times as the time allows, by `fastres speedrun`'s own function."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.epochs import recipe_of
from benchmarks.gpu.sections import Skipped

RECIPE = "speed/94"
GOAL = {"mean_accuracy": 0.94}
"""On CIFAR-10; on other images there is none."""
MOST_RUNS = 1000
_KEPT = (
    *("mean_accuracy", "sd_accuracy", "interval_low", "interval_high", "p_mean_above_target", "mean_seconds"),
    *("sd_seconds", "cold_seconds", "device", "source", "loader", "precision", "compiled", "compile_note", "epochs"),
    *("steps", "tta", "test_images", "timed", "not_timed"),
)


def run(
    source: str, root: str, device: torch.device, left: Callable[[], float], *, dry: bool = False
) -> Iterator[dict[str, Any]]:
    """Records for JSON: of a single run, which tells how long one takes, and of as many as then fit into the seconds
    that `left` gives, a number that is fixed before the first of them.

    `runs`, their mean accuracy with SD and 95% interval, seconds of a warm run and of the first one with compilation,
    the seconds of the whole call, the goal. Raises Skipped where this version of fastres has no speedruns, UserError
    where `source` cannot be read.
    """
    try:
        from fastres.experiments.speedrun.run import speedrun
    except ImportError as error:
        raise Skipped(f"no speedruns here: {error}") from error
    recipe = recipe_of(RECIPE, source, root, dry=dry)
    goal = GOAL if "cifar" in Path(source).name.lower() and "100" not in source else None

    def measured(what: str, count: int) -> dict[str, Any]:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            target, out = GOAL["mean_accuracy"], Path(folder) / "runs"
            summary = speedrun(recipe, count, target=target, out=out, device=device.type, quiet=True).facts
        kept = {key: summary[key] for key in _KEPT}
        kept["source"] = Path(source).name
        return {"what": what, "runs": count, "all_seconds": time.monotonic() - began, "goal": goal, **kept}

    alone = measured("one run", 1)
    yield alone
    count = 2 if dry else runs_that_fit(left(), alone["all_seconds"], alone["mean_seconds"])
    if count < 2:
        yield {"what": "back to back", "missing": f"no two runs of {alone['mean_seconds']:.1f} s fit: give more time"}
        return
    yield measured("back to back", count)


def runs_that_fit(seconds: float, all_seconds: float, run_seconds: float) -> int:
    """Runs that fit into `seconds`, after a call with one run of `run_seconds` took `all_seconds`: what comes before
    the first run comes again, and a tenth is kept back."""
    before = max(0.0, all_seconds - run_seconds)
    return min(MOST_RUNS, max(0, int((0.9 * seconds - before) / run_seconds)))
