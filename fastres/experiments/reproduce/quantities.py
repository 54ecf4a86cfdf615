"""Measured quantities of the claims: each function takes what is known of a claim's recipes with one seed, in the order
of the claim's needs, and gives a number, or None where it cannot be had."""

import operator
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

from fastres.experiments.reproduce.verdicts import Measure, Measured

Runs = Sequence[Measured]
EPOCH_IMAGES = 40_000
"""Images of an epoch of the report: 80% of CIFAR-10's training images."""


def parameters(runs: Runs) -> float:
    """Trainable parameters."""
    return runs[0].parameters


def leaked(runs: Runs) -> float | None:
    """Share of the validation images that are trained on."""
    return runs[0].leaked


def accuracy(index: int = 0) -> Measure:
    """Test accuracy of the recipe at `index`."""
    return lambda runs: runs[index].summary.test_accuracy


def corrupted(index: int = 0) -> Measure:
    """Mean accuracy on the corrupted test sets of the recipe at `index`."""
    return lambda runs: runs[index].corrupted_accuracy


def difference(one: Measure, other: Measure) -> Measure:
    """`one` minus `other`."""
    return _both(one, other, operator.sub)


def ratio(one: Measure, other: Measure) -> Measure:
    """`one` divided by `other`; None where one of them is not positive."""
    return _both(one, other, lambda first, second: first / second if first > 0 and second > 0 else None)


def larger(one: Measure, other: Measure) -> Measure:
    """The larger one of two."""
    return _both(one, other, max)


def _both(one: Measure, other: Measure, combine: Callable[[float, float], float | None]) -> Measure:
    def measure(runs: Runs) -> float | None:
        first, second = one(runs), other(runs)
        return None if first is None or second is None else combine(first, second)

    return measure


def last_training_loss(index: int = 0) -> Measure:
    """Training loss of the last epoch."""
    return lambda runs: _positive(_losses(runs[index], "train"))


def last_validation_loss(index: int = 0) -> Measure:
    """Validation loss after the last epoch."""
    return lambda runs: _positive(_losses(runs[index], "val"))


def _losses(run: Measured, part: str) -> list[float | None]:
    return [epoch[f"{part}_loss"] for epoch in run.epochs]


def _positive(losses: Sequence[float | None]) -> float | None:
    last = losses[-1] if losses else None
    return last if last is not None and last > 0 else None


def restlessness(losses: Sequence[float | None]) -> float | None:
    """Measure of a curve's unrest: SD of its changes from epoch to epoch over the second half of the epochs, where
    the first fall is over; None with fewer than two changes."""
    half = losses[len(losses) // 2 :]
    known = [value for value in half if value is not None]
    if len(known) < max(3, len(half)):
        return None
    return statistics.stdev(after - before for before, after in pairwise(known))


def validation_restlessness(index: int) -> Measure:
    """`restlessness` of the validation loss."""
    return lambda runs: restlessness(_losses(runs[index], "val"))


def epochs_until(losses: Sequence[float | None], target: float) -> float | None:
    """Epochs until the loss is at most `target`, straight lines between the ends of epochs; None if it never is."""
    before: float | None = None
    for epoch, loss in enumerate(losses, 1):
        if loss is not None and loss <= target:
            return float(epoch) if before is None else epoch - 1 + (before - target) / (before - loss)
        before = loss
    return None


def faster(runs: Runs) -> float | None:
    """How many times faster than the first recipe the second one reaches the training loss that the first has after
    half of its epochs. Where the second never does, it counts as if it did in its last epoch: the truth is lower."""
    first, second = (_losses(run, "train") for run in runs[:2])
    target = first[(len(first) + 1) // 2 - 1] if first else None
    if target is None or not second or None in second:
        return None
    own = epochs_until(first, target)
    return None if own is None else own / (epochs_until(second, target) or len(second))


def gain_of_pseudo_labels(runs: Runs) -> float | None:
    """Test accuracy of the last round minus that of the first, which has no pseudo-labels."""
    return difference(round_accuracy(-1), round_accuracy(0))(runs)


def round_accuracy(index: int) -> Measure:
    """Test accuracy of a round."""
    return lambda runs: runs[0].summary.rounds[index].test_accuracy if len(runs[0].summary.rounds) > 1 else None


def epoch_seconds(index: int = 0) -> Measure:
    """Seconds of an epoch of the report at the measured rate."""
    return lambda runs: EPOCH_IMAGES / speed if (speed := runs[index].summary.images_per_second) else None
