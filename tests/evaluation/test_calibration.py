"""The temperature against closed forms, and as the maximum that it is."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from fastres.evaluation.calibration import calibrate, describe, fit_temperature, probabilities
from fastres.evaluation.metrics import measure
from fastres.runs.schema import Calibration

pytestmark = pytest.mark.usefixtures("one_thread")


@given(st.integers(2, 50), st.data(), st.floats(0.1, 20))
def test_two_classes_by_hand(images: int, data: st.DataObject, gap: float) -> None:
    """Each answer has odds of exp(gap/T); the likeliest are those of the right answers: T = gap / ln(k / (n − k))."""
    right = data.draw(st.integers(images // 2 + 1, max(images - 1, images // 2 + 1)))
    logits = torch.tensor([[gap, 0.0]]).expand(images, 2)
    labels = (torch.arange(images) >= right).long()
    found = fit_temperature(logits, labels)
    if right == images:
        assert found is None
    else:
        # The gap is a float32; the interval ends 14/2⁶⁰ wide, below fp64's rounding of the sums.
        assert found == pytest.approx(float(logits[0, 0]) / math.log(right / (images - right)), rel=1e-9)


@given(st.integers(5, 100), st.integers(2, 10), st.integers(0, 2**31))
def test_no_other_temperature_is_likelier(images: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(images, classes, generator=generator)).double()
    labels = (logits + 3 * torch.randn(images, classes, generator=generator)).argmax(1)
    found = fit_temperature(logits, labels)
    if found is None:
        own = logits.gather(1, labels[:, None]).squeeze(1)
        assert torch.equal(logits.amax(1), own) or own.mean() <= logits.mean() + 0.1
        return
    losses = [cross_entropy(logits / (found * factor), labels).item() for factor in (0.99, 1.0, 1.01)]
    assert losses[1] < min(losses[0], losses[2])
    # The temperature follows the logits' scale, to the last halving.
    assert fit_temperature(2 * logits, labels) == pytest.approx(2 * found, rel=1e-9)


def test_what_cannot_be_calibrated_says_why() -> None:
    logits, labels = torch.eye(3), torch.arange(3)
    for calibration, reason in (
        (calibrate(None, None, "none"), "there are no validation images (data.split = 'none')"),
        (calibrate(logits, labels, "report"), "most validation images were trained on (data.split = 'report')"),
        (calibrate(logits, labels, "holdout"), "all 3 validation images are right, which fits every temperature"),
        (calibrate(logits, labels.flip(0) * 0 + 1, "holdout"), "no temperature fits 3 validation images best"),
        (None, "the run is of a version of fastres that fitted no temperature"),
    ):
        assert f"uncalibrated: {reason}" in describe(calibration)
        assert torch.equal(probabilities(logits, calibration), logits.double().softmax(1).float())


def test_probabilities_and_measures_have_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(200, 4, generator=generator)
    labels = (logits + 5 * torch.randn(200, 4, generator=generator)).argmax(1)
    calibration = calibrate(logits, labels, "holdout")
    assert calibration.temperature is not None and calibration.images == 200
    assert f"temperature {calibration.temperature:.3g}, fitted on 200 validation images" in describe(calibration)
    hot = logits.double() / calibration.temperature
    assert torch.equal(probabilities(logits, calibration), hot.softmax(1).float())
    before, after = measure(logits, labels, calibration.temperature), measure(hot, labels)
    assert (before.calibrated_loss, before.calibrated_error) == (after.loss, after.expected_calibration_error)
    assert before.accuracy == after.accuracy and after.loss < before.loss
    assert measure(logits, labels).calibrated_error is None
    assert probabilities(logits, Calibration(temperature=1e-3)).isfinite().all()
