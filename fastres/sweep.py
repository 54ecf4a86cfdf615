"""Sweeps: the points of a recipe with `[sweep]`, checked before the first run and trained one after the other.

Each point is an ordinary run directory. What is finished is picked up and what was interrupted is resumed, so that the
same command always goes on.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastres.engine.device import choose_device
from fastres.errors import Diverged, Interrupted, UserError
from fastres.models import build, layers
from fastres.recipe import Recipe
from fastres.recipe.loading import Layer, dotted, nested, resolve
from fastres.recipe.loading import layers as read_layers
from fastres.recipe.portable import self_contained
from fastres.runs import directory
from fastres.runs.directory import PLAN
from fastres.sweep_page import write_results
from fastres.sweep_results import DIVERGED, SUMMARY, labels, read_row, summarise
from fastres.training.data import shape_of
from fastres.training.loop import OnEpoch
from fastres.training.run import resume, train
from fastres.utils.files import write_json, write_text
from fastres.utils.format import duration


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep."""

    name: str
    """Of the run directory, and in the table."""
    point: str
    """Name of the entry of `sweep.points` that it comes from; empty for a sweep without."""
    settings: dict[str, Any]
    """What differs between the points: dotted keys, and their values in `recipe` (None where it has none)."""
    recipe: Recipe
    """The whole recipe, without the sweep."""


@dataclass(frozen=True)
class SweepPlan:
    """A recipe and all its points."""

    recipe: Recipe
    """The recipe without a point, with its sweep."""
    points: list[SweepPoint]
    """In the order of training: named points slowest, the last key of the grid fastest."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left behind."""

    folder: Path
    """Where the run directories, sweep.json, sweep.md, sweep.png and sweep.html are."""
    summary: dict[str, Any]
    """What sweep.json holds."""


# ---------------------------------------------------------------------------------------------------- the points


def load(path: str | Path, overrides: list[str] | None = None) -> SweepPlan:
    """Read the points of the recipe at `path`; `overrides`, such as `"train.epochs=3"`, hold for all of them.

    Raises UserError where the recipe has no [sweep], where any point is no valid recipe, where two points are the same,
    and where an override sets what the sweep sets itself.
    """
    path, overrides = Path(path), overrides or []
    below = read_layers(path, overrides)
    recipe: Recipe = resolve(Recipe, below, path)
    sweep = recipe.sweep
    if sweep is None:
        raise UserError(f"{path} has no [sweep]: train it with `fastres train {path}`, or add the table")
    assert sweep.search is None, "search.py finds its own points"
    named = [(point.name, dotted(point.set)) for point in sweep.points] or [("", {})]
    keys = list(dict.fromkeys([key for _, settings in named for key in settings] + list(sweep.grid)))
    check_overrides(overrides, keys, sweep.grid)
    made: list[tuple[str, str, Recipe]] = []
    names: set[str] = set()
    seen: dict[str, str] = {}
    for name, given, layer in _layers(named, sweep.grid, path, names):
        point = resolve(Recipe, [*below, layer], path).model_copy(update={"sweep": None})
        twin = seen.setdefault(json.dumps(point.model_dump(), sort_keys=True), name)
        if twin != name:
            raise UserError(f"{path}: the points {twin} and {name} are the same recipe: leave one of them out")
        made.append((name, given, point))
    values = {key: [value_at(point, key) for *_, point in made] for key in keys}
    differ = [key for key in keys if any(value != values[key][0] for value in values[key])]
    settings = [{key: values[key][index] for key in differ} for index in range(len(made))]
    points = [SweepPoint(name, given, chosen, one) for (name, given, one), chosen in zip(made, settings, strict=True)]
    if sweep.by.startswith("val_"):
        without = next((point.name for point in points if point.recipe.data.split == "none"), None)
        if without is not None:
            raise UserError(
                f"{path}, point {without}: sweep.metric = '{sweep.by}' needs validation images: "
                "set data.split to 'holdout'"
            )
    return SweepPlan(recipe, points)


def _layers(
    named: list[tuple[str, dict[str, Any]]], grid: dict[str, list[Any]], path: Path, names: set[str]
) -> Iterator[tuple[str, str, Layer]]:
    """Name, point of `named` and layer of each point; `names` are those given so far."""
    names_of = labels([*grid])
    for (given, settings), values in itertools.product(named, itertools.product(*grid.values())):
        chosen = dict(zip(grid, values, strict=True))
        parts = [given] * bool(given) + [f"{names_of[key]}={_text(value)}" for key, value in chosen.items()]
        stem = re.sub(r"[^A-Za-z0-9._=+,-]", "-", ",".join(parts))[:120]  # a folder's name has up to 255 bytes
        numbers = (f"{stem}-{number}" for number in itertools.count(2))
        name = stem if stem not in names else next(other for other in numbers if other not in names)
        names.add(name)
        both = next((key for key in chosen if key in settings), None)
        if both is not None:
            raise UserError(f"{path}: '{both}' is in sweep.grid and in the point {given}: leave one of them out")
        try:
            layer = nested(settings | chosen)
        except UserError as error:
            raise UserError(f"{path}, point {name}: {error}") from error
        yield name, given, (f"{path}, point {name}", layer)


