"""DINO and EMP-SSL: losses against references, views, what learns from what, exact resume, the probe, wrong input."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres import train
from fastres.errors import Interrupted, UserError
from fastres.evaluation.predict import evaluate
from fastres.experiments.speedrun.run import speedrun
from fastres.models import build
from fastres.optim import Ema
from fastres.recipe import DinoConfig, EmpSslConfig, Recipe
from fastres.runs import checkpoint
from fastres.training.data import DataModule, open_data_module
from fastres.training.epoch import Runner
from fastres.training.methods.dino import DinoNetwork, cross_entropies
from fastres.training.methods.emp_ssl import EmpSslNetwork, coding_rate
from fastres.training.methods.probe import linear_probe, nearest_neighbours
from fastres.training.methods.registry import method_of
from fastres.training.metrics import EpochMetrics, StallMeter
from fastres.training.run import resume
from fastres.training.step import Step

CPU = torch.device("cpu")
COMMON: dict[str, Any] = {
    "data": {"train_images": 64, "test_images": 40, "split": "none"},
    "model": {"blocks": [1, 1], "channels": [4, 8], "strides": [2, 2]},
    "augment": {"translate": 0, "random_resized_crop": {"scale": [0.3, 1.0]}},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "train": {"epochs": 2.0, "batch_size": 16, "compile": False, "precision": "fp32"},
    "record": {"report": False},
}
METHODS: dict[str, dict[str, Any]] = {
    "dino": {"name": "dino", "hidden": 16, "bottleneck": 8, "prototypes": 12, "local_views": 3},
    "emp_ssl": {"name": "emp_ssl", "hidden": 16, "dimension": 8, "patches": 4, "patch_size": 16},
}


def recipe(kind: str, **tables: Any) -> Recipe:
    given = {**tables, "method": {**METHODS[kind], **tables.get("method", {})}}
    return Recipe.model_validate(
        {name: {**COMMON.get(name, {}), **given.get(name, {})} for name in {**COMMON, **given}}
    )


def opened(options: Recipe) -> DataModule:
    return open_data_module(options, CPU, quiet=True, make_views=method_of(options.method).views)


def network(options: Recipe) -> DinoNetwork | EmpSslNetwork:
    torch.manual_seed(0)
    backbone = build(options.model, 10, 32)
    if isinstance(options.method, DinoConfig):
        return DinoNetwork(backbone, options.method, 32)
    assert isinstance(options.method, EmpSslConfig)
    return EmpSslNetwork(backbone, options.method, 32)


# ------------------------------------------------------------------------------------------------------------- losses


def test_dinos_loss_pair_by_pair() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, 7, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    centre = torch.randn(7, dtype=torch.float64)
    pairs = []
    for told in range(2):
        for seen in range(5):
            if told != seen:
                wanted = ((teacher[told] - centre) / 0.05).softmax(1)
                pairs.append(-(wanted * (student[seen] / 0.2).log_softmax(1)).sum(1).mean())
    # The same sums in fp64, in another order.
    torch.testing.assert_close(cross_entropies(student, teacher, centre, 0.2, 0.05), torch.stack(pairs).mean())


def test_the_centre_follows_the_teachers_outputs() -> None:
    """And the teacher's outputs are those of the average, in evaluation mode."""
    options = recipe("dino")
    student = network(options)
    assert isinstance(student, DinoNetwork)
    average = Ema(student, 0.9).network
    assert isinstance(average, DinoNetwork)
    with torch.no_grad():
        for weight in average.parameters():
            weight.mul_(1.5)
    torch.manual_seed(1)
    views = torch.randn(5 * 6, 3, 32, 32)
    student.centre.fill_(0.5)
    told = average.projection(average.features(views[:12])).mean(0)
    student.train().compare(views, 6, average)
    torch.testing.assert_close(student.centre, 0.9 * torch.full_like(told, 0.5) + 0.1 * told)


def test_the_teachers_momentum_is_half_a_cosine() -> None:
    average = Ema(nn.Linear(1, 1), 0.96, cosine_steps=100)
    # 1 − 0.04·(1 + cos(π·t/100))/2 by hand: all of it at the start, half of it in the middle, nothing after the last.
    for step, share in ((0, 0.04), (50, 0.02), (75, 0.02 * (1 - math.sqrt(0.5))), (100, 0.0)):
        assert average.fraction(step) == pytest.approx(share, abs=1e-12)


def test_the_coding_rate_of_orthogonal_points_by_hand() -> None:
    # Z·Zᵀ has B eigenvalues of 1: ½·B·log(1 + d/(B·ε²)).
    points = torch.eye(6, dtype=torch.float64)[None, :4]
    assert coding_rate(points, 0.2).item() == pytest.approx(0.5 * 4 * math.log(1 + 6 / (4 * 0.2)))
    # Four equal points: one eigenvalue of 4.
    same = points[:, :1].expand(1, 4, 6)
    assert coding_rate(same, 0.2).item() == pytest.approx(0.5 * math.log(1 + 4 * 6 / (4 * 0.2)))


