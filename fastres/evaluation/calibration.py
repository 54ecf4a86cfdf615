"""Calibration: one temperature that makes probabilities of logits (Guo et al. 2017, "On Calibration of Modern Neural
Networks", section 4.2).

softmax(z/T) names the same classes as softmax(z), so that no accuracy changes. T is that of greatest likelihood on
validation images, which the network must not have been trained on.
"""

import math

import torch
from torch import Tensor

from fastres.runs.schema import Calibration

WIDEST = 1000.0
"""No temperature is greater than this, or less than its reciprocal: beyond, it says nothing but "infinite" or "0"."""
HALVINGS = 60
"""Of the interval of log 1/T, 14 long: the rest is below fp64's rounding."""


def calibrate(logits: Tensor | None, labels: Tensor | None, split: str) -> Calibration:
    """The calibration by validation images with float logits [N, classes] and int64 labels [N], None where there are no
    such images; `split` is `data.split`, by which most of them may have been trained on. Computes in fp64."""
    if logits is None or labels is None:
        return Calibration(reason=f"there are no validation images (data.split = '{split}')")
    if split == "report":
        return Calibration(reason="most validation images were trained on (data.split = 'report')")
    temperature = fit_temperature(logits, labels)
    if temperature is not None:
        return Calibration(temperature=temperature, images=len(labels))
    count = f"{len(labels):,} validation images"
    if bool((logits.argmax(1) == labels).all()):
        return Calibration(reason=f"all {count} are right, which fits every temperature towards 0")
    return Calibration(reason=f"no temperature fits {count} best")


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The T that gives labels int64 [N] the greatest likelihood under softmax(logits / T), logits [N, classes]; None
    where there is none: the likelihood grows to T = 0 where all answers are right, and to infinity where they are no
    better than chance.

    The mean loss is convex in β = 1/T, with the derivative E[z] − z_label under softmax(βz), whose zero is found by
    halving an interval.
    """
    logits = logits.double().cpu()
    own = logits.gather(1, labels.cpu()[:, None]).squeeze(1)

    def slope(beta: float) -> float:
        return ((logits * (logits * beta).softmax(1)).sum(1) - own).mean().item()

    low, high = -math.log(WIDEST), math.log(WIDEST)
    if not slope(math.exp(low)) < 0 < slope(math.exp(high)):
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def probabilities(logits: Tensor, calibration: Calibration | None) -> Tensor:
    """float32 [N, classes] of logits [N, classes], calibrated where there is a temperature."""
    temperature = None if calibration is None else calibration.temperature
    return (logits.double() / (temperature or 1.0)).softmax(1).to(torch.float32)


def describe(calibration: Calibration | None) -> str:
    """The calibration in a clause about the probabilities."""
    if calibration is None:
        return "uncalibrated: the run is of a version of fastres that fitted no temperature"
    if calibration.temperature is None:
        return f"uncalibrated: {calibration.reason}"
    return (
        f"calibrated by temperature {calibration.temperature:.3g}, fitted on {calibration.images:,} validation images"
    )
