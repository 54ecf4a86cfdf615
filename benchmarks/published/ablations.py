"""Contribution of each technique of a recipe: the recipe as it is, then without one thing at a time.

    python benchmarks/ablations.py recipes/speed/94.toml --runs 3 --out runs/ablations

ablations.toml names what is taken away, as overrides. Every line is a speedrun of the same seeds, so that
differences are paired, and an interrupted table goes on with the same command. `--set` changes all lines alike, to fit
a machine: `--set data.train_images=10000`. Writes ablations.json, ablations.md and ablations.png to the folder. Exit
status: 0, 2 for what the user can put right, 130 when interrupted.
"""

import argparse
import io
import json
import math
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from fastres.errors import Interrupted, UserError
from fastres.experiments.speedrun.results import SUMMARY, read_rows
from fastres.experiments.speedrun.run import speedrun
from fastres.recipe import Recipe
from fastres.report.document import Table
from fastres.report.style import own_settings
from fastres.utils.files import write_bytes, write_json, write_text
from fastres.utils.statistics import Sample, quantile

LIST = Path(__file__).with_name("ablations.toml")


def lines(path: Path) -> list[tuple[str, list[str]]]:
    """What is taken away, and the overrides that do it; nothing first. Raises UserError for another kind of file."""
    try:
        found = [(each["name"], each["set"]) for each in tomllib.loads(path.read_text())["without"]]
        if not all(isinstance(text, str) for name, sets in found for text in (name, *sets)):
            raise TypeError("names and overrides are strings")
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no list of ablations: give a file like ablations.toml") from error
    return [("", []), *found]


def folder_of(name: str) -> str:
    """A folder's name for a line."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "complete"


def measure(recipe: Path, runs: int, out: Path, common: list[str], device: str, listed: Path) -> list[dict[str, Any]]:
    """One row a line: name, overrides, accuracies and seconds by seed. Lines that are complete are read, not run."""
    # Every recipe is read before the first run: a wrong override should not cost an hour.
    planned = [(name, sets, Recipe.load(recipe, [*common, *sets])) for name, sets in lines(listed)]
    rows = []
    for number, (name, sets, resolved) in enumerate(planned, 1):
        folder = out / folder_of(name)
        print(f"{number}/{len(planned)}: {'without ' + name if name else 'complete'}", file=sys.stderr, flush=True)
        if not (folder / SUMMARY).is_file():
            speedrun(resolved, runs, out=folder, device=device)
        about = json.loads((folder / SUMMARY).read_text())
        if about["recipe_hash"] != resolved.hash() or about["runs"] != runs:
            raise UserError(f"{folder} holds runs of something else: give another --out")
        done = read_rows(folder)
        figures = {"accuracy": [row.test_accuracy for row in done], "seconds": [row.seconds for row in done]}
        where = {"device": about["device"], "source": Path(about["source"]).name}
        rows.append({"without": name, "set": sets, **figures, **where})
        write_json(out / "ablations.json", {"recipe": str(recipe), "set": common, "runs": runs, "rows": rows})
    return rows


def differences(rows: list[dict[str, Any]]) -> list[float]:
    """Of each line but the first: mean accuracy without the technique minus mean accuracy of all."""
    means = [Sample.of(row["accuracy"]).mean for row in rows]
    return [mean - means[0] for mean in means[1:]]


def reach(rows: list[dict[str, Any]]) -> float | None:
    """Half the 95% interval of each difference; None for a single seed.

    A seed makes all lines better or worse together, which differences do not see. What a line and a seed leave over is
    taken to have one variance everywhere, so that all lines estimate it (two-way analysis of variance without
    replication): with few seeds, Student's t then still has many degrees of freedom.
    """
    lines, seeds = len(rows), len(rows[0]["accuracy"])
    if lines < 2 or seeds < 2:
        return None
    of_line = [Sample.of(row["accuracy"]).mean for row in rows]
    of_seed = [Sample.of(column).mean for column in zip(*(row["accuracy"] for row in rows), strict=True)]
    grand = Sample.of(of_line).mean
    squares = sum(
        (value - of_line[line] - of_seed[seed] + grand) ** 2
        for line, row in enumerate(rows)
        for seed, value in enumerate(row["accuracy"])
    )
    degrees = (lines - 1) * (seeds - 1)
    return quantile(0.95, degrees) * math.sqrt(2 * squares / degrees / seeds)


def table(rows: list[dict[str, Any]], *, times: bool = True) -> str:
    """Markdown: mean accuracy, difference, and with `times` that of the quickest run over the complete recipe's."""
    around = reach(rows)
    bounds = "" if around is None else f" (± {100 * around:.2f}, 95%)"
    header = ["without", "test accuracy", f"difference, points{bounds}", "time"]
    lines = [["(nothing: the recipe)", f"{Sample.of(rows[0]['accuracy']).mean:.2%}", "", "1"]]
    for row, difference in zip(rows[1:], differences(rows), strict=True):
        accuracy, spent = Sample.of(row["accuracy"]).mean, min(row["seconds"]) / min(rows[0]["seconds"])
        lines.append([row["without"], f"{accuracy:.2%}", f"{100 * difference:+.2f}", f"{spent:.2f}"])
    shown = slice(None if times else -1)
    return Table(header[shown], [line[shown] for line in lines]).markdown() + "\n"


@own_settings()
def figure(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: a bar a technique, what its absence costs."""
    from matplotlib.figure import Figure

    found = sorted(zip(differences(rows), rows[1:], strict=True), key=lambda pair: pair[0], reverse=True)
    around = reach(rows)
    drawn = Figure(figsize=(8, 0.8 + 0.34 * len(found)), layout="constrained")
    axes = drawn.subplots()
    for place, (difference, row) in enumerate(found):
        error = None if around is None else 100 * around
        axes.barh(place, 100 * difference, xerr=error, color="#4878a8", ecolor="#333333", capsize=2)
        for each, whole in zip(row["accuracy"], rows[0]["accuracy"], strict=True):
            axes.plot(100 * (each - whole), place, ".", color="#d08020", markersize=4)
    axes.set_yticks(range(len(found)), [row["without"] for _, row in found])
    axes.axvline(0, color="black", linewidth=0.8)
    seeds = len(rows[0]["accuracy"])
    axes.set_xlabel(
        f"test accuracy without it, minus with it, percentage points\n(bars: mean and 95% interval; dots: "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}; {rows[0]['source']})"
    )
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what each technique of a recipe contributes.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--runs", type=int, default=3, help="seeds a line (default 3)")
    parser.add_argument("--out", type=Path, required=True, help="folder; an interrupted table goes on there")
    parser.add_argument("--set", action="append", default=[], dest="common", metavar="KEY=VALUE", help="for all lines")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--no-times", action="store_true", help="leave times out: the machine had other work")
    parser.add_argument("--list", type=Path, default=LIST, help="what is taken away")
    options = parser.parse_args(arguments)
    try:
        rows = measure(options.recipe, options.runs, options.out, options.common, options.device, options.list)
        text = table(rows, times=not options.no_times)
        write_text(options.out / "ablations.md", text)
        write_bytes(options.out / "ablations.png", figure(rows))
    except (UserError, Interrupted) as error:
        print(f"ablations: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 130
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
