"""The end of a run: its summary and its page."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres.evaluate import Measures
from fastres.feed import Feed, labels_of, open_feed
from fastres.position import Position
from fastres.recipe import Recipe
from fastres.utils.files import check_writable, write_bytes

SHOWN = 40
"""Training images that the page shows."""

STEPS_SHOWN, EACH_STEP = 4, 8
"""Batches that the figure of the augmentation shows, and images of each: a batch is mixed in one way."""


def summarise(recipe: Recipe, at: Position, measured: Measures, steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """The lines of summary.json that recipe, position and test give: accuracies are shares, times are seconds.

    `epochs` is a whole number, except where the last epoch ended in its middle. `cold_seconds` and `warm_seconds` are
    the time from the start (of the command, else of the call of `train`) to the end of the first step: cold where the
    step had to be compiled, warm where an earlier run had kept it compiled, which makes it null in the run that
    compiled. A warm run's cold figure is that of the run that compiled its step, null if that one never told."""
    whole = steps == at.epoch * steps_per_epoch
    return {
        "recipe_hash": recipe.hash(),
        "source": recipe.data.source,
        "split": recipe.data.split,
        "precision": recipe.train.precision,
        "test_accuracy": measured.accuracy,
        "test_loss": measured.loss,
        "test_images": measured.images,
        "expected_calibration_error": measured.expected_calibration_error,
        "best": at.best,
        "epochs": at.epoch if whole else steps / steps_per_epoch,
        "steps": steps,
        "images_per_second": at.images / at.images_seconds if at.images else None,
        "cold_seconds": at.cold_seconds or None,
        "warm_seconds": at.warm_seconds or None,
    }


def input_stall(rows: list[dict[str, Any]]) -> float | None:
    """Share of the time of all training steps in which the device waited for data, from the rows of metrics.jsonl."""
    measured = [(row["input_stall"] * row["seconds"], row["seconds"]) for row in rows if "input_stall" in row]
    return sum(waited for waited, _ in measured) / sum(seconds for _, seconds in measured) if measured else None


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
    from fastres.report import Exhibits, write_report

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
    from fastres import figures

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
            own, other = figures.short(names[label], 10), figures.short(names[partner], 10)
            captions.append(f"{own}\n" if share == 1 else f"{own} {share:.0%}\n{other} {1 - share:.0%}")
    feed.close()
    figure = figures.mixed(torch.cat(before).numpy(), torch.cat(after).numpy(), captions, EACH_STEP)
    write_bytes(out, figures.png(figure))
    return len(captions)


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held, in bytes: of the GPU on CUDA, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
