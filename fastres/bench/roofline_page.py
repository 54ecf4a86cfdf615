"""Output of `fastres bench roofline` from its facts, those of roofline.json: table, figure and notes."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from fastres.bench.schema import Point, Roofline
from fastres.report import document, style
from fastres.report.document import Note, Part, Picture, Table
from fastres.report.labels import Label, write_beside
from fastres.utils.format import plural

RESULTS, MARKDOWN = "roofline.json", "roofline.md"
_STYLES = {
    "augmentation": (style.GREEN, "D"),
    "convolutions": (style.BLUE, "o"),
    "BN and activation": (style.ORANGE, "s"),
    "optimizer": (style.SKY, "^"),
    "whole step": (style.BLACK, "*"),
}
_CAPTION = (
    "Operations a second over operations a byte, both axes logarithmic (Williams, Waterman and Patterson 2009). "
    "Numbers are the table's; forward passes are filled, backward passes hollow. No point can lie above the lines."
)
_NOTES = (
    "Operations and bytes are counted, not measured, and are least values: two operations for each multiply-add, every "
    "input read once and every output written once. Pooling, the loss, averages of the weights, and colours and "
    "interpolation of the augmentation are left out. The step's bytes are the sum of its parts'.",
    "All parts take turns, each through sets of buffers whose traffic is three times the cache. Convolutions are the "
    "library's own, one after the other; the step may do some as matrix products. The roof of the memory is the best "
    "of three passes (copy, update in place, read) over tensors that miss every cache; that of arithmetic the best "
    "product of square matrices in the precision in which a part does its arithmetic. Both are measured before and "
    "after the parts, and the better of the two counts.",
)


def write(folder: Path, facts: Roofline) -> None:
    """Write roofline.md, roofline.png and, last, roofline.json into `folder`."""
    shown = Picture("roofline", picture(facts), _CAPTION)
    parts: list[Part] = [*ceilings(facts), shown, table(facts), *map(Note, warnings(facts)), *_NOTES]
    document.write(folder, [MARKDOWN], "A training step on this machine's roofline", parts, figures="")
    facts.write(folder / RESULTS)


def ceilings(facts: Roofline) -> list[str]:
    """Measured ceilings of the machine, a line each."""
    machine = facts.machine
    passes = ", ".join(f"{name} {_quantity(rate, 'B/s')}" for name, rate in facts.memory.items())
    products = ", ".join(
        f"{name} {_quantity(product.operations_per_second, 'FLOP/s')} ({product.side:,}²)"
        for name, product in facts.products.items()
    )
    threads = plural(machine.threads or 1, "thread", "threads")
    where = f"{machine.gpu_name or machine.cpu_model or machine.device}, {threads}"
    return [
        f"{facts.recipe}, batch {facts.batch_size:,}, {facts.precision}, on {where}",
        f"memory: {passes}",
        f"matrix products: {products}",
    ]


def table(facts: Roofline) -> Table:
    """Numbers are those of the figure."""
    header = ["", "Part", "Time", "Operations", "Bytes", "Operations/byte", "Operations/s", "Its roof", "Share"]
    memory = max(facts.memory.values())
    lines = []
    for number, point in enumerate(facts.points, 1):
        bound = "memory" if point.intensity * memory <= point.roof * (1 + 1e-9) else point.products
        counted = [_quantity(point.seconds, "s"), _quantity(point.operations, "FLOP"), _quantity(point.bytes, "B")]
        rates = [f"{point.intensity:.3g}", _quantity(point.operations_per_second, "FLOP/s")]
        roof = [f"{_quantity(point.roof, 'FLOP/s')} ({bound})", f"{point.share:.0%}"]
        lines.append([str(number), point.name, *counted, *rates, *roof])
    return Table(header, lines, text_columns=2)


def warnings(facts: Roofline) -> list[str]:
    """Other work of the machine, and points that cannot be where they are."""
    texts = [facts.contention] if facts.contention else []
    for point in (point for point in facts.points if point.name in facts.above):
        text = (
            f"{point.name} lies above its roof, at {point.share:.0%} of it: its operations or bytes are counted "
            "wrong, a cache kept what was counted as coming from memory, or the machine had other work when its roof "
            "was measured."
        )
        if point.kind == "whole step":
            text += " The step's bytes are those of its parts, as if none found in a cache what another had left."
        texts.append(text)
    return texts


def picture(facts: Roofline) -> bytes:
    """The figure, a PNG."""
    return style.png(figure(facts))


@style.own_settings()
def figure(facts: Roofline) -> Figure:
    """The roofs with their measured figures, and the points with their numbers."""
    points = facts.points
    rows = -(-len(points) // 2)
    drawn, axes = style.single(4.2 + 0.19 * rows)
    axes.set_xscale("log")
    axes.set_yscale("log")
    memory = max(facts.memory.values())
    products = {name: product.operations_per_second for name, product in facts.products.items()}
    intensities = [point.intensity for point in points] + [rate / memory for rate in products.values()]
    rates = [point.operations_per_second for point in points] + [*products.values()]
    axes.set_xlim(min(intensities) / 2.5, max(intensities) * 2.5)
    axes.set_ylim(min(rates) / 2.5, max(rates) * 2.5)
    handles, labels = [], []
    for number, point in enumerate(points, 1):
        x, y = point.intensity, point.operations_per_second
        handles += axes.plot(x, y, label=f"{number}  {point.name}", **_style(point))
        text = point.kind if point.kind == "whole step" else str(number)
        labels.append(Label(x, y, text, _STYLES[point.kind][0]))
    axes.set_xlabel("intensity (operations/byte)", fontsize=style.TEXT)
    axes.set_ylabel("operations/s", fontsize=style.TEXT)
    axes.yaxis.set_major_formatter(lambda value, _: _quantity(value, "FLOP/s", exact=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    style.legend(drawn, handles=handles, fontsize=style.SMALL, handlelength=2)
    drawn.draw_without_rendering()  # from here on it is known where points and letters lie
    roofs = _roofs(axes, memory, products)
    write_beside(axes, labels, roofs)
    return drawn


def _style(point: Point) -> style.Look:
    colour, marker = _STYLES[point.kind]
    hollow = point.name.endswith("backward")
    size = 15 if point.kind == "whole step" else 7
    # White edges tell filled ones apart where they lie on each other.
    face, edge = ("white", colour) if hollow else (colour, "white")
    look = {"linestyle": "", "marker": marker, "markersize": size, "zorder": 3, "color": colour}
    return {**look, "markeredgewidth": 1.5 if hollow else 0.8, "markerfacecolor": face, "markeredgecolor": edge}


def _roofs(axes: Axes, memory: float, products: dict[str, float]) -> list[Annotation]:
    """Draw the memory's slope up to the highest ceiling, and the ceilings from there on; returns their texts."""
    (left, right), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    highest = max(products.values())
    start = max(left, bottom / memory)
    look: style.Look = {"color": style.GREY, "linewidth": 1.4, "zorder": 2}
    axes.plot([start, highest / memory], [start * memory, highest], **look)
    first, last = axes.transData.transform([(start, start * memory), (highest / memory, highest)])
    slope = math.degrees(math.atan2(last[1] - first[1], last[0] - first[0]))
    text: style.Look = {"fontsize": style.SMALL, "color": style.GREY, "textcoords": "offset points"}
    middle = (start * highest / memory) ** 0.5
    turned: style.Look = text | {"rotation": slope, "rotation_mode": "anchor", "ha": "center", "va": "bottom"}
    written = [axes.annotate(f"memory {_quantity(memory, 'B/s')}", (middle, middle * memory), (-4, 4), **turned)]
    for name, rate in products.items():
        axes.plot([rate / memory, right], [rate, rate], **look)
        label = f"{name} products {_quantity(rate, 'FLOP/s')}"
        written.append(axes.annotate(label, (rate / memory, rate), (24, 3), ha="left", va="bottom", **text))
    return written


def _quantity(value: float, unit: str, *, exact: bool = False) -> str:
    """With a prefix, in three digits or, if it is `exact`, in as few as it has: 2.21e12 becomes "2.21 T…"."""
    prefixes: Sequence[tuple[float, str]] = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"))
    factor, prefix = next(((factor, prefix) for factor, prefix in prefixes if value >= factor), (1e-6, "µ"))
    scaled = value / factor
    digits = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:g} {prefix}{unit}" if exact else f"{scaled:,.{digits}f} {prefix}{unit}"
