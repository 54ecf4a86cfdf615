"""The report's whole run, recipes/report_best.toml, in a process of its own, as its user waits for it."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.epochs import RECIPES, recipe_of
from benchmarks.gpu.sections import Failed, Skipped
from fastres.data import open_dataset

ROOT = RECIPES.parent
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from fastres.recipe import Recipe
from fastres.training.run import train
train(Recipe.load(sys.argv[2]), out=sys.argv[3], device=sys.argv[4], quiet=True)
"""


def run(source: str, root: str, device: str, seconds: float, *, dry: bool = False) -> dict[str, Any]:
    """Train it, on `device` ("cuda" or "cpu") and from a prepared store; figures for JSON.

    `wall_seconds` is from the start of the process to its end: imports, compilation, training, evaluation after each
    epoch, checkpoints, the test, the page. A run that `seconds` cannot hold is ended; `finished` is then False, and
    `epochs_done` says how far it came. Raises Skipped where a package is missing, Failed where the run fails.
    """
    recipe = recipe_of("report_best", source, root, dry=dry)
    if dry:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 1.0})})
    dataset = open_dataset(source, root=root, quiet=True)  # prepared before the clock runs
    with tempfile.TemporaryDirectory() as folder:
        written, out = Path(folder) / "recipe.toml", Path(folder) / "run"
        written.write_text(recipe.to_toml())
        command = [sys.executable, "-c", _PROGRAM, str(ROOT), str(written), str(out), device]
        began = time.monotonic()
        try:
            # A dry run's tensors are tiny: threads that wait for a busy core would take most of the time.
            variables = {**os.environ, "OMP_NUM_THREADS": "1"} if dry else None
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, seconds), env=variables)
        except subprocess.TimeoutExpired:
            done = None
        wall = time.monotonic() - began
        if done is not None and done.returncode:
            absent = re.search(r"No module named '([^']+)'", done.stderr)
            if absent:
                raise Skipped(f"needs {absent[1]}, which is not installed")
            raise Failed(f"the run ended with status {done.returncode}: {done.stderr.strip()[-600:]}")
        figures: dict[str, Any] = {
            "source": dataset.name,
            "finished": done is not None,
            "wall_seconds": wall,
            "epochs": recipe.train.epochs,
        }
        if done is None:
            rows = out / "metrics.jsonl"
            lines = rows.read_text().splitlines() if rows.is_file() else []
            return {**figures, "epochs_done": len(lines), "last": json.loads(lines[-1]) if lines else None}
        return {**figures, "epochs_done": recipe.train.epochs, **json.loads((out / "summary.json").read_text())}
