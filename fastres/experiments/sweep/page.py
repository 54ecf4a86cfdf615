"""The page of a sweep, and its figure in parallel coordinates (Inselberg 1985): one axis a key, one line a point."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fastres.experiments.sweep import results
from fastres.recipe import Recipe
from fastres.report import document
from fastres.report.document import Details, Picture
from fastres.report.style import BLACK, GREY, RED, SMALL, TEXT, WIDTH, Look, own_settings, png, short
from fastres.runs.schema import Point, Sweep

SPACED = 12
"""Up to so many different values of a key stand evenly spaced on its axis; more of them on a scale."""

_PRUNED, _NO_RESULT = -0.08, -0.15  # heights below the metric's axis, which spans 0 to 1


def write_results(folder: Path, summary: Sweep, recipe: Recipe) -> None:
    """Write figure, page and tables of a sweep, last the file whose presence says that all is done."""
    rows, metric = summary.points, summary.metric
    keys = [*rows[0].settings]
    if rows[0].point and recipe.sweep is not None:  # its name stands for all the keys that a point sets
        keys = [key for key in keys if key in recipe.sweep.grid]
    caption = (
        f"Each line is a point: its value on the axis of each key that differs, and its {results.metric_name(metric)}, "
        "best at the top. Darker lines are better, the black one is the best point; thin grey ones were pruned, dashed "
        "red ones have no result."
    )
    figure = Picture(results.FIGURE, png(parallel(rows, keys, metric)), caption)
    parts = [*results.parts(summary, figure), Details("Recipe with its sweep", recipe.to_toml())]
    document.write(folder, [results.TABLE, results.PAGE], folder.name, parts, figures="")
    summary.write(folder / results.SWEEP)


@own_settings()
def parallel(rows: Sequence[Point], keys: list[str], metric: str) -> Figure:
    """Rows of sweep.json as lines over one axis a key of `keys`, and one for `metric`; coloured by it."""
    figure = Figure(figsize=(WIDTH, 4.4), facecolor="white")
    axes = figure.add_axes((0.0, 0.02, 1.0, 0.86))
    named = bool(rows[0].point)
    columns: list[tuple[str, list[Any]]] = [("point", [row.point for row in rows])] if named else []
    columns += [(results.labels(keys)[key], [row.settings[key] for row in rows]) for key in keys]
    columns = columns or [("point", [row.name for row in rows])]
    # A pruned trial was measured after fewer epochs than the others: its value does not belong on their axis.
    measured = [row[metric] if row.state == "complete" else None for row in rows]
    known = [value for value in measured if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    scale = Normalize(low, high) if high > low else Normalize(low - 1, high)
    turned = metric.endswith("loss")  # the best at the top

    def height(value: float) -> float:
        return float(1 - scale(value) if turned else scale(value))

    places = [_axis(axes, at, name, values) for at, (name, values) in enumerate(columns)]
    last = len(columns)
    _measure_axis(axes, last, metric, (low, high), height)
    colours = matplotlib.colormaps["viridis_r"]
    ease = np.linspace(0, 1, 25)
    curve = ease * ease * (3 - 2 * ease)  # level at the axes: lines that meet there can be followed through
    for index in reversed(range(len(rows))):  # the best is drawn last
        value = measured[index]
        pruned = rows[index].state == "pruned"
        end = height(value) if value is not None else _PRUNED if pruned else _NO_RESULT
        ys = [*(heights[index] for heights in places), end]
        x = np.concatenate([at + ease for at in range(last)])
        y = np.concatenate([a + (b - a) * curve for a, b in pairwise(ys)])
        style: Look = {"color": colours(0.1 + 0.75 * end), "linewidth": 1.6, "alpha": 0.9}
        if pruned:
            style = {"color": GREY, "linewidth": 1.0, "alpha": 0.6}
        elif value is None:
            style = {"color": RED, "linewidth": 1.2, "linestyle": (0, (4, 2))}
        elif index == 0:
            style = {"color": BLACK, "linewidth": 2.6}
        axes.plot(x, y, solid_capstyle="round", zorder=2, **style)
    states = {row.state for row in rows}
    if "pruned" in states:
        axes.text(last + 0.05, _PRUNED, "pruned", fontsize=SMALL, color=GREY, va="center")
    if states & {"diverged", "failed"}:
        axes.text(last + 0.05, _NO_RESULT, "no result", fontsize=SMALL, color=RED, va="center")
    room = 0.45 if last > 1 else 0.3
    axes.set_xlim(-room, last + room)
    axes.set_ylim(-0.17, 1.04)
    axes.set_axis_off()
    return figure


def _axis(axes: Axes, at: int, name: str, values: list[Any]) -> list[float]:
    """Draw the axis of a key at x = `at`; returns the height, 0 to 1, of each value."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    different = sorted(set(values)) if numbers else list({results.shown(value): value for value in values}.values())
    texts = [results.shown(value) for value in values]
    _line(axes, at, name)
    if numbers and len(different) > SPACED:
        small, large = float(different[0]), float(different[-1])
        logarithmic = small > 0 and large / small >= 30
        scaled = np.log(np.array([*values, small, large], float)) if logarithmic else np.array([*values, small, large])
        heights = (scaled - scaled[-2]) / (scaled[-1] - scaled[-2])
        ticks = np.geomspace(small, large, 5) if logarithmic else np.linspace(small, large, 5)
        for height, tick in zip(np.linspace(0, 1, 5), ticks, strict=True):
            _label(axes, at, float(height), f"{tick:.3g}")
        return [float(height) for height in heights[:-2]]
    names = [*map(results.shown, different)] if numbers else sorted(dict.fromkeys(texts), key=texts.index)[::-1]
    places = {text: (index + 0.5) / len(names) for index, text in enumerate(names)}
    for text, level in places.items():
        _label(axes, at, level, text)
    return [places[text] for text in texts]


def _measure_axis(axes: Axes, at: int, metric: str, span: tuple[float, float], height: Any) -> None:
    _line(axes, at, results.metric_name(metric))
    for tick in np.unique(np.linspace(*span, 5)):
        y = height(float(tick))
        axes.plot([at, at + 0.03], [y, y], color=GREY, linewidth=1.0)
        axes.text(at + 0.05, y, results.measure_shown(float(tick), metric), fontsize=SMALL, va="center", color=BLACK)


def _line(axes: Axes, at: int, name: str) -> None:
    axes.plot([at, at], [0, 1], color=GREY, linewidth=1.2, zorder=1)
    axes.text(at, 1.05, short(name, 18), ha="center", va="bottom", fontsize=TEXT, parse_math=False, clip_on=False)


def _label(axes: Axes, at: int, y: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
    axes.text(at, y, short(text, 18), zorder=3, va="center", ha="center", fontsize=SMALL, parse_math=False, bbox=box)