def _text(value: Any) -> str:
    """A value as part of a name."""
    if isinstance(value, list):
        return "-".join(_text(part) for part in value)
    return "default" if value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def check_overrides(overrides: list[str], keys: list[str], grid: dict[str, list[Any]]) -> None:
    """Refuse an override that every point would undo."""
    for text in overrides:
        key = text.partition("=")[0].strip()
        swept = next(
            (other for other in keys if f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.")), None
        )
        if swept is not None:
            fix = f"change it there, with --set sweep.grid.{swept}=[…]" if swept in grid else "leave it out"
            raise UserError(f"--set {text}: the points of the sweep set '{swept}' themselves: {fix}")


def value_at(recipe: Recipe, key: str) -> Any:
    """The value at a dotted key; None where the recipe has none."""
    value: Any = recipe.model_dump()
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


# ---------------------------------------------------------------------------------------------------- the runs


def sweep(
    plan: SweepPlan, *, out: str | Path | None = None, device: str = "auto", quiet: bool = False, name: str = "recipe"
) -> SweepResult:
    """Train the points of `plan` into run directories of the folder `out` (by default runs/<name>-sweep-<time>), and
    write the table and the page.

    A point that is finished there is picked up, an interrupted one is resumed; a point whose loss leaves the reals is
    kept as diverged, and the others go on. Raises UserError for what the user can put right, Interrupted after Ctrl-C
    or SIGTERM, when everything can be resumed.
    """
    choose_device(device)
    work = [work_of(point) for point in plan.points]
    goes_on = out is not None and (Path(out) / PLAN).is_file()
    folder = Path(str(out)) if goes_on else directory.new_folder(out, f"{name}-sweep")
    with directory.claimed(folder):
        for point in plan.points:
            check_folder(folder / point.name, point)
        write_text(folder / PLAN, plan.recipe.to_toml())
        (folder / SUMMARY).unlink(missing_ok=True)  # its presence says that all points are done
        rows = complete(folder, plan.points, work, device, quiet)
        assert plan.recipe.sweep is not None
        summary = summarise(rows, plan.recipe.sweep.by, source=plan.recipe.data.source)
        write_results(folder, summary, plan.recipe)
    return SweepResult(folder, summary)


def work_of(point: SweepPoint) -> float:
    """Multiply-adds of the point's training on one image of the set. Raises UserError where its network cannot be."""
    classes, size, _ = shape_of(point.recipe.data)
    try:
        network = build(point.recipe.model, classes, size)
    except UserError as error:
        raise UserError(f"point {point.name}: {error}") from error
    return point.recipe.train.epochs * sum(layer.multiply_adds for layer in layers(network, size))


def check_folder(run: Path, point: SweepPoint) -> None:
    """Raise UserError where `run` is begun and not this point's."""
    if (run / "recipe.toml").is_file() and directory.read_recipe(run) != self_contained(point.recipe):
        raise UserError(f"{run} was trained with another recipe: give another --out, or remove that folder")


def complete(
    folder: Path, points: list[SweepPoint], work: list[float], device: str, quiet: bool
) -> list[dict[str, Any]]:
    """Train what is missing of `points`, each into a run directory of its name in `folder`; returns their rows
    (`read_row`). `work` says how the time of each compares with the others'. Raises Interrupted after Ctrl-C or
    SIGTERM, when everything can be resumed."""
    rows: list[dict[str, Any]] = []
    trained = 0
    try:
        for number, point in enumerate(points, 1):
            run = folder / point.name
            row = read_row(run, point.name, point.point, point.settings)
            if row is None:
                if not quiet:
                    before = f"  {number - 1} were finished before" if number > 1 and not trained else ""
                    left = _left(rows, work)
                    text = f"point {number}/{len(points)}: {point.name}{before}"
                    print(text + (f"  {duration(left)} left" if left else ""), file=sys.stderr, flush=True)
                train_point(run, point, device, quiet)
                trained += 1
                row = read_row(run, point.name, point.point, point.settings)
                assert row is not None, "a run that ends without an error has a summary"
            rows.append(row)
    except (KeyboardInterrupt, Interrupted) as stop:
        how = f"{str(stop).partition(';')[0]} of {point.name}" if isinstance(stop, Interrupted) else "interrupted"
        raise Interrupted(
            f"{how}; {len(rows)} of {len(points)} points are finished; the same command with --out {folder} goes on"
        ) from None
    return rows


def _left(rows: list[dict[str, Any]], work: list[float]) -> float | None:
    """Seconds that the points without a row take, in proportion to their work; None before there is anything to
    measure."""
    measured = [(row["seconds"], done) for row, done in zip(rows, work, strict=False) if row["seconds"] is not None]
    done = sum(share for _, share in measured)
    return sum(work[len(rows) :]) * sum(seconds for seconds, _ in measured) / done if done else None


def train_point(run: Path, point: SweepPoint, device: str, quiet: bool, on_epoch: OnEpoch | None = None) -> None:
    """Train or resume one point to its end, be it a divergence."""
    torch.compiler.reset()  # what earlier points compiled counts against a limit of recompilations, and holds memory
    try:
        if (run / "recipe.toml").is_file():
            resume(run, device=device, quiet=quiet, on_epoch=on_epoch)
        else:
            train(point.recipe, out=run, device=device, quiet=quiet, on_epoch=on_epoch)
    except Diverged as error:
        if not quiet:
            print(f"{point.name}: {error}", file=sys.stderr, flush=True)
        write_json(run / DIVERGED, {"error": str(error)})
