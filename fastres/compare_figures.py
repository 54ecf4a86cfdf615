"""The figures of a comparison: curves of all runs in one picture, and accuracy against what it costs.

Runs that differ by seed alone share a colour and a line style; legends and points call runs by their numbers.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Bbox

from fastres.compare import DataSet, Setting
from fastres.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LEAKY,
    ORANGE,
    SKY,
    SMALL,
    TEXT,
    WIDTH,
    curve,
    dress,
    epoch_axis,
    missing_glyphs_are_boxes,
    short,
)

# Okabe and Ito's palette without its yellow, which is too light for lines on white.
_COLOURS = (BLUE, ORANGE, GREEN, SKY, "#cc79a7", "#e69f00", BLACK)
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_MARKERS = ("o", "s", "^", "D")
# Where the numbers of a point may stand, right and up are 1: corners come first, as a front runs level and upright.
_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
MOST = len(_COLOURS) * len(_LINES)
"""Settings that a figure of curves can tell apart, and shows."""
COSTS = {"images_per_second": "training speed (images/s)", "seconds": "time of the whole run (s)"}
"""What accuracy is drawn against, and the label of its axis."""


def curves(settings: list[Setting], panels: list[tuple[str, str, float]]) -> Figure:
    """Metrics of the first `MOST` settings by epoch, a line a run; each of `panels` is a key of metrics.jsonl, the
    label of its axis and the factor to that label's unit. Losses start from 0, unless one is below."""
    settings = settings[:MOST]
    figure = _figure(settings, 2.5 * len(panels) + 0.5)
    last = max((len(run.epochs) for setting in settings for run in setting.runs), default=1)
    stack = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, label, scale) in zip(stack, panels, strict=True):
        dress(axes)
        seen = [np.empty(0)]
        for place, setting in enumerate(settings):
            for run in setting.runs:
                rows = [epoch.model_dump() for epoch in run.epochs]
                # Markers of many epochs would hide the lines; a single epoch is seen by its marker alone.
                size = 3.0 if last <= 12 or len(rows) == 1 else 0.0
                style = {"color": _colour(place), "linestyle": _line(place), "linewidth": 1.4, "markersize": size}
                seen.append(curve(axes, rows, key, scale=scale, **style))
        values = np.concatenate(seen)
        if key.endswith("loss") and len(values) and 0 <= values.min() < values.max():
            axes.set_ylim(0, 1.06 * float(values.max()))
        axes.set_ylabel(label, fontsize=TEXT)
        epoch_axis(axes, max(1, last))
        axes.label_outer()
    _legend(figure, settings, settings, line=True)
    return figure


def pareto(data_set: DataSet, settings: list[Setting]) -> Figure:
    """Mean test accuracy of each setting against training speed (left) and time of the run (right). Bars are one SD
    over seeds, small dots the runs themselves; what the Pareto front holds is filled, and a stepped line follows it.

    `settings` are those of the whole comparison, which decide the colours."""
    shown = [setting for setting in settings if setting in data_set.settings]
    costs = {key: label for key, label in COSTS.items() if data_set.placed(key)}
    figure = _figure(shown, 3.6)
    stack = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (key, label) in zip(stack, costs.items(), strict=True):
        _costs(axes, data_set, settings, key)
        axes.set_xlabel(label, fontsize=TEXT)
    stack[0].set_ylabel("test accuracy (%)", fontsize=TEXT)
    for axes in stack[1:]:
        axes.tick_params(labelleft=False)
    _legend(figure, shown, settings, line=False)
    with missing_glyphs_are_boxes():
        figure.draw_without_rendering()  # from here on it is known where points and letters lie
    for axes, key in zip(stack, costs, strict=True):
        _follow(axes, _points(data_set, key), data_set.front(key), key)
        _number(axes, _points(data_set, key), settings)
    return figure


def _points(data_set: DataSet, key: str) -> dict[Setting, tuple[float, float]]:
    """Where each setting stands: mean of `key`, and of the test accuracy in percent."""
    return {setting: (cost.mean, 100 * gain.mean) for setting, cost, gain in data_set.placed(key)}


