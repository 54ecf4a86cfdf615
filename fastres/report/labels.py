"""Texts beside the points of a figure, each where it covers least."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from fastres.report.style import SMALL, Look

# Where the text of a point may stand, right and up are 1: corners come first, as a front runs level and upright.
_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
# How far from the point, in reaches. A text that stands off is joined to its point by a line.
_DISTANCES = (1, 3, 5, 7)
# The share of a text that may be covered before it stands off.
_COVERED = 0.1


class Label(NamedTuple):
    """A point's text."""

    x: float
    y: float
    text: str
    colour: str
    bold: bool = True


def write_beside(axes: Axes, labels: Sequence[Label], avoid: Sequence[Text] = ()) -> None:
    """Write each text at its point, on the side where it covers least of other points and texts, and of `avoid`. In a
    crowd it stands off, at the end of a line.

    The figure must have been laid out (`draw_without_rendering`), and its axes may not move afterwards.
    """
    point_of_screen = 72 / axes.figure.dpi
    reach = 6 / point_of_screen  # pixels from a point's centre to its text
    places = [axes.transData.transform((label.x, label.y)) for label in labels]
    taken = [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach) for x, y in places]
    taken += [text.get_window_extent() for text in avoid]
    panel = axes.get_window_extent()
    for label, (x, y) in zip(labels, places, strict=True):
        look: Look = {"color": label.colour, "fontsize": SMALL, "fontweight": "bold" if label.bold else "normal"}
        look |= {"textcoords": "offset points", "parse_math": False}
        text = axes.annotate(label.text, (label.x, label.y), (0, 0), **look)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # legible on a line
        extent = text.get_window_extent()
        wide, high = extent.width, extent.height

        def beside(distance: int, x: float = x, y: float = y, wide: float = wide, high: float = high) -> list[Bbox]:
            right, above = distance * reach + wide / 2, distance * reach + high / 2
            corners = [(x + across * right - wide / 2, y + up * above - high / 2) for across, up in _SIDES]
            return [Bbox.from_bounds(*corner, wide, high) for corner in corners]

        def covered(box: Bbox, area: float = wide * high) -> int:
            # What would lie outside of the panel is covered too. Whole pixels: roundings shall not decide.
            return round(sum(_common(box, other) for other in taken) + area - _common(box, panel))

        candidates = [min(beside(distance), key=covered) for distance in _DISTANCES]
        near = next((box for box in candidates if covered(box) <= _COVERED * wide * high), None)
        best = near or min(candidates, key=covered)
        text.xyann = ((best.x0 - x) * point_of_screen, (best.y0 - y) * point_of_screen)
        if best is not candidates[0]:
            middle = axes.transData.inverted().transform(((best.x0 + best.x1) / 2, (best.y0 + best.y1) / 2))
            axes.plot([label.x, middle[0]], [label.y, middle[1]], color=label.colour, linewidth=0.7, zorder=2.5)
        taken.append(best)


def _common(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share, in square pixels."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else both.width * both.height
