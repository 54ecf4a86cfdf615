"""The end of a run: its summary and its page."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastres.evaluate import Measures
from fastres.feed import Feed, labels_of
from fastres.position import Position
from fastres.recipe import Recipe

SHOWN = 40
"""Training images that the page shows."""


def summarise(recipe: Recipe, at: Position, measured: Measures, *, steps: int) -> dict[str, Any]:
    """The lines of summary.json that recipe, position and test give: accuracies are shares, times are seconds."""
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
        "epochs": at.epoch,
        "steps": steps,
        "images_per_second": at.images / at.images_seconds if at.images else None,
        "cold_seconds": at.cold_seconds,
    }


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
    rows_shown = torch.from_numpy(shown).to(feed.train.device)
    augmented = feed.augment.restore(feed.augment.unmixed(feed.train.source, rows_shown, 0, rows_shown))
    exhibits = Exhibits(
        classes=feed.dataset.classes,
        train_labels=feed.train_labels[feed.train.subset],
        val_labels=None if feed.validation is None else feed.train_labels[feed.validation.subset],
        samples=feed.train_images[shown],
        sample_labels=feed.train_labels[shown],
        augmented=augmented.numpy(),
        test_images=feed.test.source.cpu().numpy(),
        test_labels=labels_of(feed.test).numpy(),
        test_probabilities=probabilities.numpy(),
    )
    return write_report(run, recipe=recipe, rows=rows, summary=summary, environment=environment, exhibits=exhibits)


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held, in bytes: of the GPU on CUDA, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
