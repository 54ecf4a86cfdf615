"""The report page of a run, and its augmented images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres.recipe import Recipe
from fastres.training.data import Feed, labels_of, open_feed
from fastres.utils.files import check_writable, write_bytes

SHOWN = 40
"""Training images that the page shows."""
STEPS_SHOWN, EACH_STEP = 4, 8
"""Batches that the figure of the augmentation shows, and images of each: a batch is mixed in one way."""


def draw_page(
    run: Path,
    recipe: Recipe,
    feed: Feed,
    rows: list[dict[str, Any]],
    summary: dict[str, Any],
    environment: dict[str, Any],
    probabilities: Tensor,
) -> Path:
    """Draw the figures and write report.html; `probabilities` [N, classes] are those of the test images."""
    from fastres.report.run_page import Exhibits, write_report

    shown = feed.train.subset[:SHOWN]
    samples = np.array(feed.train_images[shown])
    images, indices = (torch.from_numpy(array).to(feed.train.device) for array in (samples, shown))
    augmented = feed.augment.restore(feed.augment.unmixed(images, indices, 0))
    exhibits = Exhibits(
        classes=feed.dataset.classes,
        train_labels=feed.train_labels[feed.train.subset],
        val_labels=None if feed.validation is None else feed.train_labels[feed.validation.subset],
        samples=samples,
        sample_labels=feed.train_labels[shown],
        augmented=augmented.numpy(),
        test_images=feed.test_images,
        test_labels=labels_of(feed.test).numpy(),
        test_probabilities=probabilities.numpy(),
    )
    return write_report(run, recipe=recipe, rows=rows, summary=summary, environment=environment, exhibits=exhibits)


def draw_augmented(recipe: Recipe, out: Path) -> int:
    """Write a PNG of training images above what the network gets of them, as the first steps of the first epoch mix
    them; returns how many images it shows. Raises UserError where data or policy cannot be used, or `out` not written.
    """
    from fastres.report import run_figures
    from fastres.report.style import png, short

    check_writable(out)
    feed = open_feed(recipe, torch.device("cpu"))
    names = feed.dataset.classes
    before, after, captions = [], [], []
    for step, batch in zip(range(STEPS_SHOWN), feed.train.batches(0), strict=False):
        mixed = feed.augment(batch.source, batch.labels, batch.indices, 0, step, batch.rows)
        share = float(mixed.weight)
        before.append(batch.source[batch.rows[:EACH_STEP]])
        after.append(feed.augment.restore(mixed.images[:EACH_STEP]))
        labels, partners = (feed.classes_of(each[:EACH_STEP]).tolist() for each in (mixed.labels, mixed.partners))
        for label, partner in zip(labels, partners, strict=True):
            own, other = short(names[label], 10), short(names[partner], 10)
            captions.append(f"{own}\n" if share == 1 else f"{own} {share:.0%}\n{other} {1 - share:.0%}")
    feed.close()
    figure = run_figures.mixed(torch.cat(before).numpy(), torch.cat(after).numpy(), captions, EACH_STEP)
    write_bytes(out, png(figure))
    return len(captions)
