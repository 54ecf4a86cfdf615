"""The figures of a comparison: curves of all runs in one picture, and accuracy against what it costs.

Runs that differ by seed alone share a colour and a line style; legends and points call runs by their numbers.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fastres.experiments.compare.compare import DataSet, Setting
from fastres.report import pareto as pareto_figure
from fastres.report import style
from fastres.report.pareto import COLOURS, Mark, colour

_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MOST = len(COLOURS) * len(_LINES)
"""Settings that a figure of curves can tell apart, and shows."""


@style.own_settings()
def curves(settings: list[Setting], panels: list[tuple[str, str, float]]) -> Figure:
    """Metrics of the first `MOST` settings by epoch, a line a run; each of `panels` is a key of metrics.jsonl, the
    label of its axis and the factor to that label's unit. Losses start from 0, unless one is below."""
    settings = settings[:MOST]
    rows = -(-len(settings) // 2)  # of the legend
    high = 2.5 * len(panels) + 0.5 + 0.19 * rows
    figure = Figure(figsize=(style.WIDTH, high), layout="constrained", facecolor="white")
    last = max((len(run.epochs) for setting in settings for run in setting.runs), default=1)
    stack = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, label, scale) in zip(stack, panels, strict=True):
        style.dress(axes)
        seen = [np.empty(0)]
        for index, setting in enumerate(settings):
            for run in setting.runs:
                # Markers of many epochs would hide the lines; a single epoch is seen by its marker alone.
                size = 3.0 if last <= 12 or len(run.epochs) == 1 else 0.0
                look = {"color": colour(index), "linestyle": _line(index), "linewidth": 1.4, "markersize": size}
                seen.append(style.curve(axes, run.epochs, key, scale=scale, **look))
        values = np.concatenate(seen)
        if key.endswith("loss") and len(values) and 0 <= values.min() < values.max():
            style.from_zero(axes, values)
        axes.set_ylabel(label, fontsize=style.TEXT)
        style.epoch_axis(axes, max(1, last))
        axes.label_outer()
    _legend(figure, settings)
    return figure


@style.own_settings()
def pareto(data_set: DataSet, settings: list[Setting]) -> Figure:
    """Test accuracy of each setting against training speed and time of the run; see `pareto_figure.pareto`.

    `settings` are those of the whole comparison, which decide the colours."""
    marks = [
        Mark(setting.numbers, _name(setting), index, [run.summary for run in setting.counted])
        for index, setting in enumerate(settings)
        if setting in data_set.settings
    ]
    return pareto_figure.pareto(marks)


def _line(index: int) -> Any:
    return _LINES[index // len(COLOURS) % len(_LINES)]


def _name(setting: Setting) -> str:
    first = setting.runs[0].name
    return f"{style.short(setting.numbers, 14)}  {style.short(first, 26)}{' …' if len(setting.runs) > 1 else ''}"


def _legend(figure: Figure, settings: list[Setting]) -> None:
    handles = []
    for index, setting in enumerate(settings):
        name = _name(setting)
        if setting.runs[0].recipe.data.split == "report":
            name += f" ({style.LEAKY})"
        look: style.Look = {"linestyle": _line(index), "linewidth": 1.8, "color": colour(index)}
        handles += figure.axes[0].plot([], [], label=name, **look)
    style.legend(figure, handles=handles, fontsize=style.SMALL)
