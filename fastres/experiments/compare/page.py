"""Output of a comparison, on the terminal and as a page: results, differences, means over seeds, notes, figures."""

import json
import shutil
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastres.experiments.compare import figures
from fastres.experiments.compare.compare import Comparison, ranges
from fastres.report.html import details, document, picture, table
from fastres.report.pareto import COSTS
from fastres.report.style import png
from fastres.runs.reader import Run
from fastres.utils.files import write_bytes
from fastres.utils.format import plural
from fastres.utils.statistics import Sample
from fastres.utils.terminal import printable

DASH = "–"
# Often the same of all runs. Devices and data sets also have long names: where they differ, they stand below.
_SHARED = ("Parameters", "Device", "Data")
_LONG = ("Device", "Data")
_MOST_KEYS = 30  # that the terminal lists: with more, results would have left the screen
# Columns whose cells may be broken over several lines.
_FOLDED = ("Name", "Runs", "Differs", "Value")


def render(comparison: Comparison, console: Console | None = None) -> None:
    """Print the comparison, on standard output unless told otherwise. What all runs share is said once, and what
    differs is listed by value, so that 80 columns do for any number of runs and keys."""
    console = console or Console(highlight=False)
    columns = _results(comparison)
    known = {title: sorted({*columns[title]} - {DASH}) for title in _SHARED}  # an unfinished run has a dash for some
    same = {title: cells[0] for title, cells in known.items() if len(cells) == 1}
    shown = [title for title in columns if title not in same and title not in _LONG]
    _print(console, shown, [list(cells) for cells in zip(*(columns[title] for title in shown), strict=True)])
    for title, cell in same.items():
        _say(console, f"{title.lower()} of all: {cell}")
    if comparison.groups:
        console.print()
        _print(console, *_groups(comparison))
    differing = {key: [_value(value) for value in values] for key, values in comparison.differences.items()}
    if len(known["Device"]) > 1:
        differing = {"device": columns["Device"]} | differing
    if differing:
        lines = [line for item in [*differing.items()][:_MOST_KEYS] for line in _by_value(*item)]
        console.print()
        _print(console, ["Differs", "Value", "Runs"], lines)
    if len(differing) > _MOST_KEYS:
        _say(console, f"and {plural(len(differing) - _MOST_KEYS, 'other key', 'other keys')}, on the page")
    for note in notes(comparison):
        console.print()
        _say(console, note)


