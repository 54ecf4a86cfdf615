"""Results of a sweep's run directories, and the table made of them.

| file | what |
|---|---|
| `sweep.toml` | the recipe with its sweep |
| `<point>/` | the run directory of a point; `diverged.json` in it says why it has no result |
| `sweep.json`, `sweep.md` | all points, best first, when all are done |
| `sweep.html`, `sweep.png` | the page and its figure |
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastres.report.document import Heading, Note, Part, Picture, Table
from fastres.runs.schema import METRICS, SUMMARY, Failure, Mean, Point, Summary, Sweep, read_epochs
from fastres.utils.format import DASH, number, plural
from fastres.utils.json_files import damaged
from fastres.utils.statistics import TWO_SEEDS, Sample, wilson

SWEEP, TABLE, PAGE, DIVERGED = "sweep.json", "sweep.md", "sweep.html", "diverged.json"
FIGURE = "sweep"
"""Its file without the ending."""

SEED = "train.seed"
PRUNED = "pruned"
"""Why a trial of a search stopped, in its summary."""


def read_point(run: Path, name: str, point: str, settings: dict[str, Any]) -> Point | None:
    """A point as sweep.json has it, from its run directory; None where it is not finished.

    Raises UserError where a file of the run is damaged.
    """
    fix = f"remove {run}, and it is trained again"
    about: dict[str, Any] = {"name": name, "point": point, "settings": settings}
    if (run / DIVERGED).is_file():
        return Point(**about, state="diverged", error=Failure.read(run / DIVERGED, fix).error)
    summary = Summary.read_if_there(run / SUMMARY, fix)
    if summary is None:
        return None
    if summary.test_accuracy is None or summary.stopped is None:
        raise damaged(run / SUMMARY, "no test_accuracy or no stopped", fix)
    epochs = read_epochs(run, fix)
    number = len(epochs) if summary.best is None else summary.best.epoch
    if not 1 <= number <= len(epochs):
        raise damaged(run / METRICS, f"it has no epoch {number}", fix)
    validation = {key: epochs[number - 1][key] for key in ("val_accuracy", "val_loss", "train_loss")}
    measured = {key: summary[key] for key in Point.model_fields.keys() & Summary.model_fields.keys() - {"name"}}
    about["state"] = "pruned" if summary.stopped == PRUNED else "complete"
    return Point(**about, leaky=summary.split == "report", **measured, **validation)


def summarise(rows: Sequence[Point], metric: str, *, source: str) -> Sweep:
    """The points, best first, then what was pruned and what has no result, and, where seeds are among what differs,
    means over the seeds of each combination of the rest, best first."""
    order = ["complete", "pruned", "diverged", "failed"]
    ordered = sorted(rows, key=lambda row: (order.index(row.state), _rank(row[metric], metric)))
    groups: dict[str, list[Point]] = {}
    for row in ordered:
        others = {key: value for key, value in row.settings.items() if key != SEED}
        groups.setdefault(json.dumps(others), []).append(row)
    means = []
    if any(SEED in row.settings for row in rows):
        for rest, group in groups.items():
            sample = Sample.of_known(row[metric] for row in group)
            most = 1 if metric.endswith("accuracy") else math.inf  # a loss has no upper bound
            low, high = (sample.interval(low=0, high=most) if sample else None) or (None, None)
            mean, sd, measured = (sample.mean, sample.sd, sample.count) if sample else (None, None, 0)
            about = {"points": len(group), "diverged": len(group) - measured}
            means.append(
                Mean(settings=json.loads(rest), **about, mean=mean, sd=sd, interval_low=low, interval_high=high)
            )
        means.sort(key=lambda group: _rank(group.mean, metric))
    return Sweep(metric=metric, source=source, search=False, points=ordered, means=means)


def _rank(value: float | None, metric: str) -> tuple[bool, float]:
    """Sort key: the best first, missing values last."""
    return value is None, 0.0 if value is None else value if metric.endswith("loss") else -value


# ---------------------------------------------------------------------------------------------------- the table


def shown(value: Any) -> str:
    """A value of a recipe, short; – for a key that the recipe does not have."""
    if isinstance(value, dict):
        return " ".join(f"{key}={shown(content)}" for key, content in value.items() if content is not None)
    if isinstance(value, list):
        return ",".join(shown(part) for part in value)
    if value is None:
        return DASH
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def measure_shown(value: float | None, metric: str) -> str:
    """A metric's value: an accuracy in percent, a loss with four digits."""
    return DASH if value is None else f"{value:.2%}" if metric.endswith("accuracy") else f"{value:.4f}"


