"""The page of a run: `figures/` and `report.html`, one file that needs no network, no script and no other file."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fastres.recipe import Recipe
from fastres.report import run_figures
from fastres.report.html import details, document, picture, table
from fastres.report.style import LEAKY, png
from fastres.runs.environment import Environment
from fastres.runs.schema import Epoch, Summary
from fastres.utils.files import write_bytes
from fastres.utils.format import plural, wall_time
from fastres.utils.statistics import wilson


@dataclass(frozen=True)
class ReportData:
    """The data and the network's predictions that the page shows; arrays on the CPU."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    train_labels: np.ndarray
    """int64 [n]: labels of all images that are trained on."""
    val_labels: np.ndarray | None
    """int64 [n]: labels of the validation images, if there are any."""
    samples: np.ndarray
    """uint8 [n, H, W, 3]: some training images."""
    sample_labels: np.ndarray
    """int64 [n]: their labels."""
    augmented: np.ndarray
    """float32 [n, H, W, 3] in 0 to 1: the same images after augmentation, before normalisation."""
    test_images: Any
    """uint8 [N, H, W, 3], an array or EncodedImages: all test images."""
    test_labels: np.ndarray
    """int64 [N]: their labels."""
    test_probabilities: np.ndarray
    """float32 [N, classes]: what the network makes of them."""


def write_report(
    run: Path,
    *,
    recipe: Recipe,
    rows: list[Epoch],
    summary: Summary,
    environment: Environment,
    report_data: ReportData,
) -> Path:
    """Draw `figures/*.png` into the run directory and write `report.html` with them inside; returns the page's path.

    `rows` are those of metrics.jsonl. Raises UserError where the run directory cannot be written.
    """
    leak = summary.split == "report"
    pictures = []
    for name, figure, caption in _figures(rows, summary, report_data, leak=leak):
        data = png(figure)
        write_bytes(run / "figures" / f"{name}.png", data)
        pictures.append(picture(name, data, caption))
    what = f"A {recipe.model.name} for {plural(len(report_data.classes), 'class', 'classes')} of {summary.source}."
    body = [
        f"<h1>{escape(str(summary.name))}</h1>",
        f'<p class="soft">{escape(what)}</p>',
        _headline(summary, report_data),
        *_notes(summary, leak=leak),
        "<h2>How it was made</h2>",
        _made(summary, environment, report_data),
        "<h2>Figures</h2>",
        *pictures,
        "<h2>Accuracy by class</h2>",
        _by_class(report_data),
        "<h2>Details</h2>",
        details("Every epoch", _epochs(rows, leak=leak)),
        details("Recipe, resolved", f"<pre>{escape(recipe.to_toml())}</pre>"),
        details("Environment", f"<pre>{escape(json.dumps(environment.to_json(), indent=2, ensure_ascii=False))}</pre>"),
    ]
    path = run / "report.html"
    write_bytes(path, document(str(summary.name), body))
    return path