def write_page(comparison: Comparison, out: Path | None = None) -> Path:
    """Draw `figures/*.png` into the new folder `out`, by default runs/compare-<time>, and write `compare.html` with
    them inside; returns the folder. Raises UserError where it cannot be written; nothing is left behind then."""
    from fastres.runs.directory import new_folder  # brings torch along: after all that can be wrong with the runs

    drawn = [(name, png(figure), caption) for name, figure, caption in _figures(comparison)]
    folder = new_folder(out, "compare")
    try:
        for name, data, _ in drawn:
            write_bytes(folder / "figures" / f"{name}.png", data)
        write_bytes(folder / "compare.html", _page(comparison, [picture(*figure) for figure in drawn]))
    except BaseException:
        shutil.rmtree(folder / "figures", ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()
        raise
    return folder


def notes(comparison: Comparison) -> list[str]:
    """Notes for the reader of the numbers, in plain text."""
    texts = []
    if len(comparison.data_sets) > 1:
        sets = "; ".join(f"{_runs(data_set.runs)}: {data_set}" for data_set in comparison.data_sets)
        texts.append(
            "Not comparable: the test images differ in their source or their number. "
            f"Compare accuracies only within {sets}."
        )
    if len({run.device for run in comparison.runs if run.finished}) > 1:
        texts.append("Different devices: seconds and images/s compare machines as well as recipes.")
    unfinished = []
    for run in comparison.runs:
        if run.status != "completed":
            last = run.epochs[-1].val_accuracy if run.epochs and not run.finished else None
            so_far = "" if last is None else f", validation accuracy {last:.2%}"
            unfinished.append(f"run {run.number} ({run.name}): {run.status}, epoch {run.progress}{so_far}")
    if unfinished:
        texts.append(f"Not trained to the end: {'; '.join(unfinished)}.")
    optimistic = [run for run in comparison.runs if (run.recipe.train.best or "").startswith("test_")]
    if optimistic:
        texts.append(
            f"Chosen on the test images: {_runs(optimistic)} kept the epoch that did best there, so that the test "
            "accuracy is optimistic."
        )
    leaking = [run for run in comparison.runs if run.recipe.data.split == "report"]
    if leaking:
        texts.append(
            f'Leaky validation: {_runs(leaking)} had data.split = "report", under which most validation images are '
            "trained on; those curves say nothing about new images."
        )
    repeats = [
        run for setting in comparison.groups for run in setting.runs if run.finished and run not in setting.counted
    ]
    if repeats:
        texts.append(f"Repeated seeds: the means leave out {_runs(repeats)}, whose seed another run of the group has.")
    return texts


def _runs(runs: list[Run]) -> str:
    return f"{'run' if len(runs) == 1 else 'runs'} {ranges([run.number for run in runs])}"


def _results(comparison: Comparison) -> dict[str, list[str]]:
    """The columns of the first table, by their titles: a cell for each run."""
    columns: dict[str, list[str]] = {}
    where = {run: str(data_set) for data_set in comparison.data_sets for run in data_set.runs}
    for run in comparison.runs:
        interval, summary = run.interval, run.summary
        cells = {
            "Run": str(run.number),
            "Name": run.name,
            "Test\naccuracy": DASH if summary.test_accuracy is None else f"{summary.test_accuracy:.2%}",
            "95%\ninterval": DASH if interval is None else f"{100 * interval[0]:.2f}–{interval[1]:.2%}",
            "Parameters": _number(summary.parameters, ",d"),
            "Epochs": run.progress,
            "Seconds": _number(summary.seconds, ",.1f"),
            "Images/s": _number(summary.images_per_second, ",.0f"),
            "Device": run.device or DASH,
            "Data": where[run],
        }
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    return columns


def _number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)


def _value(value: Any) -> str:
    """A value of a recipe, as TOML would have it; a dash where there is none."""
    return DASH if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_value(key: str, values: list[str]) -> list[list[str]]:
    """A line for each of the values that the runs have for `key`, which only the first line names; runs without any are
    not mentioned."""
    having: dict[str, list[int]] = {}
    for number, value in enumerate(values, 1):
        if value != DASH:
            having.setdefault(value, []).append(number)
    return [["" if index else key, value, ranges(numbers)] for index, (value, numbers) in enumerate(having.items())]


