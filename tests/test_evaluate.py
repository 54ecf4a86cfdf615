"""Measures against hand counts; the evaluator's padding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastres import recipe
from fastres.augment import Augment
from fastres.data.loaders import ResidentLoader, on_device
from fastres.evaluate import Evaluator, measure
from fastres.models import build


def test_measures_by_hand() -> None:
    # Probabilities 3/4 and 1/4, three images, two of them right.
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)], [math.log(3), 0.0]])
    found = measure(logits, torch.tensor([0, 1, 1]))
    # Computed in fp64 from fp32 logits: 1e-7 is their rounding.
    assert found.loss == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3, rel=1e-6)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.confusion == [[1, 0], [1, 1]]
    assert found.class_accuracy == [1.0, 0.5]
    # All confidences are 0.75 and lie in one bin: |0.75 − 2/3|.
    assert found.expected_calibration_error == pytest.approx(0.75 - 2 / 3, rel=1e-5)
    assert found.images == 3


def test_a_class_without_images_has_no_accuracy() -> None:
    assert measure(torch.eye(3)[:2], torch.tensor([0, 1])).class_accuracy == [1.0, 1.0, None]


@given(st.integers(1, 200), st.integers(2, 12), st.integers(0, 2**31))
def test_measures_of_anything_are_consistent(images: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator) * 5
    labels = torch.randint(0, classes, (images,), generator=generator)
    found = measure(logits, labels)
    confusion = np.array(found.confusion)
    assert confusion.sum() == images
    assert found.accuracy == pytest.approx(np.trace(confusion) / images)
    assert np.array_equal(confusion.sum(axis=1), np.bincount(labels, minlength=classes))
    # Another formulation: per bin, |sum of confidence − number right| / images.
    probabilities = logits.double().softmax(1)
    confidence, predicted = probabilities.max(1)
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        expected += abs((confidence[inside] - (predicted == labels)[inside].double()).sum().item()) / images
    # A confidence on the very edge of a bin may fall to either side by rounding; random draws do not meet one.
    assert found.expected_calibration_error == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
def test_the_filled_up_batch_changes_nothing(count: int) -> None:
    torch.manual_seed(0)
    network = build(recipe.Model(blocks=[1], channels=[4], strides=[1], kernels=[3], skip_kernels=[1]), 3, 8)
    augment = Augment(recipe.Augment(), (0.5,) * 3, (0.2,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    loader = ResidentLoader(on_device(images), np.zeros(count, np.int64), np.arange(count), 8)
    found = Evaluator(network, augment, "fp32", torch.device("cpu"), compile=False).logits(loader)
    with torch.no_grad():
        expected = network.eval()(augment.plain(torch.from_numpy(images)))
    assert found.shape == (count, 3)
    # Other batch sizes may sum in another order: fp32 rounding of values near 1.
    assert torch.allclose(found, expected, atol=1e-5)