def _figures(rows: list[Epoch], summary: Summary, shown: ReportData, *, leak: bool) -> list[tuple[str, Figure, str]]:
    """(file name, figure, caption) of each figure, in the order of the page."""
    best, classes, predicted = summary.best, shown.classes, _predicted(shown)
    leaking = (
        " The validation images are the first of the training images, while training draws from all of them: most are "
        "trained on, so this curve is no estimate for new images."
        if leak
        else ""
    )
    best_note = " The vertical line is the epoch whose weights were tested." if best else ""
    val = ""
    if shown.val_labels is not None:
        val = f", and {LEAKY if leak else 'validation'} (red, dashed), on plain images after each epoch"
    mistakes = int((predicted != shown.test_labels).sum())
    return [
        (
            "samples",
            run_figures.samples(shown.samples, shown.sample_labels, classes),
            "Training images as stored, under the names of their classes.",
        ),
        (
            "class_counts",
            run_figures.class_counts(shown.train_labels, shown.val_labels, classes, leak=leak),
            f"Images of each class: {len(shown.train_labels):,} for training (blue)"
            + ("." if shown.val_labels is None else f", {len(shown.val_labels):,} for validation (red, hatched).")
            + (" Most of the latter are among the former." if leak else ""),
        ),
        (
            "augmented",
            run_figures.augmented(shown.samples, shown.augmented, shown.sample_labels, classes),
            "Training images (above) and the same after augmentation (below), as the network sees them in one epoch; "
            "before mixing and normalisation.",
        ),
        (
            "loss",
            run_figures.loss(rows, best=best, leak=leak),
            f"Loss by epoch: training (blue), on augmented images while the weights move{val}." + leaking + best_note,
        ),
        (
            "accuracy",
            run_figures.accuracy(rows, best=best, leak=leak, test_accuracy=summary.test_accuracy),
            "Accuracy by epoch; the axis spans the data, not 0 to 100%. The level line is the test accuracy at the end."
            + leaking
            + best_note,
        ),
        ("learning_rate", run_figures.learning_rate(rows), "Learning rate at the last step of each epoch."),
        (
            "confusion",
            run_figures.confusion(shown.test_labels, predicted, classes),
            "Each row is a true class and adds up to 100%: the share of its test images given to each class"
            + (", with their number in brackets." if len(classes) <= 10 else ".")
            + " The colour follows the square root, so that rare confusions show.",
        ),
        (
            "worst_mistakes",
            run_figures.worst_mistakes(shown.test_images, shown.test_labels, shown.test_probabilities, classes),
            f"Of {plural(mistakes, 'wrong answer', 'wrong answers')} on the test images, those given with the highest "
            "probability: true class → predicted class, probability."
            if mistakes
            else "Every test image was given its true class.",
        ),
    ]


def _predicted(shown: ReportData) -> np.ndarray:
    return np.nan_to_num(shown.test_probabilities).argmax(axis=1)


def _headline(summary: Summary, shown: ReportData) -> str:
    total = len(shown.test_labels)
    accuracy, multiply_adds = summary.test_accuracy or 0.0, summary.multiply_adds or 0
    low, high = wilson(round(accuracy * total), total)
    speed = summary.images_per_second
    cold, warm = summary.cold_seconds, summary.warm_seconds  # a run of an older version has no warm figure
    first = f"first step after {wall_time(cold if warm is None else warm)}"
    if warm is not None and cold is not None:
        first += f", after {wall_time(cold)} in the run that compiled it"
    stall = summary.input_stall  # a run of an older version has none
    waiting = "" if stall is None else f"; {stall:.1%} of the time waiting for the {summary.loader} loader"
    tiles = [
        ("Test accuracy", f"{accuracy:.2%}", f"95% interval {low:.2%} to {high:.2%}"),
        (
            "Parameters",
            f"{summary.parameters:,}",
            f"trainable; {multiply_adds / 1e6:,.1f} M multiply-adds an image",
        ),
        ("Training speed", "–" if speed is None else f"{speed:,.0f}", f"images a second, first step left out{waiting}"),
        ("Whole run", wall_time(summary.seconds), first),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in tiles)
    return (
        f'<dl class="tiles">{cells}</dl>\n'
        f"<p>The interval (Wilson, {plural(total, 'test image', 'test images')}) covers the choice of the test images "
        "only. Another seed gives another network and another accuracy, by an amount that one run cannot show.</p>"
    )


def _notes(summary: Summary, *, leak: bool) -> list[str]:
    notes = []
    if leak:
        notes.append(
            '<strong>Leaky validation.</strong> With <code>data.split = "report"</code> most validation images are '
            "trained on. Their loss and accuracy say nothing about new images; weights chosen by them are chosen by "
            'training data. <code>data.split = "holdout"</code> is the honest split.'
        )
    best = summary.best
    if best and best.metric.startswith("test_"):
        notes.append(
            "<strong>Chosen on the test images.</strong> The tested weights are those of the epoch with the best "
            f"{escape(best.metric.replace('_', ' '))}, so the test accuracy above is optimistic."
        )
    if summary.stopped != "completed":
        notes.append(f"Stopped after {_epochs_of(summary)}: {escape(str(summary.stopped))}.")
    return [f'<p class="warning">{note}</p>' for note in notes]