def _groups(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of means over seeds."""
    lines = []
    for setting in comparison.groups:
        accuracy = setting.sample("test_accuracy")
        # A group has two seeds or more, and with them both.
        low, high = (accuracy and accuracy.interval()) or (0.0, 1.0)
        lines.append(
            [
                ranges([run.number for run in setting.counted]),
                str(len(setting.counted)),
                _spread(accuracy, 100, ".2f", "%"),
                f"{100 * low:.2f}–{high:.2%}",
                _spread(setting.sample("seconds"), 1, ",.1f"),
                _spread(setting.sample("images_per_second"), 1, ",.0f"),
            ]
        )
    return ["Runs", "Seeds", "Test accuracy,\nmean ± SD", "95% interval\nof the mean", "Seconds", "Images/s"], lines


def _spread(sample: Sample | None, scale: float, form: str, unit: str = "") -> str:
    """Mean ± SD, or the mean alone of a single value."""
    if sample is None:
        return DASH
    sd = "" if sample.sd is None else f" ± {scale * sample.sd:{form}}"
    return f"{scale * sample.mean:{form}}{sd}{unit}"


def _print(console: Console, header: list[str], lines: list[list[str]]) -> None:
    """A table of plain text, whose names are broken where a line is too short."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in header:
        folded = title in _FOLDED
        shown.add_column(title, justify="left" if folded else "right", overflow="fold", no_wrap=not folded)
    for line in lines:
        shown.add_row(*(Text(printable(cell)) for cell in line))
    console.print(shown)


def _say(console: Console, line: str) -> None:
    console.print(Text(printable(line)))


def _page(comparison: Comparison, pictures: list[str]) -> bytes:
    columns = _results(comparison)
    if len(comparison.data_sets) == 1:
        del columns["Data"]  # the line below the title has it
    numbers = columns["Run"]
    results = [[f"{number} {name}", *cells] for number, name, *cells in zip(*columns.values(), strict=True)]
    differing = [[key, *map(_value, values)] for key, values in comparison.differences.items()]
    paths = [[str(run.number), str(run.path)] for run in comparison.runs]
    body = [
        f"<h1>{plural(len(numbers), 'run', 'runs')} compared</h1>",
        f'<p class="soft">{escape("; ".join(map(str, comparison.data_sets)))}</p>',
        *(f'<p class="warning">{escape(note)}</p>' for note in notes(comparison)),
        "<h2>Results</h2>",
        table(["Run", *list(columns)[2:]], results),
        "<p>The 95% interval (Wilson) covers the choice of the test images only. Another seed gives another network "
        "and another accuracy: a difference between two single runs may be the seeds’.</p>",
    ]
    if comparison.groups:
        body += [
            "<h2>Over seeds</h2>",
            table(*_groups(comparison)),
            "<p>Runs that differ by their seed alone, with the same device. The interval (Student’s t) is where the "
            "mean of all seeds lies, for these test images.</p>",
        ]
    body.append("<h2>What differs in the recipes</h2>")
    if differing:
        body.append(table(["Key", *numbers], differing))
    else:
        body.append("<p>Nothing that changes the numbers of a run.</p>")
    body += ["<h2>Figures</h2>", *pictures] if pictures else []
    body.append(details("Run directories", table(["Run", "Folder"], paths)))
    return document(f"{len(numbers)} runs compared", body)


def _figures(comparison: Comparison) -> list[tuple[str, Figure, str]]:
    """(file name, figure, caption) of each figure that there are numbers for, in the order of the page."""
    settings = comparison.settings
    epochs = [epoch for run in comparison.runs for epoch in run.epochs]
    possible = [
        ("train_loss", "training loss (nats)", 1.0),
        ("val_loss", "validation loss (nats)", 1.0),
        ("val_accuracy", "validation accuracy (%)", 100.0),
    ]
    panels = [panel for panel in possible if any(getattr(epoch, panel[0]) is not None for epoch in epochs)]
    most = figures.MOST
    left_out = f" Only the first {most} of {len(settings)} settings are shown." if len(settings) > most else ""
    alike = "Runs that differ by their seed alone have the same colour and line." if comparison.groups else ""
    entries = []
    losses = [panel for panel in panels if panel[0].endswith("loss")]
    if losses:
        caption = (
            "Loss by epoch: training, on each run’s own augmented images while the weights move, and validation, on "
            f"plain images. {alike}{left_out}"
        )
        entries.append(("loss", figures.curves(settings, losses), caption))
    if panels[-1:] and panels[-1][0] == "val_accuracy":
        caption = f"Validation accuracy by epoch; the axis spans the data. {alike}{left_out}"
        entries.append(("accuracy", figures.curves(settings, panels[-1:]), caption))
    for number, data_set in enumerate(comparison.data_sets, 1):
        if max(len(data_set.placed(key)) for key in COSTS) < 2:
            continue
        alone = len(comparison.data_sets) == 1
        several = any(group in data_set.settings for group in comparison.groups)
        where = "" if alone else f", {data_set}"
        spread = " Bars are one SD of the accuracy over seeds, small dots single runs." if several else ""
        caption = (
            f"Test accuracy against speed and time{where}; numbers are those of the runs. Filled points are on the "
            "Pareto front: no other is as fast and as accurate. The stepped line is the best accuracy at a speed, or "
            f"within a time.{spread}"
        )
        name = "pareto" if alone else f"pareto_{number}"
        entries.append((name, figures.pareto(data_set, settings), caption))
    return entries
