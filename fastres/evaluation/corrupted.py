"""Accuracy of a run's network on its test set and on shifted ones: what `fastres eval --shift` measures and writes."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from fastres.errors import UserError
from fastres.evaluation.corruptions.registry import KINDS, SEED, SEVERITIES, check, check_size, corrupt
from fastres.evaluation.corruptions.values import Pixels
from fastres.evaluation.metrics import Measures, measure
from fastres.evaluation.predict import test_set
from fastres.evaluation.trained import TrainedModel
from fastres.report import any_backend
from fastres.report.document import Table
from fastres.runs.schema import Corruptions
from fastres.utils.files import check_writable, write_bytes
from fastres.utils.paths import expand_home
from fastres.utils.progress import progress, say

FILE, FIGURE = "shift.json", Path("figures") / "shift.png"
FROST = "frost: drawn textures instead of the published generator's photographs"
_PART = 512
"""Images that a thread shifts at a time."""


def choose_kinds(text: str | None) -> tuple[str, ...]:
    """Kinds from their names with commas between, in the paper's order; None is all. Raises UserError."""
    if text is None:
        return tuple(KINDS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        check(name, SEVERITIES[0])
    return tuple(kind for kind in KINDS if kind in names)


def choose_severities(text: str | None) -> tuple[int, ...]:
    """Severities from numbers with commas between, ascending; None is all. Raises UserError."""
    if text is None:
        return SEVERITIES
    try:
        numbers = {int(number) for number in text.split(",")}
    except ValueError:
        raise UserError(f"severities {text}: give numbers from 1 to 5 with commas between, as in 1,3,5") from None
    for number in sorted(numbers):
        check(next(iter(KINDS)), number)
    return tuple(sorted(numbers))


def evaluate_corrupted(
    run: str | Path,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    severities: Sequence[int] = SEVERITIES,
    device: str = "auto",
    quiet: bool = False,
) -> tuple[tuple[str, ...], Measures, Corruptions]:
    """Class names, measures on the clean test images as `evaluate` has them, and the summary of the shifted sets.

    The summary goes into `run` as shift.json, and as figures/shift.png, unless the folder is not ours to write or holds
    a measurement of more kinds or severities; a line on standard error reports it. Accuracies and their
    differences are shares. A test set of JPEG files is decoded into memory as a whole. Raises UserError as `evaluate`
    does, and for images of less than 8 × 8 pixels.
    """
    folder = expand_home(run)
    model = TrainedModel.load(folder, device)
    check_size(model.image_size, model.image_size)
    stored, labels = test_set(model.recipe.data, model.classes)
    unwritten = _why_not_written(folder, kinds, severities)
    if unwritten is None:
        check_writable(folder / FIGURE)
    images = stored[np.arange(len(stored))]
    clean = measure(model.logits(images), labels, model.temperature)
    accuracy: dict[str, list[float]] = {kind: [] for kind in kinds}
    with (
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
        progress("shifted test sets", len(kinds) * len(severities), quiet=quiet) as advance,
    ):
        for kind in kinds:
            for severity in severities:
                predicted = model.logits(_shifted(images, kind, severity, pool)).argmax(1)
                accuracy[kind].append((predicted == labels).double().mean().item())
                advance(1)
    summary = summarise(clean.accuracy, accuracy, severities).updated(
        source=model.recipe.data.source,
        test_images=clean.images,
        tta=model.recipe.eval.tta,
        device=str(model.device),
        seed=SEED,
    )
    if unwritten is None:
        with any_backend():
            from fastres.report import run_figures
            from fastres.report.style import png

        write_bytes(folder / FIGURE, png(run_figures.corruptions(summary)))
        summary.write(folder / FILE)
    else:
        say(unwritten)
    return model.classes, clean, summary


def _shifted(images: Pixels, kind: str, severity: int, pool: ThreadPoolExecutor) -> Pixels:
    """`images` after one shift, parts of them in each thread."""
    indices = np.arange(len(images))
    result = np.empty_like(images)

    def fill(start: int) -> None:
        part = slice(start, start + _PART)
        result[part] = corrupt(images[part], kind, severity, indices[part])

    list(pool.map(fill, range(0, len(images), _PART)))
    return result


def summarise(clean: float, accuracy: dict[str, list[float]], severities: Sequence[int]) -> Corruptions:
    """Summary of the accuracies of each kind by severity: means, and the drop of their mean below the clean one."""
    table = np.array(list(accuracy.values()))
    mean = float(table.mean())
    return Corruptions(
        clean_accuracy=clean,
        mean_corruption_accuracy=mean,
        drop=clean - mean,
        severities=list(severities),
        accuracy=accuracy,
        mean_by_kind=dict(zip(accuracy, table.mean(axis=1).tolist(), strict=True)),
        mean_by_severity=table.mean(axis=0).tolist(),
        notes=[FROST] if "frost" in accuracy else [],
    )


def _why_not_written(folder: Path, kinds: Sequence[str], severities: Sequence[int]) -> str | None:
    """Reason why the summary is not written into the run directory, or None."""
    path = folder / FILE
    if not os.access(folder, os.W_OK):
        return f"{path} is not written: no right to write there"
    try:
        earlier = Corruptions.read_if_there(path)
    except UserError:  # none that could be lost
        return None
    more = earlier and not ({*earlier.accuracy} <= {*kinds} and {*earlier.severities} <= {*severities})
    return f"{path} stays as it is: it has kinds or severities that were not asked for now" if more else None


def table(summary: Corruptions) -> Table:
    """The summary in percent."""
    header = ["shift", *(f"severity {severity}" for severity in summary.severities), "mean"]
    lines = [
        [kind, *(f"{accuracy:.2%}" for accuracy in accuracies), f"{summary.mean_by_kind[kind]:.2%}"]
        for kind, accuracies in summary.accuracy.items()
    ]
    means = [f"{accuracy:.2%}" for accuracy in summary.mean_by_severity]
    return Table(header, [*lines, ["mean", *means, f"{summary.mean_corruption_accuracy:.2%}"]])


def describe(summary: Corruptions) -> str:
    """The summary in a line, and what is to be known about it."""
    sets = len(summary.accuracy) * len(summary.severities)
    of = "the shifted set" if sets == 1 else f"{sets} shifted sets"
    line = (
        f"mean corruption accuracy {summary.mean_corruption_accuracy:.2%} ({of}), clean "
        f"{summary.clean_accuracy:.2%}, drop {100 * (summary.drop or 0):.2f} points"
    )
    return "\n".join([line, *summary.notes])
