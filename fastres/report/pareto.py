"""Accuracy against what it costs: a panel for training speed and one for time, with the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Protocol, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from fastres.report import style
from fastres.report.labels import Label, write_beside
from fastres.utils.json_files import Amount, Count, Entry, Share
from fastres.utils.statistics import Sample

# Okabe and Ito's palette without its yellow, which is too light for lines on white.
COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.SKY, "#cc79a7", "#e69f00", style.BLACK)
_MARKERS = ("o", "s", "^", "D")
COSTS = {"images_per_second": "training speed (images/s)", "seconds": "time of the whole run (s)"}
"""The costs that accuracy is drawn against, each with the label of its axis."""


class Record(Entry):
    """One published result on CIFAR-10's original pixels."""

    name: str
    accuracy: Share
    """Mean test accuracy."""
    seconds: Amount
    """Of one run."""
    device: str
    runs: Count | None
    """Number of runs in the mean; None where it was not published."""
    source: str
    """URL of the publication."""


@dataclass(frozen=True, eq=False)
class Mark:
    """A point of the figure: what differs in nothing but the seed."""

    label: str
    """At the point."""
    name: str
    """In the legend."""
    style_index: int
    """Index among all marks, also those of other figures: decides colour and marker."""
    runs: Sequence[Entry]
    """With `test_accuracy`, `seconds` and `images_per_second` of each seed; None where it is not known."""

    def sample(self, key: str) -> Sample | None:
        """Mean and spread over the seeds; None where no run has it."""
        return Sample.of_known(run[key] for run in self.runs)


@style.own_settings()
def pareto(marks: Sequence[Mark], records: Sequence[Record] = ()) -> Figure:
    """Mean test accuracy of each mark against training speed (left) and time of the run (right). Bars are one SD over
    seeds, small dots the runs themselves; what the Pareto front holds is filled, and a stepped line follows it.
    `records` are hollow stars with letters, on the panel of times alone, and no part of the front."""
    costs = {key: label for key, label in COSTS.items() if placed(marks, key)}
    rows = -(-len(marks) // 2) + (-(-len(records) // 2) + 1.5 if records else 0)  # of the legends
    figure = Figure(figsize=(style.WIDTH, 3.6 + 0.19 * rows), layout="constrained", facecolor="white")
    stack = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (key, label) in zip(stack, costs.items(), strict=True):
        _costs(axes, marks, records if key == "seconds" else (), key)
        axes.set_xlabel(label, fontsize=style.TEXT)
    stack[0].set_ylabel("test accuracy (%)", fontsize=style.TEXT)
    for axes in stack[1:]:
        axes.tick_params(labelleft=False)
    _legend(figure, marks, records)
    figure.draw_without_rendering()  # from here on it is known where points and letters lie
    for axes, key in zip(stack, costs, strict=True):
        _follow(axes, marks, key)
        labels = [
            Label(cost.mean, 100 * gain.mean, style.short(mark.label, 14), colour(mark.style_index))
            for mark, cost, gain in placed(marks, key)
        ]
        others = [
            Label(each.seconds, 100 * each.accuracy, letter, style.GREY, bold=False)
            for letter, each in zip(ascii_lowercase, records, strict=False)
        ]
        write_beside(axes, [*labels, *(others if key == "seconds" else [])])
    return figure


def colour(style_index: int) -> str:
    """Of the mark with this index."""
    return COLOURS[style_index % len(COLOURS)]


def marker(style_index: int) -> str:
    """Of the mark with this index: another one when the colours begin anew."""
    return _MARKERS[style_index // len(COLOURS) % len(_MARKERS)]


def _costs(axes: Axes, marks: Sequence[Mark], records: Sequence[Record], key: str) -> None:
    style.dress(axes)
    best, known = front(marks, key), placed(marks, key)
    for mark, cost, gain in known:
        own = colour(mark.style_index)
        if len(mark.runs) > 1:
            dots = [(run[key], run["test_accuracy"]) for run in mark.runs]
            points = [(x, 100 * y) for x, y in dots if x is not None and y is not None]
            axes.plot(*zip(*points, strict=True), linestyle="", marker=".", markersize=4, color=own, alpha=0.6)
        axes.errorbar(
            cost.mean,
            100 * gain.mean,
            yerr=None if gain.sd is None else 100 * gain.sd,
            color=own,
            marker=marker(mark.style_index),
            markersize=7,
            elinewidth=1.0,
            capsize=2.5,
            markerfacecolor=own if mark in best else "white",
            markeredgewidth=1.5,
        )
    for record in records:
        axes.plot(record.seconds, 100 * record.accuracy, **_STAR)
    means = [cost.mean for _, cost, _ in known] + [record.seconds for record in records]
    if min(means) > 0 and max(means) > 20 * min(means):
        axes.set_xscale("log")
        far = max(means) > 300 * min(means)  # the numbers at every third would run into each other
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if far else (1.0, 3.0), numticks=8))
        axes.xaxis.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")
    axes.margins(0.14)