def _epochs_of(summary: Summary) -> str:
    return plural(summary.epochs or 0, "epoch", "epochs")


def _made(summary: Summary, environment: Environment, shown: ReportData) -> str:
    version = str(environment.fastres)
    if environment.commit:
        version += f", commit {environment.commit[:12]}" + (" with changes" if environment.dirty else "")
    best = summary.best
    weights = f"epoch {best.epoch}, by {best.metric} = {best.value:.5g}" if best else "those of the last step"
    compiled = "no" if not summary.compiled else "by an earlier run" if summary.compiled_from_cache else "yes"
    if summary.compile_note:
        compiled += f": {summary.compile_note}"
    calibration, memory = summary.expected_calibration_error, summary.peak_memory_bytes
    facts = {
        "Images": f"{summary.source}, split “{summary.split}”: {len(shown.train_labels):,} to train on, "
        + ("no validation" if shown.val_labels is None else f"{len(shown.val_labels):,} to validate on")
        + f", {len(shown.test_labels):,} to test on",
        "Length": f"{_epochs_of(summary)}, {plural(summary.steps or 0, 'step', 'steps')}",
        "Weights tested": weights,
        "Test loss": "–" if summary.test_loss is None else f"{summary.test_loss:.4f} nats an image",
        "Calibration error": "–" if calibration is None else f"{calibration:.2%} (expected, of the probability given)",
        "Precision": str(summary.precision),
        "Compiled": compiled,
        "Device": str(summary.device or "unknown"),
        "Peak memory": "–" if memory is None else f"{memory / 2**20:,.0f} MiB",
        "Software": f"fastres {version}; torch {environment.torch}; Python {environment.python}",
        "Recipe hash": str(summary.recipe_hash),
    }
    lines = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return (
        "<p>The resolved recipe lies beside this page, and is printed below; this trains it again:</p>\n"
        "<pre>fastres train recipe.toml</pre>\n"
        f'<div class="scroll"><table class="facts"><tbody>{lines}</tbody></table></div>'
    )


def _by_class(shown: ReportData) -> str:
    predicted = _predicted(shown)
    lines = []
    for label, name in enumerate(shown.classes):
        answers = predicted[shown.test_labels == label]
        correct = int((answers == label).sum())
        low, high = wilson(correct, len(answers))
        counts = np.bincount(answers[answers != label], minlength=len(shown.classes))
        rival = int(counts.argmax())
        taken = f"{shown.classes[rival]} ({counts[rival]:,})" if counts[rival] else "–"
        accuracy = [f"{correct / len(answers):.1%}", f"{low:.1%} to {high:.1%}"] if len(answers) else ["–", "–"]
        lines.append([name, str(label), f"{len(answers):,}", f"{correct:,}", *accuracy, taken])
    return table(
        ["Class", "Label", "Test images", "Correct", "Accuracy", "95% interval", "Most often taken for"], lines
    )


def _epochs(rows: list[Epoch], *, leak: bool) -> str:
    """The rows of metrics.jsonl; a column for each field that any of them has."""
    val = LEAKY if leak else "validation"
    columns = {
        "epoch": ("Epoch", "d"),
        "step": ("Step", ",d"),
        "lr": ("Learning rate", ".4g"),
        "train_loss": ("Training loss", ".4f"),
        "train_accuracy": ("Training accuracy", ".2%"),
        "val_loss": (f"{val.capitalize()} loss", ".4f"),
        "val_accuracy": (f"{val.capitalize()} accuracy", ".2%"),
        "test_loss": ("Test loss", ".4f"),
        "test_accuracy": ("Test accuracy", ".2%"),
        "images_per_second": ("Images/s", ",.0f"),
        "seconds": ("Seconds", ".1f"),
        "input_stall": ("Waiting for data", ".1%"),
    }
    used = {key: column for key, column in columns.items() if any(key in row.model_fields_set for row in rows)}
    lines = [["–" if row[key] is None else format(row[key], form) for key, (_, form) in used.items()] for row in rows]
    return table([name for name, _ in used.values()], lines)
