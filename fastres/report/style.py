"""Common style of all figures: size, colours, axes; and their conversion to PNG."""

import io
import math
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastres.runs.schema import Epoch
from fastres.utils.terminal import printable

WIDTH = 7.0  # inches
DPI = 160  # 1120 pixels wide: sharp at 700 CSS pixels on screens of up to 1.6 pixels each
SMALL, TEXT = 8.5, 10.0  # points
# The report's Figure 4 has blue training and red validation curves; line style tells them apart without colour.
BLUE, RED, BLACK, GREY = "#0b5cad", "#d62728", "#111111", "#666666"
# Beyond the report's pair: Okabe and Ito's palette, made for colour-blind readers.
SKY, ORANGE, GREEN = "#56b4e9", "#d55e00", "#007a5a"
LEAKY = "leaky validation"
Look = dict[str, Any]
"""Options of matplotlib."""


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def own_settings() -> Iterator[None]:
    """matplotlib's defaults, whatever the user has chosen (a matplotlibrc, text.usetex, a style), while a figure is
    made or written: a decorator of what makes one. matplotlib's settings are global, so one thread draws at a time.

    No warning where a name is in a script that the font lacks: the page's tables have it in full.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings(), matplotlib.style.context("default"):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@own_settings()
def png(figure: Figure) -> bytes:
    """The figure as a PNG file, free of time stamps and versions: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def short(name: str, limit: int) -> str:
    """A class name that fits a figure: at most `limit` characters, none of which breaks the line."""
    clean = printable(name)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def sure(probability: float) -> str:
    """A probability as a percentage that says 100% only where it is 1."""
    text = f"{probability:.0%}"
    return ">99%" if text == "100%" and probability < 1 else text


def single(height: float) -> tuple[Figure, Axes]:
    """A figure `height` inches high, and the axes that fill it."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    dress(axes)
    return figure, axes


def dress(axes: Axes) -> None:
    """White ground, a light grid, no frame above and to the right."""
    axes.set_facecolor("white")
    axes.tick_params(labelsize=TEXT, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def legend(figure: Figure, **options: Any) -> None:
    """Above all axes."""
    common = {"loc": "outside upper center", "ncols": 2, "fontsize": TEXT, "frameon": False, "handlelength": 3}
    for text in figure.legend(**{**common, **options}).get_texts():
        text.set_parse_math(False)  # a folder's name may hold dollar signs


def from_zero(axes: Axes, values: Iterable[float]) -> None:
    """Let the axis of `values` start from 0."""
    highest = max(values, default=0)
    axes.set_ylim(0, 1.06 * highest if highest > 0 else 1)


def tiles(
    images: np.ndarray, captions: list[str], *, columns: int, empty: str, after: np.ndarray | None = None
) -> Figure:
    """A grid of `images` [n, H, W, 3], each under its caption; with `after`, that image below it in the same cell."""
    count, columns = len(images), max(1, columns)
    if count == 0:
        figure = Figure(figsize=(WIDTH, 1.0), facecolor="white")
        figure.text(0.5, 0.5, empty, ha="center", va="center", fontsize=TEXT)
        return figure
    stacked = 1 if after is None else 2
    rows = math.ceil(count / columns)
    gap = 0.06  # inches between tiles
    line = SMALL / 72 * 1.25  # inches that a line of a caption takes
    header = line * (1 + max(caption.count("\n") for caption in captions)) + 0.06
    side = WIDTH / columns - gap
    high = side * images.shape[1] / images.shape[2]
    cell = header + stacked * high + (stacked - 1) * 0.03 + gap
    height = rows * cell
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    # A letter is 0.6 of the font size wide, roughly: longer captions get smaller letters before they would overlap.
    longest = max(len(part) for caption in captions for part in caption.split("\n"))
    size = max(6.0, min(SMALL, side * 72 / (0.6 * max(1, longest))))
    # Axes placed by hand: a layout engine takes seconds for a grid of this many.
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = (index % columns) * (side + gap) + gap / 2
        top = height - (index // columns) * cell - header
        text: Look = {"fontsize": size, "parse_math": False, "linespacing": 1.1}
        figure.text((left + side / 2) / WIDTH, (top + 0.03) / height, caption, ha="center", va="bottom", **text)
        for level, shown in enumerate([image] if after is None else [image, after[index]]):
            bottom = top - high - level * (high + 0.03)
            axes = figure.add_axes((left / WIDTH, bottom / height, side / WIDTH, high / height))
            axes.imshow(np.clip(shown, 0, 1) if shown.dtype.kind == "f" else shown, aspect="auto")
            axes.set_axis_off()
    return figure


def curve(axes: Axes, rows: Sequence[Epoch], key: str, *, scale: float = 1.0, **style: Any) -> np.ndarray:
    """Draw `key` of the rows that have it, by epoch; returns the values."""
    points = [(row.epoch, scale * row[key]) for row in rows if row[key] is not None]
    if points:
        # Markers while they can be told apart; a single epoch is seen by its marker alone.
        size = 4.0 if len(points) <= 40 else 0.0
        axes.plot(*zip(*points, strict=True), **{"marker": "o", "markersize": size, "linewidth": 1.8, **style})
    return np.array([value for _, value in points])


def epoch_axis(axes: Axes, last: int) -> None:
    """The axis of epochs 1 to `last`, whole numbers only."""
    axes.set_xlim(0.5, last + max(0.5, 0.02 * last))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlabel("epoch", fontsize=TEXT)
