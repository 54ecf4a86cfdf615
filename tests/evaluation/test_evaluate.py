"""Measures against hand counts; the evaluator's padding; test-time augmentation against means by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fastres import recipe
from fastres.augment import Augment
from fastres.data.loaders import ResidentLoader, on_device
from fastres.evaluation.evaluator import SHIFTED, Evaluator, view
from fastres.evaluation.metrics import measure, passes
from fastres.models import build

EAGER = recipe.TrainConfig(precision="fp32", compile=False)


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
    network = build(recipe.ModelConfig(blocks=[1], channels=[4], strides=[1], kernels=[3], skip_kernels=[1]), 3, 8)
    augment = Augment(recipe.AugmentConfig(), (0.5,) * 3, (0.2,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    loader = ResidentLoader(on_device(images), np.zeros(count, np.int64), np.arange(count), 8)
    found = Evaluator(network, augment, EAGER, torch.device("cpu")).logits(loader)
    with torch.no_grad():
        expected = network.eval()(augment.normalize(torch.from_numpy(images)))
    assert found.shape == (count, 3)
    # Other batch sizes may sum in another order: fp32 rounding of values near 1.
    assert torch.allclose(found, expected, atol=1e-5)


class Dot(nn.Module):
    """Logits that are linear in the image, so that hand-made views can be put through it."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(3 * size * size, classes, generator=generator))
        self.seen: list[tuple[torch.Size, tuple[int, ...]]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x.shape, x.stride()))
        return x.flatten(1) @ self.weight


def by_hand(images: np.ndarray, network: Dot) -> dict[str, np.ndarray]:
    """Plain, mirrored and translated means in fp64 by NumPy: [N, H, W, 3] in, logits out."""
    weight = network.weight.detach().double().numpy()

    def logits(seen: np.ndarray) -> np.ndarray:
        return seen.transpose(0, 3, 1, 2).reshape(len(seen), -1) @ weight

    def mirror(seen: np.ndarray) -> np.ndarray:
        return (logits(seen) + logits(seen[:, :, ::-1])) / 2

    size = images.shape[1]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    corners = [padded[:, :size, :size], padded[:, 2:, 2:]]
    translated = mirror(images) / 2 + (mirror(corners[0]) + mirror(corners[1])) / 4
    return {"none": logits(images), "mirror": mirror(images), "translate": translated}


def evaluate_views(tta: str, count: int = 21, share: float = 0.3, **options: Any) -> tuple[Tensor, Dot, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    network = Dot(6, 5)
    augment = Augment(recipe.AugmentConfig(), (0.5,) * 3, (0.25,) * 3, **options)
    loader = ResidentLoader(on_device(pixels), np.zeros(count, np.int64), np.arange(count), 8)
    table = recipe.EvalConfig(tta=tta, tta_share=share)  # type: ignore[arg-type]
    found = Evaluator(network, augment, EAGER, torch.device("cpu")).logits(loader, table)
    return found, network, (pixels / 255 - 0.5) / 0.25


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("count", [1, 8, 21])
@pytest.mark.parametrize("tta", ["none", "mirror", "translate"])
def test_views_against_means_by_hand(tta: str, count: int, channels_last: bool) -> None:
    found, network, images = evaluate_views(tta, count, channels_last=channels_last)
    # fp32 sums of 108 products of values up to 2 and 3.
    assert np.allclose(found.numpy(), by_hand(images, network)[tta], atol=1e-4)
    assert len({shape for shape, _ in network.seen}) == 1, "one shape"
    assert count == 1 or len(set(network.seen)) == 1, "and one layout: one graph"
    assert len(network.seen) == -(-count // 8) * passes(recipe.EvalConfig(tta=tta))  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
def test_selective_shifts_the_least_sure_only(share: float) -> None:
    found, network, images = evaluate_views("selective", share=share)
    expected = by_hand(images, network)
    odds = np.exp(expected["mirror"] - expected["mirror"].max(1, keepdims=True))
    order = np.argsort((odds / odds.sum(1, keepdims=True)).max(1))
    chosen = np.isin(np.arange(21), order[: math.ceil(21 * share)])
    mixed = np.where(chosen[:, None], expected["translate"], expected["mirror"])
    # As above.
    assert np.allclose(found.numpy(), mixed, atol=1e-4)
    assert len(set(network.seen)) == 1, "one shape, one layout"
    assert len(network.seen) == 3 * 2 + -(-math.ceil(21 * share) // 8) * 4


@pytest.mark.parametrize("count", [1, 8, 21])
def test_selective_of_all_is_translate_to_the_bit(count: int) -> None:
    assert torch.equal(evaluate_views("selective", count, share=1.0)[0], evaluate_views("translate", count)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_views_move_pixels_and_nothing_else(dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, 5, 7).to(dtype).contiguous(memory_format=torch.channels_last)
    for shift, mirrored in SHIFTED:
        seen = view(images, (shift, mirrored))
        assert seen.stride() == images.stride()
        back = seen.flip(3) if mirrored else seen
        inner = images[:, :, :-1, :-1] if shift > 0 else images[:, :, 1:, 1:]
        assert torch.equal(back[:, :, 1:, 1:] if shift > 0 else back[:, :, :-1, :-1], inner)
        # The uncovered row shows the second row from that edge, mirrored at the edge row.
        row, source = (0, 1) if shift > 0 else (-1, -2)
        assert torch.equal(back[:, :, row, 1:-1], images[:, :, source, :-2] if shift > 0 else images[:, :, source, 2:])
    assert view(images, (0, False)) is images


def test_views_compile_nothing_more() -> None:
    torch.manual_seed(0)
    network = build(recipe.SpeednetConfig(widths=[4]), 3, 8)
    augment = Augment(recipe.AugmentConfig(), (0.5,) * 3, (0.2,) * 3, dtype=torch.bfloat16)
    images = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 3), dtype=np.uint8)
    loader = ResidentLoader(on_device(images), np.zeros(21, np.int64), np.arange(21), 8)
    evaluator = Evaluator(network, augment, recipe.TrainConfig(), torch.device("cpu"))
    plain = evaluator.logits(loader)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = {tta: evaluator.logits(loader, recipe.EvalConfig(tta=tta)) for tta in ("none", "translate", "selective")}  # type: ignore[arg-type]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert evaluator.compiled.active, evaluator.compiled.fallback_reason
    assert torch.equal(found["none"], plain)
    assert torch.equal(evaluator.logits(loader, recipe.EvalConfig(tta="selective", tta_share=1.0)), found["translate"])
