"""The points of a sweep, from its recipe."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from fastres.errors import UserError
from fastres.experiments.sweep.results import labels
from fastres.recipe import Recipe
from fastres.recipe.loading import Layer, dotted, nested, resolve
from fastres.recipe.loading import layers as read_layers
from fastres.utils.paths import expand_home

MOST_POINTS = 10_000
Settings = dict[str, Any]
"""Dotted keys of a recipe and their values, which are of any type that a recipe has."""


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep."""

    name: str
    """Of the run directory, and in the table."""
    point: str
    """Name of the entry of `sweep.points` that it comes from; empty for a sweep without."""
    settings: Settings
    """Settings that differ between the points: dotted keys, and their values in `recipe` (None where it has none)."""
    recipe: Recipe
    """The whole recipe, without the sweep."""


@dataclass(frozen=True)
class SweepPlan:
    """A recipe and all its points."""

    recipe: Recipe
    """The recipe without a point, with its sweep."""
    points: list[SweepPoint]
    """In the order of training: named points slowest, the last key of the grid fastest."""


def load(path: str | Path, overrides: list[str] | None = None) -> SweepPlan:
    """Read the points of the recipe at `path`; `overrides`, such as `"train.epochs=3"`, hold for all of them.

    Raises UserError where the recipe has no [sweep], where any point is no valid recipe, where two points are the same,
    and where an override sets what the sweep sets itself.
    """
    path, overrides = expand_home(path), overrides or []
    below = read_layers(path, overrides)
    recipe: Recipe = resolve(Recipe, below, path)
    sweep = recipe.sweep
    if sweep is None:
        raise UserError(f"{path} has no [sweep]: train it with `fastres train {quote(str(path))}`, or add the table")
    assert sweep.search is None, "search.py finds its own points"
    named = [(point.name, dotted(point.set)) for point in sweep.points] or [("", {})]
    keys = list(dict.fromkeys([key for _, settings in named for key in settings] + list(sweep.grid)))
    check_overrides(overrides, keys, sweep.grid)
    count = len(named) * math.prod(len(values) for values in sweep.grid.values())
    if count > MOST_POINTS:
        raise UserError(
            f"{path}: the sweep has {count:,} points, and {MOST_POINTS:,} at most are trained: narrow its grid"
        )
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
    points = [SweepPoint(name, given, varied, one) for (name, given, one), varied in zip(made, settings, strict=True)]
    if sweep.by.startswith("val_"):
        for point in points:
            if point.recipe.data.split == "none":
                needs = f"sweep.metric = '{sweep.by}' needs validation images"
                raise UserError(f"{path}, point {point.name}: {needs}: set data.split to 'holdout'")
    return SweepPlan(recipe, points)


def _layers(
    named: list[tuple[str, Settings]], grid: dict[str, list[Any]], path: Path, names: set[str]
) -> Iterator[tuple[str, str, Layer]]:
    """Name, point of `named` and layer of each point; `names` are those given so far."""
    names_of = labels([*grid])
    for (given, settings), values in itertools.product(named, itertools.product(*grid.values())):
        cell = dict(zip(grid, values, strict=True))
        parts = [given] * bool(given) + [f"{names_of[key]}={_text(value)}" for key, value in cell.items()]
        stem = re.sub(r"[^A-Za-z0-9._=+,-]", "-", ",".join(parts))[:120]  # a folder's name has up to 255 bytes
        numbers = (f"{stem}-{number}" for number in itertools.count(2))
        name = stem if stem not in names else next(other for other in numbers if other not in names)
        names.add(name)
        both = next((key for key in cell if key in settings), None)
        if both is not None:
            raise UserError(f"{path}: '{both}' is in sweep.grid and in the point {given}: leave one of them out")
        try:
            layer = nested(settings | cell)
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
        swept = [other for other in keys if f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.")]
        if swept:
            fix = f"change it there, with --set sweep.grid.{swept[0]}=[…]" if swept[0] in grid else "leave it out"
            raise UserError(f"--set {text}: the points of the sweep set '{swept[0]}' themselves: {fix}")


def value_at(recipe: Recipe, key: str) -> Any:
    """The value at a dotted key; None where the recipe has none."""
    value: Any = recipe.model_dump()
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