@pytest.mark.parametrize(("count", "dimension"), [(3, 9), (9, 3), (5, 5)])
def test_the_coding_rate_against_its_definition_in_fp64(count: int, dimension: int) -> None:
    torch.manual_seed(0)
    points = F.normalize(torch.randn(2, count, dimension), dim=2)
    exact = points.double()
    spread = torch.eye(dimension, dtype=torch.float64) + dimension / (count * 0.3) * exact.mT @ exact
    # A factorisation of a matrix of at most 9 rows and condition 30 loses a few of fp32's roundings of 6e-8.
    torch.testing.assert_close(coding_rate(points, 0.3).double(), 0.5 * torch.logdet(spread), rtol=2e-6, atol=0)


def test_emp_ssls_loss_in_fp64_by_its_definition() -> None:
    options = recipe("emp_ssl")
    torch.manual_seed(1)
    views = torch.randn(4 * 6, 3, 32, 32, dtype=torch.float64)
    _, loss = network(options).train().compare(views.float(), 6, None)
    module = network(options).double().train()
    with torch.no_grad():
        pooled = views.view(24, 3, 16, 2, 16, 2).mean((3, 5))
        points = F.normalize(module.projection(module.features(pooled)), dim=1).view(4, 6, 8)
        mean = points.mean(0)
        agreement = sum(F.cosine_similarity(points[view], mean, dim=1).mean() for view in range(4)) / 4
        rates = [
            torch.logdet(torch.eye(8, dtype=torch.float64) + 8 / (6 * 0.2) * points[view].T @ points[view]) / 2
            for view in range(4)
        ]
    # 200·(1 − cos) is about 40, and carries 200 times the cosine's fp32 error of some 1e-6.
    assert loss.item() == pytest.approx((200 * (1 - agreement) - sum(rates) / 4).item(), abs=1e-3)


# -------------------------------------------------------------------------------------------------- views and learning


def test_a_view_is_what_another_image_index_would_draw() -> None:
    options = recipe("dino")
    data_module = opened(options)
    assert data_module.views is not None
    source, rows = data_module.train.source, torch.tensor([7, 3])  # type: ignore[attr-defined]
    views = data_module.augment_batch(source, rows, 1, rows).view(5, 2, 3, 32, 32)
    alone = data_module.augment_batch(source, rows[1:], 1, rows[1:]).view(5, 1, 3, 32, 32)
    assert torch.equal(views[:, 1:], alone), "whatever the batch"
    assert torch.equal(views[0], data_module.augment.augment(source, rows, 1, rows))
    assert torch.equal(views[1], data_module.augment.augment(source, rows + 64, 1, rows))
    assert all(not torch.equal(views[one], views[two]) for one in range(5) for two in range(one))
    local = options.augment.model_copy(update={"random_resized_crop": DinoConfig().local_crop})
    assert torch.equal(views[4], data_module.augment.with_policy(local).augment(source, rows + 4 * 64, 1, rows))


@pytest.mark.parametrize("method", METHODS)
def test_labels_teach_the_classifier_alone(method: str) -> None:
    options = recipe(method)
    module = network(options).train()
    data_module = opened(options)
    rows = torch.arange(8)
    views = data_module.augment_batch(data_module.train.source, rows, 0, rows)  # type: ignore[attr-defined]
    logits, loss = module.compare(views, 8, Ema(module, 0.9).network)
    assert logits.shape == (8, 10)
    logits.square().sum().backward(retain_graph=True)
    assert [name for name, weight in module.named_parameters() if weight.grad is not None] == [
        "backbone.fc.weight",
        "backbone.fc.bias",
    ]
    module.zero_grad()
    loss.backward()
    without = [name for name, weight in module.named_parameters() if weight.grad is None]
    assert without == ["backbone.fc.weight", "backbone.fc.bias"]


