"""How often the regression gate is right: it is run many times with and without a planted slowdown, idle and loaded.

    python -m benchmarks.gate_power --runs 20 --out benchmarks/results/gate-power.json

Each run starts both processes anew, as the gate does, because what differs between two processes of the same code is a
part of its noise. The planted copy lengthens each step by a share of its own time. The load is a process that never
waits. A line is printed for each run; the file has them all.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gate import gate
from fastres.recipe import Recipe
from fastres.utils.files import write_json
from fastres.utils.machine import facts_to_publish

PLANTED = "FASTRES_PLANTED_SLOWDOWN"
SOURCE = f'''

def _planted(call):
    import os, time
    share = float(os.environ.get("{PLANTED}", "0"))

    def slower(*arguments, **options):
        began = time.perf_counter()
        result = call(*arguments, **options)
        end = time.perf_counter() + share * (time.perf_counter() - began)
        while time.perf_counter() < end:
            pass
        return result

    return slower


Step.__call__ = _planted(Step.__call__)
'''
CASES = (("idle", 0.10), ("idle", 0.0), ("loaded", 0.20), ("loaded", 0.0))
"""With another process on one core or without, and the planted share."""


def plant(folder: Path, code: str = SOURCE) -> Path:
    """A copy of this checkout's package in `folder`, with `code` at the end of step.py: by default its steps take
    longer by the share that the environment says."""
    compiled = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("fastres", "kernels"):
        shutil.copytree(gate.ROOT / name, folder / name, symlinks=True, ignore=compiled)
    path = folder / "fastres" / "training" / "step.py"
    path.write_text(path.read_text() + code)
    return folder


@contextmanager
def loaded(busy: bool) -> Iterator[None]:
    """With a process that keeps a core busy."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def judged(planted: Path, share: float, recipe: Recipe, part: str) -> tuple[gate.Finding, int]:
    """One run of the gate, this checkout against the copy slower by `share`: what it found, by how many threads."""
    os.environ[PLANTED] = str(share)
    try:
        with gate.opened(gate.ROOT, recipe, checkout=planted) as sides:
            return sides.compare(part), sides.sides[1].threads
    finally:
        del os.environ[PLANTED]


def main() -> None:
    """Run all cases; see above."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--runs", type=int, default=20)
    options.add_argument("--part", choices=("epoch", "step"), default="step")
    options.add_argument("--out", type=Path)
    options.add_argument("--set", dest="settings", action="append", default=[], help="recipe override")
    asked = options.parse_args()
    recipe = Recipe.load(gate.RECIPE, [*gate.SETTINGS, *asked.settings])
    report: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.gate_power", *sys.argv[1:]]),
        "machine": facts_to_publish(),
        "limit": gate.Rule().limit,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        planted = plant(Path(temporary))
        with gate.opened(gate.ROOT, recipe, checkout=planted):
            pass  # compile both
        for place, share in CASES:
            rows = []
            for run in range(asked.runs):
                with loaded(place == "loaded"):
                    began = time.perf_counter()
                    finding, threads = judged(planted, share, recipe, asked.part)
                took = time.perf_counter() - began
                right = finding.slower == (share > 0)
                rows.append({**vars(finding), "threads": threads, "right": right, "wall_seconds": took})
                print(f"{place:<7} {share:+.0%} planted  run {run + 1:>2}: {finding.text}  {took:.0f} s", flush=True)
            count = sum(row["right"] for row in rows)
            print(f"{place:<7} {share:+.0%} planted: right in {count} of {asked.runs}", flush=True)
            report["cases"].append({"machine": place, "planted": share, "right": count, "runs": rows})
            if asked.out is not None:
                write_json(asked.out, report)


if __name__ == "__main__":
    main()
