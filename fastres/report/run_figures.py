"""The figures of a run's page: one function a figure, from arrays or rows of metrics.jsonl to a matplotlib Figure.

Figures are built as objects, without pyplot, under settings of their own (`style.own_settings`). All are 7 inches
wide, so that text of 9 to 10 points stays readable where a page shows them 700 pixels wide. Class names are hostile:
they are shortened, stripped of what does not print, and never read as TeX.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastres.report import style
from fastres.runs.schema import Best, Corruptions, Epoch, Speedrun, SpeedrunRow


@style.own_settings()
def samples(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], after: np.ndarray | None = None
) -> Figure:
    """Up to 32 training images, uint8 [n, H, W, 3], under the names of their classes; or up to 16 above themselves
    `after` augmentation, float32 [n, H, W, 3] in 0 to 1."""
    images = images[: 32 if after is None else 16]
    captions = [style.short(classes[label], 16) for label in labels[: len(images)]]
    return mixed(images, after, captions, min(8, max(4, len(images))))


@style.own_settings()
def mixed(images: np.ndarray, after: np.ndarray | None, captions: list[str], columns: int) -> Figure:
    """Images, uint8 [n, H, W, 3], above what augmentation and mixing make of them, float32 in 0 to 1: a row a batch."""
    return style.tiles(images, captions, columns=columns, empty="There is no training image to show.", after=after)


@style.own_settings()
def class_counts(
    train_labels: np.ndarray, val_labels: np.ndarray | None, classes: tuple[str, ...], *, leak: bool = False
) -> Figure:
    """Images of each class, int64 labels [N]: a bar for training and, where there is one, for validation."""
    parts = [("training", train_labels, style.BLUE)]
    if val_labels is not None:
        parts.append((style.LEAKY if leak else "validation", val_labels, style.RED))
    number = len(classes)
    named = number <= 30
    # Names are read on a vertical axis; of 100 classes, numbers on a horizontal one.
    figure, axes = style.single(max(2.2, 0.34 * number + 0.9) if named else 3.2)
    thick = 0.8 / len(parts)
    for index, (name, labels, colour) in enumerate(parts):
        counts = np.bincount(labels, minlength=number)[:number]
        at = np.arange(number) + (index - (len(parts) - 1) / 2) * thick
        hatch = "//" if index else None
        # An edge in white keeps hatched bars apart from plain ones without colour.
        look: style.Look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0, "label": name}
        if named:
            bars = axes.barh(at, counts, thick, **look)
            axes.bar_label(bars, [f"{count:,}" for count in counts], fontsize=style.SMALL, padding=3)
        else:
            axes.bar(at, counts, thick, **look)
    if named:
        axes.set_yticks(range(number), [style.short(name, 24) for name in classes], parse_math=False)
        axes.set_ylim(number - 0.4, -0.6)
        axes.set_xlabel("images", fontsize=style.TEXT)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.set_xlabel("class (label)", fontsize=style.TEXT)
        axes.set_ylabel("images", fontsize=style.TEXT)
        axes.grid(visible=False, axis="x")
        axes.set_xlim(-1, number)
    style.legend(figure)
    return figure


def _epochs(figure: Figure, rows: Sequence[Epoch], best: Best | None) -> None:
    """The axis of epochs with a mark at the epoch whose weights were chosen, and the legend."""
    axes = figure.axes[0]
    style.epoch_axis(axes, max((row.epoch for row in rows), default=1))
    if best:
        label = f"epoch {best.epoch}, the chosen one"
        axes.axvline(best.epoch, color=style.GREY, linewidth=1.2, linestyle=(0, (2, 2)), label=label, zorder=1)
    if axes.get_legend_handles_labels()[1]:
        style.legend(figure)


_Texts = dict[tuple[int, int], str]
_Curve = tuple[Sequence[Epoch], str, style.Look]
_DASHED: style.Look = {"color": style.RED, "linestyle": (0, (5, 1.5))}


@style.own_settings()
def loss(rows: list[Epoch], *, best: Best | None = None, leak: bool = False) -> Figure:
    """Training loss in blue and validation loss in red by epoch: the report's Figure 4.

    `leak` says that validation images are trained on; the red curve then carries that name. `best` is the summary's
    table of the chosen epoch.
    """
    curves: list[_Curve] = [
        (rows, "train_loss", {"color": style.BLUE, "label": "training"}),
        (rows, "val_loss", _DASHED | {"label": f"{style.LEAKY}: mostly images trained on" if leak else "validation"}),
        (rows, "test_loss", {"color": style.BLACK, "linestyle": ":", "marker": "s", "label": "test"}),
    ]
    return _losses(curves, best)


@style.own_settings()
def honest_loss(code: Sequence[Epoch], honest: Sequence[Epoch]) -> Figure:
    """Losses of two runs: training (blue) and leaky validation (red) of the one with the code's split, and validation
    on held-out images (black) of the one without the leak, `honest`."""
    curves: list[_Curve] = [
        (code, "train_loss", {"color": style.BLUE, "label": "training, the code's split"}),
        (code, "val_loss", _DASHED | {"label": f"{style.LEAKY}, the code's split"}),
        (honest, "val_loss", {"color": style.BLACK, "linestyle": "-.", "marker": "s", "label": "validation, held out"}),
    ]
    return _losses(curves, None)


def _losses(curves: list[_Curve], best: Best | None) -> Figure:
    """The key of each of the rows, from 0."""
    figure, axes = style.single(3.9)
    style.from_zero(axes, [value for rows, key, look in curves for value in style.curve(axes, rows, key, **look)])
    axes.set_ylabel("cross-entropy loss (nats an image)", fontsize=style.TEXT)
    _epochs(figure, [row for rows, _, _ in curves for row in rows], best)
    return figure


@style.own_settings()
def accuracy(
    rows: list[Epoch], *, best: Best | None = None, leak: bool = False, test_accuracy: float | None = None
) -> Figure:
    """Accuracy in percent by epoch; `test_accuracy` (0 to 1) of the final weights is a level line."""
    figure, axes = style.single(3.9)
    name = style.LEAKY if leak else "validation"
    values = [
        style.curve(axes, rows, "train_accuracy", scale=100, color=style.SKY, label="training"),
        style.curve(axes, rows, "val_accuracy", scale=100, color=style.ORANGE, linestyle=(0, (5, 1.5)), label=name),
        style.curve(axes, rows, "test_accuracy", scale=100, color=style.BLACK, linestyle=":", marker="s", label="test"),
    ]
    if test_accuracy is not None:
        label = f"test at the end, {test_accuracy:.2%}"
        axes.axhline(100 * test_accuracy, color=style.GREEN, linewidth=1.5, linestyle="-.", label=label)
        values.append(np.array([100 * test_accuracy]))
    seen = np.concatenate(values)
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 100.0)
    room = max(1.0, 0.06 * (high - low))
    axes.set_ylim(max(0.0, low - room), min(100.5, high + room))
    axes.set_ylabel("accuracy (%)", fontsize=style.TEXT)
    _epochs(figure, rows, best)
    return figure


@style.own_settings()
def learning_rate(rows: list[Epoch]) -> Figure:
    """Learning rate as each row of metrics.jsonl has it, by epoch."""
    figure, axes = style.single(2.6)
    values = style.curve(axes, rows, "lr", color=style.GREEN)
    style.from_zero(axes, values)
    axes.set_ylabel("learning rate", fontsize=style.TEXT)
    _epochs(figure, rows, None)
    return figure


@style.own_settings()
def confusion(labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """Of each true class (rows), the share in percent that was given each class (columns); labels are int64 [N].

    Up to 10 classes have percentages and counts in the cells, up to 20 percentages; more have neither names nor
    numbers. The colour scale follows the square root, so that a share of 1% can be seen beside 95%.
    """
    number = len(classes)
    counts = np.bincount(labels * number + predicted, minlength=number * number).reshape(number, number)
    percentages = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    texts: _Texts = {}
    for cell in zip(*np.nonzero(counts), strict=True):
        percent = percentages[cell]
        texts[cell] = f"{percent:.0f}" if number > 10 else f"{percent:.1f}\n({counts[cell]:,})"
    scale: style.Look = {"label": "share of the true class (%)", "ticks": [0, 1, 5, 10, 25, 50, 75, 100]}
    size = style.TEXT if number <= 5 else 7.5 if number <= 10 else 6.5
    figure = _heatmap(5.7, percentages, PowerNorm(0.5, 0, 100), texts if number <= 20 else {}, size, **scale)
    axes = figure.axes[0]
    if number <= 20:
        names = [style.short(name, 16) for name in classes]
        flat = number > 3 or max(map(len, names)) > 10
        look: style.Look = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if flat else {}
        size = style.TEXT if number <= 10 else style.SMALL
        axes.set_xticks(range(number), names, fontsize=size, parse_math=False, **look)
        axes.set_yticks(range(number), names, fontsize=size, parse_math=False)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    order = "" if number <= 20 else " (label)"
    axes.set_xlabel(f"predicted class{order}", fontsize=style.TEXT)
    axes.set_ylabel(f"true class{order}", fontsize=style.TEXT)
    return figure


def _heatmap(height: float, values: np.ndarray, norm: Normalize, texts: _Texts, size: float, **scale: Any) -> Figure:
    """`values` as colours, with texts of that size in the cells, and the scale beside them."""
    figure, axes = style.single(height)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0 if texts else 3.5)
    drawn = axes.imshow(values, cmap="Blues", norm=norm, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, **scale)
    bar.ax.yaxis.label.set_fontsize(style.TEXT)
    bar.ax.tick_params(labelsize=style.SMALL)
    look: style.Look = {"ha": "center", "va": "center", "fontsize": size, "linespacing": 1.1}
    for (row, column), text in texts.items():
        axes.text(column, row, text, color="white" if norm(values[row, column]) > 0.6 else style.BLACK, **look)
    return figure


@style.own_settings()
def worst_mistakes(images: Any, labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """The 15 test images, uint8 [N, H, W, 3], that were given a wrong class with the highest probability.

    `probabilities` are float32 [N, classes]; the caption is "true → predicted, probability".
    """
    known = np.nan_to_num(probabilities)  # a run that diverged has none
    predicted = known.argmax(axis=1)
    certain = known.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-certain[wrong], kind="stable")][:15]
    captions = [
        f"{style.short(classes[labels[one]], 20)} →\n"
        f"{style.short(classes[predicted[one]], 15)}, {style.sure(float(certain[one]))}"
        for one in worst
    ]
    return style.tiles(images[worst], captions, columns=5, empty="No test image was given a wrong class.")


@style.own_settings()
def speedrun(rows: list[SpeedrunRow], summary: Speedrun) -> Figure:
    """Above, the accuracy of each run of a speedrun with mean, interval and target; below, its time. `rows` are those
    of runs.jsonl, `summary` is speedrun.json."""
    figure = Figure(figsize=(style.WIDTH, 4.6), layout="constrained", facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    seeds = [row.seed for row in rows]
    dots: style.Look = {"linestyle": "", "marker": "o", "markersize": 4 if len(rows) <= 100 else 2.5}
    mean, target = summary.mean_accuracy, summary.target
    above.plot(seeds, [100 * row.test_accuracy for row in rows], color=style.BLUE, label="a run", **dots)
    above.axhline(100 * mean, color=style.BLACK, linewidth=1.4, zorder=1, label=f"mean, {mean:.2%}")
    if summary.interval_low is not None and summary.interval_high is not None:
        low, high = 100 * summary.interval_low, 100 * summary.interval_high
        above.axhspan(low, high, color=style.SKY, alpha=0.35, linewidth=0, label="95% interval of the mean")
    dashed: style.Look = {"color": style.ORANGE, "linewidth": 1.4, "linestyle": (0, (5, 1.5)), "zorder": 1}
    above.axhline(100 * target, label=f"target, {target:.2%}", **dashed)
    above.set_ylabel("test accuracy (%)", fontsize=style.TEXT)
    below.plot(seeds, [row.seconds for row in rows], color=style.GREEN, **dots)
    below.axhline(summary.mean_seconds, color=style.BLACK, linewidth=1.4, zorder=1)
    below.set_ylim(0, 1.15 * max(row.seconds for row in rows))
    below.set_ylabel("time of a run (s)", fontsize=style.TEXT)
    below.set_xlabel("seed", fontsize=style.TEXT)
    below.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    for axes in (above, below):
        style.dress(axes)
    style.legend(figure)
    return figure


@style.own_settings()
def corruptions(summary: Corruptions) -> Figure:
    """Accuracy in percent of each kind of corruption by severity, means, clean accuracy; `summary` is shift.json."""
    kinds, severities = list(summary.accuracy), summary.severities
    table = np.array([[*summary.accuracy[kind], summary.mean_by_kind[kind]] for kind in kinds])
    means = [*summary.mean_by_severity, summary.mean_corruption_accuracy]
    clean, mean = summary.clean_accuracy or 0.0, summary.mean_corruption_accuracy
    accuracies = 100 * np.vstack([table, means])
    # From chance or so to clean: the accuracies of one run lie close together.
    low = math.floor(accuracies.min() / 10) * 10
    norm = Normalize(low, max(100 * clean, accuracies.max(), low + 10))
    texts = {cell: f"{accuracies[cell]:.1f}" for cell in np.ndindex(accuracies.shape)}
    height = 1.3 + 0.29 * len(accuracies)
    figure = _heatmap(height, accuracies, norm, texts, style.SMALL, label="test accuracy (%)")
    axes = figure.axes[0]
    axes.set_aspect("auto")
    # White lines set the means apart.
    axes.axhline(len(kinds) - 0.5, color="white", linewidth=4)
    axes.axvline(len(severities) - 0.5, color="white", linewidth=4)
    axes.set_yticks(range(len(accuracies)), [*(kind.replace("_", " ") for kind in kinds), "mean"], fontsize=style.TEXT)
    axes.set_xticks(range(len(severities) + 1), [*map(str, severities), "mean"], fontsize=style.TEXT)
    axes.set_xlabel("severity", fontsize=style.TEXT)
    axes.set_title(f"clean {clean:.2%}, shifted {mean:.2%} on average", fontsize=style.TEXT)
    return figure