def labels(keys: list[str]) -> dict[str, str]:
    """The last part of each dotted key where it says enough: `lr` for `optimizer.lr`."""
    short = {key: key.rsplit(".", 1)[-1] for key in keys}
    return {key: key if name == "name" or [*short.values()].count(name) > 1 else name for key, name in short.items()}


def table(summary: Sweep) -> Table:
    """All points, best first."""
    rows = summary.points
    keys = labels([*rows[0].settings])
    leak = any(row.leaky for row in rows)
    columns = ["test_accuracy", "test_loss", "val_accuracy", "val_loss", "train_loss"]
    columns = [summary.metric, *(key for key in columns if key != summary.metric)]
    columns = [key for key in columns if any(row[key] is not None for row in rows)] or [summary.metric]
    names = {key: metric_name(key, leak=leak) for key in columns}
    header = ["point", *keys.values(), *names.values(), "parameters", "images/s", "seconds"]
    lines = []
    for row in rows:
        measures = [measure_shown(row[key], key) for key in columns]
        if row.state != "complete":
            measures[0] = row.state if row[columns[0]] is None else f"{measures[0]}, {row.state}"
        forms = {"parameters": ",d", "images_per_second": ",.0f", "seconds": ",.1f"}
        facts = [number(row[key], form) for key, form in forms.items()]
        lines.append([row.name, *(shown(row.settings[key]) for key in keys), *measures, *facts])
    return Table(header, lines)


def means_table(summary: Sweep) -> Table:
    """The means over seeds, best first."""
    metric = summary.metric
    keys = labels([*summary.means[0].settings])
    header = [*keys.values(), "seeds", f"mean {metric_name(metric)}", "SD", "95% interval of the mean"]
    lines = []
    for group in summary.means:
        low, high = group.interval_low, group.interval_high
        interval = DASH if low is None else f"{measure_shown(low, metric)} to {measure_shown(high, metric)}"
        count = f"{group.points}" + (f" ({group.diverged} diverged)" if group.diverged else "")
        measures = [measure_shown(group.mean, metric), measure_shown(group.sd, metric), interval]
        lines.append([*(shown(group.settings[key]) for key in keys), count, *measures])
    return Table(header, lines)


def metric_name(metric: str, *, leak: bool = False) -> str:
    """`val_loss` in words."""
    part, what = metric.split("_")
    part = {"val": "leaky validation" if leak else "validation", "train": "training"}.get(part, part)
    return f"{part} {what}"


def notes(summary: Sweep) -> list[str]:
    """Notes for the reader of the table."""
    rows = summary.points
    said = []
    if summary.search:
        said += _of_a_search(summary)
    if summary.metric.startswith("test_") and len(rows) > 1:
        said.append(
            f"The first of {len(rows)} points is first by its test images, so its result is optimistic: a choice among "
            "points has to be made by validation images or confirmed with new seeds."
        )
    if any(row.leaky for row in rows):
        said.append(
            'Points with data.split = "report" train on most of their validation images: that validation says nothing '
            "about new images."
        )
    if not summary.search and not summary.means and any(row.settings.keys() - {SEED} for row in rows):
        said.append("Each point is one seed; another seed moves a result by an amount that this table cannot show.")
    if summary.means:
        scale = "logit" if summary.metric.endswith("accuracy") else "logarithmic"
        said.append(f"The intervals of the means over seeds are Student's t on the {scale} scale.")
        if any(group.points - group.diverged == 2 for group in summary.means):
            said.append(f"Of a mean over two: {TWO_SEEDS}.")
    return said


def parts(summary: Sweep, figure: Picture) -> list[Part]:
    """The page of a sweep, but for its recipe."""
    about = f"{plural(len(summary.points), 'point', 'points')} of a sweep on {summary.source}."
    means: list[Part] = [Heading("Means over seeds"), means_table(summary)] if summary.means else []
    return [Note(about, "soft"), *map(Note, notes(summary)), figure, Heading("Points"), table(summary), *means]


def _of_a_search(summary: Sweep) -> list[str]:
    best, metric = summary.best, metric_name(summary.metric)
    if best is None:
        return ["No trial was completed."]
    total, accuracy = best.test_images or 0, best.test_accuracy or 0.0
    low, high = wilson(round(accuracy * total), total)
    return [
        f"The best trial by {metric} is {best.name}. Its test accuracy is {accuracy:.2%} (95% interval "
        f"of the test sample {low:.2%} to {high:.2%}): no test image had a part in the choice. Its {metric} had, and "
        "is optimistic."
    ]