@pytest.mark.parametrize("method", METHODS)
def test_on_the_device_as_on_the_host(method: str) -> None:
    """The runner's two ways make the same steps: what a GPU replays is what a CPU does."""
    ends = []
    for on_device in (False, True):
        options = recipe(method)
        data_module = opened(options)
        step = Step(network(options), options, len(data_module.train), CPU)
        epoch_metrics = EpochMetrics(CPU)
        runner = Runner(step, data_module, epoch_metrics, StallMeter(CPU), on_device=on_device)
        for epoch in range(2):
            list(runner.epoch(epoch, 0, len(data_module.train)))
        ends.append([epoch_metrics.sums, *step.averaged.state_dict().values()])
    for one, other in zip(*ends, strict=True):
        # Rates are fp32 on the device and fp64 on the host: 6e-8 of each update, over 8 steps.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_exact_resume_and_what_a_run_leaves(method: str, tmp_path: Path) -> None:
    whole = train(recipe(method), out=tmp_path / "whole", device="cpu", quiet=True)

    def stop(rows: list[dict[str, Any]]) -> None:
        raise Interrupted("here")

    with pytest.raises(Interrupted):
        train(recipe(method), out=tmp_path / "halves", device="cpu", quiet=True, on_epoch=stop)
    halves = resume(tmp_path / "halves", device="cpu", quiet=True)
    weights, _ = checkpoint.load_weights(whole.run / checkpoint.FINAL)
    again, _ = checkpoint.load_weights(halves.run / checkpoint.FINAL)
    assert weights.keys() == build(recipe(method).model, 10, 32).state_dict().keys(), "the backbone alone is kept"
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert whole.summary["knn_accuracy"] == halves.summary["knn_accuracy"]
    assert whole.summary["parameters"] == sum(
        weight.numel() for weight in build(recipe(method).model, 10, 32).parameters()
    )
    assert evaluate(whole.run)[1].accuracy == whole.test_accuracy, "the probe is part of what is kept"
    tuned = recipe(method).model_dump(exclude_none=True)
    tuned["method"], tuned["transfer"] = {"name": "supervised"}, {"weights": str(whole.run)}
    fine = train(Recipe.model_validate(tuned), out=tmp_path / "fine", device="cpu", quiet=True)
    assert fine.summary["steps"] == 8


# -------------------------------------------------------------------------------------------------------------- probe


def clusters(count: int) -> tuple[Tensor, Tensor]:
    """Features [count, 6] around three centres, of very different scales, and their classes."""
    torch.manual_seed(count)
    labels = torch.arange(count) % 3
    points = torch.randn(count, 6) + 1.5 * torch.eye(3, 6)[labels]
    return points * torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0, 1.0]) + 7, labels


@pytest.mark.parametrize("biased", [True, False])
def test_the_probe_is_at_the_minimum(biased: bool) -> None:
    features, labels = clusters(300)
    weight, bias, decay = linear_probe(features, labels, 3, biased=biased)
    assert (bias is not None) == biased
    exact = features.double()
    mean = exact.mean(0) if biased else torch.zeros(6, dtype=torch.float64)
    spread = (exact - mean).square().mean(0).sqrt()
    scaled = (weight.double() * spread).requires_grad_()
    moved = None if bias is None else (bias.double() + weight.double() @ mean).requires_grad_()
    loss = F.cross_entropy(F.linear((exact - mean) / spread, scaled, moved), labels) + decay / 2 * scaled.square().sum()
    loss.backward()
    # L-BFGS stops at a largest gradient of 1e-5, or where fp32 sees no further decrease: a loss of about 0.5 has
    # steps of 3e-8 there, and a gradient g of a loss with curvature 0.1 means g²/0.2 less: g = 1e-4.
    assert scaled.grad is not None and scaled.grad.abs().max() < 3e-4


def test_neighbours_vote_by_their_cosine() -> None:
    (features, labels), (tested, _) = clusters(90), clusters(31)
    votes = nearest_neighbours(features, labels, tested, 4, 3)
    for row in range(len(tested)):
        near = F.cosine_similarity(tested[row : row + 1].double(), features.double())
        wanted = torch.zeros(3, dtype=torch.float64)
        for index in near.argsort(descending=True)[:4]:
            wanted[labels[index]] += math.exp(near[index].item() / 0.07)
        # A cosine's rounding of 1e-7 becomes 1e-7/0.07 of a vote, a few times over.
        torch.testing.assert_close(votes[row].double(), wanted, rtol=1e-4, atol=0)
    assert nearest_neighbours(features, labels, tested, 500, 3).sum() > 0, "all of fewer than there should be"


# -------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("method", "tables", "said"),
    [
        ("dino", {"mix": {"mixup_alpha": 1.0}}, "leave the mix table out"),
        ("emp_ssl", {"mix": {"cutmix_alpha": 1.0}}, "leave the mix table out"),
        ("dino", {"train": {"ema": 0.9}}, "no train.ema"),
        ("dino", {"train": {"lookahead": {}}}, "no train.ema or train.lookahead"),
    ],
)
def test_options_that_a_method_has_no_use_for(method: str, tables: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(method, **tables)


@pytest.mark.parametrize(
    ("method", "tables", "said"),
    [
        ("dino", {"method": {"local_size": 12}}, r"method.local_size = 12 does not divide the images' 32 pixels"),
        ("emp_ssl", {"method": {"patch_size": 64}}, r"method.patch_size = 64 does not divide"),
        ("dino", {"model": {"pool": 4}}, r"method.local_size = 16: this network has other features"),
        ("dino", {"model": {"pool": 8}, "method": {"local_size": 4}}, r"set it to 32"),
    ],
)
def test_views_that_do_not_fit(method: str, tables: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        train(recipe(method, **tables), out=tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_speedrun_is_supervised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learns features"):
        speedrun(recipe("dino"), 2, out=tmp_path / "runs")
