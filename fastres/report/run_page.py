"""The page of a run: `figures/` and `report.html`, one file that needs no network, no script and no other file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fastres.recipe import Recipe
from fastres.report import run_figures
from fastres.report.document import Details, Heading, Note, Part, Picture, Table, Tiles, write
from fastres.report.style import LEAKY, png
from fastres.runs.environment import Environment
from fastres.runs.schema import Epoch, Summary
from fastres.utils.format import DASH, ONE_CLASS, number, plural, wall_time
from fastres.utils.statistics import wilson

PAGE = "report.html"


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
    test_probabilities: np.ndarray | None
    """float32 [N, classes]: what the network makes of them; None where it has not been tested."""


def write_report(
    run: Path,
    *,
    recipe: Recipe,
    rows: list[Epoch],
    summary: Summary,
    environment: Environment,
    report_data: ReportData | None,
    notes: Sequence[str] = (),
) -> Path:
    """Draw `figures/*.png` into the run directory and write `report.html` with them inside; returns the page's path.

    `rows` are those of metrics.jsonl. The summary of a run that is not complete has no `stopped`; without data, only
    what the run wrote is shown. `notes` stand among the warnings. Raises UserError where nothing can be written.
    """
    leak, tested = summary.split == "report", report_data is not None and report_data.test_probabilities is not None
    classes = "" if report_data is None else f" for {plural(len(report_data.classes), 'class', 'classes')}"
    images = plural(_tested_images(summary, report_data), "test image", "test images")
    machine = json.dumps(environment.to_json(), indent=2, ensure_ascii=False)
    interval = (
        f"The interval (Wilson, {images}) covers the choice of the test images only. Another seed gives another "
        "network and another accuracy, by an amount that one run cannot show."
    )
    parts: list[Part] = [
        Note(f"A {recipe.model.name}{classes} of {summary.source}.", "soft"),
        _headline(summary, report_data, rows, recipe),
        *[interval] * (summary.test_accuracy is not None),
        *map(Note, [*_warnings(summary, report_data, rows, recipe, leak=leak), *notes]),
        Heading("How it was made"),
        "The resolved recipe lies beside this page, and is printed below; this trains it again:",
        Details("", "fastres train recipe.toml"),
        _made(summary, environment, report_data),
        Heading("Figures"),
        *_pictures(rows, summary, report_data, leak=leak),
    ]
    if report_data is not None and tested:
        parts += [Heading("Accuracy by class"), _by_class(report_data)]
    parts += [
        Heading("Details"),
        *[Details("Every epoch", _epochs(rows, leak=leak))] * bool(rows),
        Details("Recipe, resolved", recipe.to_toml()),
        Details("Environment", machine),
    ]
    write(run, [PAGE], str(summary.name), parts)
    return run / PAGE


def _tested_images(summary: Summary, shown: ReportData | None) -> int:
    return (summary.test_images or 0) if shown is None else len(shown.test_labels)


def _pictures(rows: list[Epoch], summary: Summary, shown: ReportData | None, *, leak: bool) -> list[Picture]:
    best, accuracy = summary.best, summary.test_accuracy
    best_note = " The vertical line is the epoch whose weights were tested." if best else ""
    leaking = (
        " The validation images are the first of the training images, while training draws from all of them: most are "
        "trained on, so this curve is no estimate for new images."
    ) * leak
    validated = any(row.val_loss is not None for row in rows) if shown is None else shown.val_labels is not None
    validation = f", and {LEAKY if leak else 'validation'} (red, dashed), on plain images after each epoch"
    level = "" if accuracy is None else " The level line is the test accuracy at the end."
    curves = {
        "loss": (
            run_figures.loss(rows, best=best, leak=leak),
            "Loss by epoch: training (blue), on augmented images while the weights move"
            f"{validation if validated else ''}.{leaking}{best_note}",
        ),
        "accuracy": (
            run_figures.accuracy(rows, best=best, leak=leak, test_accuracy=accuracy),
            f"Accuracy by epoch; the axis spans the data, not 0 to 100%.{level}{leaking}{best_note}",
        ),
        "learning_rate": (run_figures.learning_rate(rows), "Learning rate at the last step of each epoch."),
    }
    figures = curves if shown is None else _of_images(shown, leak=leak) | curves | _of_tests(shown)
    return [Picture(name, png(figure), caption) for name, (figure, caption) in figures.items()]


def _of_images(shown: ReportData, *, leak: bool) -> dict[str, tuple[Figure, str]]:
    counted = "." if shown.val_labels is None else f", {len(shown.val_labels):,} for validation (red, hatched)."
    if leak:
        counted += " Most of the latter are among the former."
    classes = shown.classes
    return {
        "samples": (
            run_figures.samples(shown.samples, shown.sample_labels, classes),
            "Training images as stored, under the names of their classes.",
        ),
        "class_counts": (
            run_figures.class_counts(shown.train_labels, shown.val_labels, classes, leak=leak),
            f"Images of each class: {len(shown.train_labels):,} for training (blue){counted}",
        ),
        "augmented": (
            run_figures.samples(shown.samples, shown.sample_labels, classes, shown.augmented),
            "Training images (above) and the same after augmentation (below), as the network sees them in one epoch; "
            "before mixing and normalisation.",
        ),
    }


def _of_tests(shown: ReportData) -> dict[str, tuple[Figure, str]]:
    if shown.test_probabilities is None:
        return {}
    labels, predicted, classes = shown.test_labels, _predicted(shown), shown.classes
    mistakes = int((predicted != labels).sum())
    wrong = run_figures.worst_mistakes(shown.test_images, labels, shown.test_probabilities, classes)
    return {
        "confusion": (
            run_figures.confusion(labels, predicted, classes),
            "Each row is a true class and adds up to 100%: the share of its test images given to each class"
            f"{', with their number in brackets' if len(classes) <= 10 else ''}. The colour follows the square root, "
            "so that rare confusions show.",
        ),
        "worst_mistakes": (
            wrong,
            f"Of {plural(mistakes, 'wrong answer', 'wrong answers')} on the test images, those given with the highest "
            "probability: true class → predicted class, probability."
            if mistakes
            else "Every test image was given its true class.",
        ),
    }


def _predicted(shown: ReportData) -> np.ndarray:
    assert shown.test_probabilities is not None
    return np.nan_to_num(shown.test_probabilities).argmax(axis=1)


def _headline(summary: Summary, shown: ReportData | None, rows: list[Epoch], recipe: Recipe) -> Tiles:
    if summary.stopped is None:
        last = rows[-1] if rows else Epoch(epoch=0)
        tiles = [
            ("Epochs done", f"{last.epoch}", f"of {recipe.train.epochs:g}"),
            ("Training accuracy", number(last.train_accuracy, ".2%"), "of the last of them, augmented images"),
            ("Validation accuracy", number(last.val_accuracy, ".2%"), "after it"),
            ("Training speed", number(last.images_per_second, ",.0f"), "images a second in it"),
        ]
        return Tiles(tiles)
    total = _tested_images(summary, shown)
    accuracy, multiply_adds = summary.test_accuracy or 0.0, summary.multiply_adds or 0
    low, high = wilson(round(accuracy * total), total)
    cold, warm = summary.cold_seconds, summary.warm_seconds  # a run of an older version has no warm figure
    first = f"first step after {wall_time(cold if warm is None else warm)}"
    if warm is not None and cold is not None:
        first += f", after {wall_time(cold)} in the run that compiled it"
    stall = summary.input_stall  # a run of an older version has none
    waiting = "" if stall is None else f"; {stall:.1%} of the time waiting for the {summary.loader} loader"
    speed, size = number(summary.images_per_second, ",.0f"), f"{multiply_adds / 1e6:,.1f} M multiply-adds an image"
    tiles = [
        ("Test accuracy", f"{accuracy:.2%}", f"95% interval {low:.2%} to {high:.2%}"),
        ("Parameters", f"{summary.parameters:,}", f"trainable; {size}"),
        ("Training speed", speed, f"images a second, first step left out{waiting}"),
        ("Whole run", wall_time(summary.seconds), first),
    ]
    return Tiles(tiles)


def _warnings(
    summary: Summary, shown: ReportData | None, rows: list[Epoch], recipe: Recipe, *, leak: bool
) -> list[str]:
    texts = []
    if shown is not None and len(shown.classes) == 1:
        texts.append(f"{ONE_CLASS.capitalize()}.")
    if leak:
        texts.append(
            'Leaky validation. With data.split = "report" most validation images are trained on. Their loss and '
            "accuracy say nothing about new images; weights chosen by them are chosen by training data. "
            'data.split = "holdout" is the honest split.'
        )
    if summary.best and summary.best.metric.startswith("test_"):
        texts.append(
            "Chosen on the test images. The tested weights are those of the epoch with the best "
            f"{summary.best.metric.replace('_', ' ')}, so the test accuracy above is optimistic."
        )
    if summary.stopped is None:
        texts.append(
            f"Not complete: {len(rows)} of {recipe.train.epochs:g} epochs are done, and nothing has been tested. "
            "`fastres train --resume` with this folder goes on."
        )
    elif summary.stopped != "completed":
        texts.append(f"Stopped after {_epochs_of(summary)}: {summary.stopped}.")
    return texts


def _epochs_of(summary: Summary) -> str:
    return plural(summary.epochs or 0, "epoch", "epochs")


def _made(summary: Summary, environment: Environment, shown: ReportData | None) -> Table:
    version = str(environment.fastres)
    if environment.commit:
        version += f", commit {environment.commit[:12]}" + (" with changes" if environment.dirty else "")
    best = summary.best
    weights = f"epoch {best.epoch}, by {best.metric} = {best.value:.5g}" if best else "those of the last step"
    made = "by an earlier run" if summary.compiled_from_cache else "yes"
    compiled = DASH if summary.compiled is None else made if summary.compiled else "no"
    if summary.compile_note:
        compiled += f": {summary.compile_note}"
    calibration, memory = summary.expected_calibration_error, summary.peak_memory_bytes
    images = f"{summary.source}, split “{summary.split}”"
    if shown is not None:
        validation = "no validation" if shown.val_labels is None else f"{len(shown.val_labels):,} to validate on"
        images += f": {len(shown.train_labels):,} to train on, {validation}, {len(shown.test_labels):,} to test on"
    facts = {
        "Images": images,
        "Length": f"{_epochs_of(summary)}, {plural(summary.steps or 0, 'step', 'steps')}",
        "Weights tested": weights,
        "Test loss": DASH if summary.test_loss is None else f"{summary.test_loss:.4f} nats an image",
        "Calibration error": DASH if calibration is None else f"{calibration:.2%} (expected, of the probability given)",
        "Precision": str(summary.precision),
        "Compiled": compiled,
        "Device": str(summary.device or "unknown"),
        "Peak memory": DASH if memory is None else f"{memory / 2**20:,.0f} MiB",
        "Software": f"fastres {version}; torch {environment.torch}; Python {environment.python}",
        "Recipe hash": str(summary.recipe_hash),
    }
    return Table([], [*facts.items()], text_columns=2)


def _by_class(shown: ReportData) -> Table:
    predicted = _predicted(shown)
    lines = []
    for label, name in enumerate(shown.classes):
        answers = predicted[shown.test_labels == label]
        correct = int((answers == label).sum())
        low, high = wilson(correct, len(answers))
        counts = np.bincount(answers[answers != label], minlength=len(shown.classes))
        rival = int(counts.argmax())
        taken = f"{shown.classes[rival]} ({counts[rival]:,})" if counts[rival] else DASH
        accuracy = [f"{correct / len(answers):.1%}", f"{low:.1%} to {high:.1%}"] if len(answers) else [DASH, DASH]
        lines.append([name, str(label), f"{len(answers):,}", f"{correct:,}", *accuracy, taken])
    header = ["Class", "Label", "Test images", "Correct", "Accuracy", "95% interval", "Most often taken for"]
    return Table(header, lines)


def _epochs(rows: list[Epoch], *, leak: bool) -> Table:
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
    lines = [[number(row[key], form) for key, (_, form) in used.items()] for row in rows]
    return Table([name for name, _ in used.values()], lines)