_STAR: style.Look = {
    "marker": "*",
    "markersize": 9,
    "markerfacecolor": "white",
    "markeredgecolor": style.GREY,
    "markeredgewidth": 1.0,
    "linestyle": "",
}


def _follow(axes: Axes, marks: Sequence[Mark], key: str) -> None:
    """The best accuracy within each time, or at each speed: a stepped line through the front to the panel's edges."""
    best = front(marks, key)
    line = sorted((cost.mean, 100 * gain.mean) for mark, cost, gain in placed(marks, key) if mark in best)
    (low, high), bottom = axes.get_xlim(), axes.get_ylim()[0]
    if key == "seconds":
        line, steps = [(line[0][0], bottom), *line, (high, line[-1][1])], "steps-post"
    else:
        line, steps = [(low, line[0][1]), *line, (line[-1][0], bottom)], "steps-pre"
    look: style.Look = {"color": style.GREY, "linewidth": 1.2, "linestyle": (0, (4, 2)), "drawstyle": steps}
    axes.plot(*zip(*line, strict=True), scalex=False, scaley=False, zorder=1, **look)


def _legend(figure: Figure, marks: Sequence[Mark], records: Sequence[Record]) -> None:
    """Say above the figure what each mark stands for, and below it what the letters do."""
    handles: list[Line2D] = []
    for mark in marks:
        look: style.Look = {"linestyle": "", "marker": marker(mark.style_index), "markersize": 6}
        handles += figure.axes[0].plot([], [], label=mark.name, color=colour(mark.style_index), **look)
    style.legend(figure, handles=handles, fontsize=style.SMALL)
    if records:
        stars: list[Line2D] = []
        for letter, each in zip(ascii_lowercase, records, strict=False):
            name = f"{letter}  {each.name}: {100 * each.accuracy:.1f}%, {each.seconds:g} s, {each.device}"
            stars += figure.axes[0].plot([], [], label=name, **_STAR)
        title = "published: measured on other devices, on CIFAR-10’s original pixels"
        below: style.Look = {"loc": "outside lower center", "title": title, "title_fontsize": style.SMALL}
        style.legend(figure, handles=stars, fontsize=style.SMALL, handlelength=2, **below)


class Sampled(Protocol):
    """Several seeds of one thing."""

    def sample(self, key: str) -> Sample | None:
        """Mean and spread over the seeds; None where no run has it."""


AnySampled = TypeVar("AnySampled", bound=Sampled)


def placed(things: Sequence[AnySampled], key: str) -> list[tuple[AnySampled, Sample, Sample]]:
    """Each of `things` with its sample of `key` and of the test accuracy, where it has both."""
    samples = [(thing, thing.sample(key), thing.sample("test_accuracy")) for thing in things]
    return [(thing, cost, gain) for thing, cost, gain in samples if cost is not None and gain is not None]


def front(things: Sequence[AnySampled], key: str) -> list[AnySampled]:
    """Those on the Pareto front of mean test accuracy against the mean of `key`: `seconds`, of which fewer are better,
    or `images_per_second`, of which more are; the cheapest comes first."""
    sign = {"seconds": 1, "images_per_second": -1}[key]
    known = placed(things, key)
    return [known[index][0] for index in pareto_front([(sign * cost.mean, gain.mean) for _, cost, gain in known])]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, gain) that no other point dominates, by rising cost.

    A point dominates another if it costs no more and gains no less, and is better in one of the two; equal points do
    not dominate each other. One sweep over the sorted points (Kung, Luccio and Preparata 1975, section 2).
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front
