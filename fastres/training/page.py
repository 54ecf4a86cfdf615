"""The report page of a run, and its augmented images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastres.recipe import Recipe
from fastres.runs.environment import Environment
from fastres.runs.schema import Epoch, Summary
from fastres.training.data import DataModule, labels_of, open_data_module
from fastres.utils.files import check_writable, write_bytes

SHOWN = 40
"""Training images that the page shows."""
STEPS_SHOWN, EACH_STEP = 4, 8
"""Batches that the figure of the augmentation shows, and images of each: a batch is mixed in one way."""


def draw_page(
    run: Path,
    recipe: Recipe,
    data_module: DataModule,
    rows: list[Epoch],
    summary: Summary,
    environment: Environment,
    probabilities: Tensor,
) -> Path:
    """Draw the figures and write report.html; `probabilities` [N, classes] are those of the test images."""
    from fastres.report.run_page import ReportData, write_report

    shown = data_module.train.subset[:SHOWN]
    samples = np.array(data_module.train_images[shown])
    images, indices = (torch.from_numpy(array).to(data_module.train.device) for array in (samples, shown))
    augmented = data_module.augment.restore(data_module.augment.augment(images, indices, 0))
    report_data = ReportData(
        classes=data_module.dataset.classes,
        train_labels=data_module.train_labels[data_module.train.subset],
        val_labels=None if data_module.validation is None else data_module.train_labels[data_module.validation.subset],
        samples=samples,
        sample_labels=data_module.train_labels[shown],
        augmented=augmented.numpy(),
        test_images=data_module.test_images,
        test_labels=labels_of(data_module.test).numpy(),
        test_probabilities=probabilities.numpy(),
    )
    return write_report(
        run, recipe=recipe, rows=rows, summary=summary, environment=environment, report_data=report_data
    )


def draw_augmented(recipe: Recipe, out: Path) -> int:
    """Write a PNG of training images above what the network gets of them, as the first steps of the first epoch mix
    them; returns how many images it shows. Raises UserError where data or policy cannot be used, or `out` not written.
    """
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
        labels, partners = (
            data_module.classes_of(each[:EACH_STEP]).tolist() for each in (mixed.labels, mixed.partners)
        )
        for label, partner in zip(labels, partners, strict=True):
            own, other = short(names[label], 10), short(names[partner], 10)
            captions.append(f"{own}\n" if fraction == 1 else f"{own} {fraction:.0%}\n{other} {1 - fraction:.0%}")
    data_module.close()
    figure = run_figures.mixed(torch.cat(before).numpy(), torch.cat(after).numpy(), captions, EACH_STEP)
    write_bytes(out, png(figure))
    return len(captions)
