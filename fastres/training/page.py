"""The report page of a run, and its augmented images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastres.errors import UserError
from fastres.evaluation.trained import TrainedModel
from fastres.recipe import Recipe
from fastres.report import any_backend
from fastres.runs.directory import read_recipe
from fastres.runs.environment import Environment
from fastres.runs.schema import ENVIRONMENT, SUMMARY, Epoch, Summary, read_epochs
from fastres.training.data import DataModule, labels_of, open_data_module
from fastres.utils.files import check_writable, write_bytes

if TYPE_CHECKING:
    from fastres.report.run_page import ReportData

SHOWN = 40
"""Training images that the page shows."""
STEPS_SHOWN, EACH_STEP = 4, 8
"""Batches that the figure of the augmentation shows, and images of each: a batch is mixed in one way."""


def draw_page(
    run: Path,
    recipe: Recipe,
    data_module: DataModule | None,
    rows: list[Epoch],
    summary: Summary,
    environment: Environment,
    probabilities: Tensor | None,
    notes: Sequence[str] = (),
) -> Path:
    """Draw the figures and write report.html; `probabilities` [N, classes] are those of the test images."""
    with any_backend():
        from fastres.report.run_page import write_report

    shown = None if data_module is None else _shown(data_module, probabilities)
    about: dict[str, Any] = {"rows": rows, "summary": summary, "environment": environment}
    return write_report(run, recipe=recipe, report_data=shown, notes=notes, **about)


def _shown(data_module: DataModule, probabilities: Tensor | None) -> "ReportData":
    from fastres.report.run_page import ReportData

    shown = data_module.train.subset[:SHOWN]
    samples = np.array(data_module.train_images[shown])
    images, indices = (torch.from_numpy(array).to(data_module.train.device) for array in (samples, shown))
    augmented = data_module.augment.restore(data_module.augment.augment(images, indices, 0))
    return ReportData(
        classes=data_module.dataset.classes,
        train_labels=data_module.train_labels[data_module.train.subset],
        val_labels=None if data_module.validation is None else data_module.train_labels[data_module.validation.subset],
        samples=samples,
        sample_labels=data_module.train_labels[shown],
        augmented=augmented.numpy(),
        test_images=data_module.test_images,
        test_labels=labels_of(data_module.test).numpy(),
        test_probabilities=None if probabilities is None else probabilities.numpy(),
    )


def redraw(run: str | Path, *, device: str = "auto") -> Path:
    """Draw the page of a run again, complete or not, from what is in its directory and, where they can be opened, its
    data, on which a kept network is tested anew; returns the page's path. What cannot be shown is said on the page.

    Raises UserError where `run` is no run directory, is damaged or cannot be written.
    """
    folder = Path(run)
    recipe = read_recipe(folder)
    rounds = [path.parent for path in folder.glob("rounds/*/recipe.toml") if path.parent.name.isdecimal()]
    if rounds:  # the page of several runs is that of the last
        page = redraw(max(rounds, key=lambda path: int(path.name)), device=device)
        write_bytes(folder / page.name, page.read_bytes())
        return folder / page.name
    rows, machine = read_epochs(folder), Environment.read_if_there(folder / ENVIRONMENT) or Environment()
    told = Summary.read_if_there(folder / SUMMARY)
    summary = told.updated(stopped=told.stopped or "completed") if told else _unfinished(folder, recipe, rows, machine)
    notes, data_module, probabilities = [], None, None
    try:
        # Nothing is streamed: the loader that opens without reading anything.
        loader = "torch" if recipe.data.extra is None else recipe.data.loader
        opened = recipe.model_copy(update={"data": recipe.data.model_copy(update={"loader": loader, "workers": 0})})
        data_module = open_data_module(opened, torch.device("cpu"))
        if summary.stopped is not None:
            model = TrainedModel.load(folder, device)
            probabilities = model.logits(data_module.test_images).softmax(1).cpu()
    except UserError as error:
        what = "Images and tests are" if data_module is None else "Figures of the tests are"
        notes.append(f"{what} left out: {error}")
    try:
        return draw_page(folder, recipe, data_module, rows, summary, machine, probabilities, notes)
    finally:
        if data_module is not None:
            data_module.close()


def _unfinished(run: Path, recipe: Recipe, rows: list[Epoch], machine: Environment) -> Summary:
    return Summary(
        name=run.resolve().name,
        source=recipe.data.source,
        split=recipe.data.split,
        precision=recipe.train.precision,
        recipe_hash=recipe.hash(),
        device=machine.device_name,
        epochs=len(rows),
        steps=rows[-1].step if rows else 0,
    )


def draw_augmented(recipe: Recipe, out: Path) -> int:
    """Write a PNG of training images above what the network gets of them, as the first steps of the first epoch mix
    them; returns how many images it shows. Raises UserError where data or policy cannot be used, or `out` not written.
    """
    with any_backend():
        from fastres.report import run_figures
        from fastres.report.style import png, short

    check_writable(out)
    data_module = open_data_module(recipe, torch.device("cpu"))
    names = data_module.dataset.classes
    before, after, captions = [], [], []
    for step, batch in zip(range(STEPS_SHOWN), data_module.train.batches(0), strict=False):
        mixed = data_module.augment(batch.source, batch.labels, batch.indices, 0, step, batch.rows)
        fraction = float(mixed.weight)
        before.append(batch.source[batch.rows[:EACH_STEP]])
        after.append(data_module.augment.restore(mixed.images[:EACH_STEP]))
        both = (data_module.classes_of(each[:EACH_STEP]).tolist() for each in (mixed.labels, mixed.partners))
        for label, partner in zip(*both, strict=True):
            own, other = short(names[label], 10), short(names[partner], 10)
            captions.append(f"{own}\n" if fraction == 1 else f"{own} {fraction:.0%}\n{other} {1 - fraction:.0%}")
    data_module.close()
    figure = run_figures.mixed(torch.cat(before).numpy(), torch.cat(after).numpy(), captions, EACH_STEP)
    write_bytes(out, png(figure))
    return len(captions)
