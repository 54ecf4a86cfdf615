"""The end of a run: its summary and its page."""

from typing import Any

import torch

from fastres.evaluation.metrics import Measures
from fastres.recipe import Recipe
from fastres.training.state import TrainState


def summarise(recipe: Recipe, at: TrainState, measured: Measures, steps: int, steps_per_epoch: int) -> dict[str, Any]:
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


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held, in bytes: of the GPU on CUDA, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
