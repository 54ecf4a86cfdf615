"""Measures of predictions, in fp64."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastres.recipe import EvalConfig


def passes(options: EvalConfig) -> float:
    """Number of images that the network evaluates to classify one: the cost of `options.tta`."""
    return {"none": 1, "mirror": 2, "translate": 6, "selective": 2 + 4 * options.tta_share}[options.tta]


@dataclass(frozen=True)
class Measures:
    """Metrics of predictions."""

    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    """Share of correct predictions."""
    class_accuracy: list[float | None]
    """The same for each class; None for a class without images."""
    confusion: list[list[int]]
    """confusion[true][predicted] counts images."""
    expected_calibration_error: float
    """Mean distance of confidence and accuracy over 15 equal bins of confidence (Guo et al. 2017, section 2)."""
    images: int
    """Number of images measured."""
    calibrated_loss: float | None = None
    """`loss` of the calibrated probabilities; None where they are not."""
    calibrated_error: float | None = None
    """`expected_calibration_error` of the same."""


def measure(logits: Tensor, labels: Tensor, temperature: float | None = None) -> Measures:
    """Measures of float logits [N, classes] against int64 labels [N], computed in fp64; `temperature` is that of the
    calibrated probabilities, if there is one."""
    logits = logits.double()
    classes = logits.shape[1]
    confidence, predicted = logits.softmax(1).max(1)
    correct = (predicted == labels).double()
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    counts, right = confusion.sum(1).tolist(), confusion.diag().tolist()
    calibrated = None if temperature is None else logits / temperature
    return Measures(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=correct.mean().item(),
        class_accuracy=[hits / count if count else None for hits, count in zip(right, counts, strict=True)],
        confusion=confusion.tolist(),
        expected_calibration_error=_calibration_error(confidence, correct),
        images=len(labels),
        calibrated_loss=None if calibrated is None else F.cross_entropy(calibrated, labels).item(),
        calibrated_error=None if calibrated is None else _calibration_error(calibrated.softmax(1).amax(1), correct),
    )


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Of float64 confidences [N] and what of them is right [N], 0 or 1."""
    # Bins are (i/15, (i+1)/15]; a confidence is never 0.
    bins = (confidence * 15).ceil().long().clamp(1, 15) - 1
    gaps = torch.zeros(15, dtype=torch.float64).index_add_(0, bins, confidence - correct)
    return (gaps.abs().sum() / len(correct)).item()