def _costs(axes: Axes, data_set: DataSet, settings: list[Setting], key: str) -> None:
    """The points of one panel, and its axes."""
    dress(axes)
    front = data_set.front(key)
    for setting, cost, gain in data_set.placed(key):
        place = settings.index(setting)
        colour = _colour(place)
        if len(setting.counted) > 1:
            dots = [(getattr(run.summary, key), run.summary.test_accuracy) for run in setting.counted]
            known = [(x, 100 * y) for x, y in dots if x is not None and y is not None]
            axes.plot(*zip(*known, strict=True), linestyle="", marker=".", markersize=4, color=colour, alpha=0.6)
        axes.errorbar(
            cost.mean,
            100 * gain.mean,
            yerr=None if gain.sd is None else 100 * gain.sd,
            color=colour,
            marker=_marker(place),
            markersize=7,
            elinewidth=1.0,
            capsize=2.5,
            markerfacecolor=colour if setting in front else "white",
            markeredgewidth=1.5,
        )
    means = [x for x, _ in _points(data_set, key).values()]
    if min(means) > 0 and max(means) > 20 * min(means):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
        axes.xaxis.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")
    axes.margins(0.14)


def _follow(axes: Axes, points: dict[Setting, tuple[float, float]], front: list[Setting], key: str) -> None:
    """The best accuracy within each time, or at each speed: a stepped line through the front to the panel's edges."""
    line = sorted(points[setting] for setting in front)
    (low, high), bottom = axes.get_xlim(), axes.get_ylim()[0]
    if key == "seconds":
        line, steps = [(line[0][0], bottom), *line, (high, line[-1][1])], "steps-post"
    else:
        line, steps = [(low, line[0][1]), *line, (line[-1][0], bottom)], "steps-pre"
    style: dict[str, Any] = {"color": GREY, "linewidth": 1.2, "linestyle": (0, (4, 2)), "drawstyle": steps, "zorder": 1}
    axes.plot(*zip(*line, strict=True), scalex=False, scaley=False, **style)


def _number(axes: Axes, points: dict[Setting, tuple[float, float]], settings: list[Setting]) -> None:
    """Write the numbers of its runs at each point, on the side where they cover least of other points and numbers."""
    point_of_screen = 72 / axes.figure.dpi
    reach = 6 / point_of_screen  # pixels from a point's centre to its numbers
    at = {setting: axes.transData.transform(point) for setting, point in points.items()}
    taken = [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach) for x, y in at.values()]
    panel = axes.get_window_extent()
    for setting, point in points.items():
        x, y = at[setting]
        style: dict[str, Any] = {"fontsize": SMALL, "fontweight": "bold", "textcoords": "offset points"}
        text = axes.annotate(short(setting.numbers, 14), point, (0, 0), color=_colour(settings.index(setting)), **style)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # legible on the front's line
        extent = text.get_window_extent()
        wide, high = extent.width, extent.height
        boxes = [
            Bbox.from_bounds(
                x + across * (reach + wide / 2) - wide / 2, y + up * (reach + high / 2) - high / 2, wide, high
            )
            for across, up in _SIDES
        ]
        # What would lie outside of the panel is covered too. Whole pixels: roundings shall not decide.
        covered = [
            round(sum(_common(box, other) for other in taken) + wide * high - _common(box, panel)) for box in boxes
        ]
        best = boxes[covered.index(min(covered))]
        text.xyann = ((best.x0 - x) * point_of_screen, (best.y0 - y) * point_of_screen)
        taken.append(best)


def _common(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share, in square pixels."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else both.width * both.height


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _line(place: int) -> Any:
    return _LINES[place // len(_COLOURS) % len(_LINES)]


def _marker(place: int) -> str:
    return _MARKERS[place // len(_COLOURS) % len(_MARKERS)]


def _figure(settings: list[Setting], height: float) -> Figure:
    """An empty figure with room for a legend of `settings` in two columns above `height` inches."""
    rows = -(-len(settings) // 2)
    return Figure(figsize=(WIDTH, height + 0.19 * rows), layout="constrained", facecolor="white")


def _legend(figure: Figure, shown: list[Setting], settings: list[Setting], *, line: bool) -> None:
    """Say above the figure which of the runs a colour stands for; the place among `settings` decides the colour."""
    handles = []
    for setting in shown:
        place, first = settings.index(setting), setting.runs[0]
        style: dict[str, Any] = {"linestyle": "", "marker": _marker(place), "markersize": 6}
        if line:
            style = {"linestyle": _line(place), "linewidth": 1.8}
        name = f"{short(setting.numbers, 14)}  {short(first.name, 26)}{' …' if len(setting.runs) > 1 else ''}"
        if line and first.recipe.data.split == "report":
            name += f" ({LEAKY})"
        handles += figure.axes[0].plot([], [], label=name, color=_colour(place), **style)
    legend = figure.legend(
        handles=handles, loc="outside upper center", ncols=2, fontsize=SMALL, frameon=False, handlelength=3
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a folder's name may hold dollar signs
