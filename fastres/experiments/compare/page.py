"""Output of a comparison, on the terminal and as a page: results, differences, means over seeds, notes, figures."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fastres.experiments.compare import figures
from fastres.experiments.compare.compare import Comparison, numbers, ranges
from fastres.report import document
from fastres.report.document import Details, Heading, Note, Part, Picture, Table
from fastres.report.pareto import COSTS, placed
from fastres.report.style import png
from fastres.runs.many import whole_folder
from fastres.runs.reader import Run
from fastres.utils.format import DASH, number, plural
from fastres.utils.statistics import TWO_SEEDS, Sample
from fastres.utils.terminal import printable

# Often the same of all runs. Devices and data sets also have long names: where they differ, they stand below.
_SHARED = ("Parameters", "Device", "Data")
_LONG = ("Device", "Data")
_MOST_KEYS = 30  # that the terminal lists: with more, results would have left the screen


def render(comparison: Comparison, console: Console | None = None) -> None:
    """Print the comparison, on standard output unless told otherwise. What all runs share is said once, and what
    differs is listed by value, so that 80 columns do for any number of runs and keys."""
    console = console or Console(highlight=False)
    columns = _results(comparison)
    known = {title: sorted({*columns[title]} - {DASH}) for title in _SHARED}  # an unfinished run has a dash for some
    same = {title: cells[0] for title, cells in known.items() if len(cells) == 1}
    _print(console, _table({title: columns[title] for title in columns if title not in (*same, *_LONG)}, 2))
    for title, cell in same.items():
        _print(console, f"{title.lower()} of all: {cell}")
    blocks: list[Table | str] = [_groups(comparison)] if comparison.groups else []
    differing = {key: [_value(value) for value in values] for key, values in comparison.differences.items()}
    if len(known["Device"]) > 1:
        differing = {"device": columns["Device"]} | differing
    if differing:
        lines = [line for item in [*differing.items()][:_MOST_KEYS] for line in _by_value(*item)]
        blocks.append(Table(["Differs", "Value", "Runs"], lines, text_columns=3))
    if len(differing) > _MOST_KEYS:
        blocks.append(f"and {plural(len(differing) - _MOST_KEYS, 'other key', 'other keys')}, on the page")
    for block in [*blocks, *notes(comparison)]:
        console.print()
        _print(console, block)


def write_page(comparison: Comparison, out: Path | None = None) -> Path:
    """Draw `figures/*.png` into the new folder `out`, by default runs/compare-<time>, and write `compare.html` with
    them inside; returns the folder. Raises UserError where it cannot be written; nothing is left behind then."""
    parts = _parts(comparison)
    with whole_folder(out, "compare") as folder:
        document.write(folder, ["compare.html"], f"{plural(len(comparison.runs), 'run', 'runs')} compared", parts)
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
    for run in (run for run in comparison.runs if run.status != "completed"):
        last = run.epochs[-1].val_accuracy if run.epochs and not run.finished else None
        so_far = "" if last is None else f", validation accuracy {last:.2%}"
        unfinished.append(f"run {run.number} ({run.name}): {run.status}, epoch {run.progress}{so_far}")
    if unfinished:
        texts.append(f"Not trained to the end: {'; '.join(unfinished)}.")
    if optimistic := [run for run in comparison.runs if (run.recipe.train.best or "").startswith("test_")]:
        texts.append(
            f"Chosen on the test images: {_runs(optimistic)} kept the epoch that did best there, so that the test "
            "accuracy is optimistic."
        )
    if leaking := [run for run in comparison.runs if run.recipe.data.split == "report"]:
        texts.append(
            f'Leaky validation: {_runs(leaking)} had data.split = "report", under which most validation images are '
            "trained on; those curves say nothing about new images."
        )
    finished = [(setting, run) for setting in comparison.groups for run in setting.runs if run.finished]
    if repeats := [run for setting, run in finished if run not in setting.counted]:
        texts.append(f"Repeated seeds: the means leave out {_runs(repeats)}, whose seed another run of the group has.")
    if two := [run for setting in comparison.groups if len(setting.counted) == 2 for run in setting.runs]:
        texts.append(f"{_runs(two).capitalize()}: {TWO_SEEDS}.")
    return texts


def _runs(runs: list[Run]) -> str:
    return f"{'run' if len(runs) == 1 else 'runs'} {ranges(numbers(runs))}"


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
            "Parameters": number(summary.parameters, ",d"),
            "Epochs": run.progress,
            "Seconds": number(summary.seconds, ",.1f"),
            "Images/s": number(summary.images_per_second, ",.0f"),
            "Device": run.device or DASH,
            "Data": where[run],
        }
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    return columns


def _value(value: Any) -> str:
    """A value of a recipe, as TOML would have it; a dash where there is none."""
    return DASH if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_value(key: str, values: list[str]) -> list[list[str]]:
    """A line for each value that runs have for `key`, which only the first line names; not of runs without one."""
    having: dict[str, list[int]] = {}
    for run, value in enumerate(values, 1):
        if value != DASH:
            having.setdefault(value, []).append(run)
    return [["" if index else key, value, ranges(numbers)] for index, (value, numbers) in enumerate(having.items())]


def _table(columns: dict[str, list[str]], text_columns: int) -> Table:
    return Table([*columns], [*zip(*columns.values(), strict=True)], text_columns)


def _groups(comparison: Comparison) -> Table:
    """Means over seeds."""
    header = ["Runs", "Seeds", "Test accuracy,\nmean ± SD", "95% interval\nof the mean", "Seconds", "Images/s"]
    lines = []
    for setting in comparison.groups:
        accuracy, counted = setting.sample("test_accuracy"), setting.counted
        # A group has two seeds or more, and with them both.
        low, high = (accuracy and accuracy.interval(low=0, high=1)) or (0.0, 1.0)
        measures = [_spread(accuracy, 100, ".2f", "%"), f"{100 * low:.2f}–{high:.2%}"]
        costs = {"seconds": ",.1f", "images_per_second": ",.0f"}
        measures += [_spread(setting.sample(key), 1, form) for key, form in costs.items()]
        lines.append([ranges(numbers(counted)), str(len(counted)), *measures])
    return Table(header, lines)


def _spread(sample: Sample | None, scale: float, form: str, unit: str = "") -> str:
    """Mean ± SD, or the mean alone of a single value."""
    if sample is None:
        return DASH
    sd = "" if sample.sd is None else f" ± {scale * sample.sd:{form}}"
    return f"{scale * sample.mean:{form}}{sd}{unit}"


def _print(console: Console, block: Table | str) -> None:
    """A line, or a table whose words are broken where a line of the terminal is too short."""
    if isinstance(block, str):
        console.print(Text(printable(block)))
        return
    shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, title in enumerate(block.header):
        is_text = index < block.text_columns
        shown.add_column(title, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for line in block.lines:
        shown.add_row(*(Text(printable(str(cell))) for cell in line))
    console.print(shown)


def _parts(comparison: Comparison) -> list[Part]:
    columns = _results(comparison)
    if len(comparison.data_sets) == 1:
        del columns["Data"]  # the line below the title has it
    numbered = [f"{run} {name}" for run, name in zip(columns["Run"], columns["Name"], strict=True)]
    results = {"Run": numbered} | {title: cells for title, cells in columns.items() if title not in ("Run", "Name")}
    differing = [[key, *map(_value, values)] for key, values in comparison.differences.items()]
    nothing = "Nothing that changes the numbers of a run."
    paths = Table(["Run", "Folder"], [[str(run.number), str(run.path)] for run in comparison.runs], text_columns=2)
    pictures = _pictures(comparison)
    parts: list[Part] = [
        Note("; ".join(map(str, comparison.data_sets)), "soft"),
        *map(Note, notes(comparison)),
        Heading("Results"),
        _table(results, text_columns=1),
        "The 95% interval (Wilson) covers the choice of the test images only. Another seed gives another network and "
        "another accuracy: a difference between two single runs may be the seeds’.",
    ]
    if comparison.groups:
        parts += [
            Heading("Over seeds"),
            _groups(comparison),
            "Runs that differ by their seed alone, with the same device. The interval (Student’s t on the "
            "logit scale) is where the mean of all seeds lies, for these test images.",
        ]
    parts += [
        Heading("What differs in the recipes"),
        Table(["Key", *columns["Run"]], differing) if differing else nothing,
    ]
    return [*parts, *[Heading("Figures")] * bool(pictures), *pictures, Details("Run directories", paths)]


def _pictures(comparison: Comparison) -> list[Picture]:
    """The figures that there are numbers for, in the order of the page."""
    settings, epochs = comparison.settings, [epoch for run in comparison.runs for epoch in run.epochs]
    losses = {"train_loss": "training loss (nats)", "val_loss": "validation loss (nats)"}
    known = [key for key in (*losses, "val_accuracy") if any(epoch[key] is not None for epoch in epochs)]
    most = figures.MOST
    left_out = f" Only the first {most} of {len(settings)} settings are shown." if len(settings) > most else ""
    alike = "Runs that differ by their seed alone have the same colour and line." if comparison.groups else ""
    pictures = []
    if panels := [(key, losses[key], 1.0) for key in known if key in losses]:
        caption = (
            "Loss by epoch: training, on each run’s own augmented images while the weights move, and validation, on "
            f"plain images. {alike}{left_out}"
        )
        pictures.append(Picture("loss", png(figures.curves(settings, panels)), caption))
    if "val_accuracy" in known:
        caption = f"Validation accuracy by epoch; the axis spans the data. {alike}{left_out}"
        figure = figures.curves(settings, [("val_accuracy", "validation accuracy (%)", 100.0)])
        pictures.append(Picture("accuracy", png(figure), caption))
    alone = len(comparison.data_sets) == 1
    for index, data_set in enumerate(comparison.data_sets, 1):
        if max(len(placed(data_set.settings, key)) for key in COSTS) < 2:
            continue
        several = any(group in data_set.settings for group in comparison.groups)
        spread = " Bars are one SD of the accuracy over seeds, small dots single runs." if several else ""
        caption = (
            f"Test accuracy against speed and time{'' if alone else f', {data_set}'}; numbers are those of the runs. "
            "Filled points are on the Pareto front: no other is as fast and as accurate. The stepped line is the best "
            f"accuracy at a speed, or within a time.{spread}"
        )
        name = "pareto" if alone else f"pareto_{index}"
        pictures.append(Picture(name, png(figures.pareto(data_set, settings)), caption))
    return pictures
