"""Pseudo-labelling: which images are taken, what a round trains on, whole runs, interruption, what cannot be."""

import json
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_distillation import recipe
from torch.nn import functional as F

from fastres import train
from fastres.data import open_dataset
from fastres.data.sources import shapes10
from fastres.data.store.extra import read, write
from fastres.errors import Interrupted, UserError
from fastres.evaluation.predict import evaluate
from fastres.evaluation.trained import TrainedModel
from fastres.models import build
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.training.data import open_data_module
from fastres.training.methods.pseudo_label import choose
from fastres.training.run import resume
from fastres.training.step import Step

CPU = torch.device("cpu")
COUNT = 300
ALL: dict[str, Any] = {"name": "pseudo_label", "threshold": 0.0, "balance": False}
"""As the report did it: no threshold, all predictions."""


def test_which_are_taken_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.05, 0.95], [0.5, 0.5]])
    assert choose(probabilities, 0.0, False).tolist() == [0, 1, 2, 3, 4, 5]
    assert choose(probabilities, 0.7, False).tolist() == [0, 1, 3, 4]
    assert choose(probabilities, 0.65, True).tolist() == [0, 4], "the surest of each, as there is one of class 0"
    assert choose(probabilities, 0.0, True).tolist() == [0, 1, 2, 3, 4, 5], "three of each; 0.5 counts as class 0"
    assert choose(probabilities, 0.94, True).tolist() == [4], "a class that is never predicted takes no part"
    assert choose(probabilities, 0.99, True).tolist() == []


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(2, 7), st.floats(0, 0.99), st.booleans())
def test_what_is_taken_is_sure_and_balanced(
    seed: int, count: int, classes: int, threshold: float, balance: bool
) -> None:
    probabilities = (3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)
    rows = choose(probabilities, threshold, balance)
    assert rows.tolist() == sorted(set(rows.tolist()))
    confidence, predicted = probabilities.max(1)
    sure = (confidence >= threshold).nonzero().squeeze(1)
    assert set(rows.tolist()) <= set(sure.tolist())
    if not balance:
        assert len(rows) == len(sure)
        return
    taken = torch.bincount(predicted[rows], minlength=classes)
    there = torch.bincount(predicted[sure], minlength=classes)
    smallest = int(there[there > 0].min()) if len(sure) else 0
    assert taken.tolist() == [smallest if number else 0 for number in there.tolist()]
    for label in range(classes):
        left = [row for row in sure.tolist() if predicted[row] == label and row not in rows]
        own = [row for row in rows.tolist() if predicted[row] == label]
        assert not left or not own or confidence[left].max() <= confidence[own].min()


@pytest.fixture(scope="module")
def method(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With a pickle of the challenge's form: flat rows of channels, and ids."""
    images, _ = shapes10.draw(COUNT, part="test")
    path = tmp_path_factory.mktemp("unlabelled") / "cifar_test_nolabels.pkl"
    rows = images.transpose(0, 3, 1, 2).reshape(COUNT, -1)
    path.write_bytes(pickle.dumps({b"data": rows, b"ids": np.arange(COUNT)}))
    return {**ALL, "unlabelled": str(path)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, method: dict[str, Any]) -> Path:
    """Two rounds."""
    out = tmp_path_factory.mktemp("pseudo") / "run"
    return train(recipe(method={**method, "rounds": 2}), out=out, device="cpu", quiet=True).run


def test_rounds_are_runs_with_more_images(run: Path, method: dict[str, Any]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert [row["added"] for row in summary["rounds"]] == [0, COUNT, COUNT]
    assert summary["test_accuracy"] == summary["rounds"][-1]["test_accuracy"]
    assert summary["seconds"] == pytest.approx(sum(row["seconds"] for row in summary["rounds"]))
    # Round 0 is the recipe without the method, to the bit.
    alone = train(recipe(), out=run.parent / "alone", device="cpu", quiet=True).run
    first = run / "rounds" / "0" / checkpoint.FINAL
    assert first.read_bytes() == (alone / checkpoint.FINAL).read_bytes()
    # Round 1 trains on what that network says of the unlabelled images.
    dataset = open_dataset(method["unlabelled"], quiet=True)
    assert dataset.unlabelled is not None
    probabilities = TrainedModel.load(run / "rounds" / "0", "cpu").logits(dataset.unlabelled.images).softmax(1)
    extra = read(run / "rounds" / "1.safetensors", dataset, 10)
    assert torch.equal(extra.probabilities, probabilities)
    data_module = open_data_module(Recipe.load(run / "rounds" / "1" / "recipe.toml"), CPU, quiet=True)
    assert len(data_module.train.subset) == 64 + COUNT
    assert np.array_equal(data_module.train_labels[64:], probabilities.argmax(1).numpy())
    assert np.array_equal(data_module.train_images[64:], dataset.unlabelled.images)
    # The whole is a run like others: it can be evaluated.
    assert evaluate(run, device="cpu")[1].accuracy == summary["test_accuracy"]
    last = run / "rounds" / "2" / checkpoint.FINAL
    assert (run / checkpoint.FINAL).read_bytes() == last.read_bytes()


def test_an_interrupted_run_goes_on_where_it_was(
    run: Path, method: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of round 1: the message names the run, and what is complete is not trained again."""
    take, seen = Step.__call__, []

    def interrupted(step: Step, number: int, *batch: Any) -> Any:
        seen.append(number)
        if len(seen) == 4 + 5:
            signal.raise_signal(signal.SIGINT)
        return take(step, number, *batch)

    options = recipe(method={**method, "rounds": 2})
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", interrupted)
        with pytest.raises(Interrupted, match=rf"--resume {tmp_path}/run`"):
            train(options, out=tmp_path / "run", device="cpu", quiet=True)
    before = (tmp_path / "run" / "rounds" / "0" / "summary.json").stat().st_mtime_ns
    resume(tmp_path / "run", device="cpu", quiet=True)
    assert (tmp_path / "run" / "rounds" / "0" / "summary.json").stat().st_mtime_ns == before
    assert (tmp_path / "run" / checkpoint.FINAL).read_bytes() == (run / checkpoint.FINAL).read_bytes()
    with pytest.raises(UserError, match="is complete"):
        resume(tmp_path / "run", device="cpu", quiet=True)


def extras(path: Path, count: int = 40, classes: int = 10) -> Path:
    probabilities = torch.randn(count, classes, generator=torch.Generator().manual_seed(1)).softmax(1)
    write(path, np.arange(100, 100 + count), probabilities)
    return path


def test_soft_labels_in_fp64_by_their_definition(tmp_path: Path) -> None:
    """On a mixed batch of labelled and extra images: the labelled ones' targets are one, theirs the probabilities."""
    path = extras(tmp_path / "labels.safetensors")
    options = recipe(
        data={"extra": {"source": "shapes10", "labels": str(path), "soft": True}}, train={"label_smoothing": 0.1}
    )
    data_module = open_data_module(options, CPU, quiet=True)
    torch.manual_seed(0)
    network = build(options.model, 10, 32).train()
    step = Step(network, options, 4, CPU, None, data_module.targets)
    rows, partners = torch.arange(56, 72), torch.arange(56, 72).flip(0)  # eight labelled images and eight others
    labels, others = (torch.as_tensor(data_module.train.labels)[each] for each in (rows, partners))
    images = data_module.augment.normalize(data_module.train.source, rows)  # type: ignore[attr-defined]
    loss, correct = step._loss_and_correct(images, labels, others, torch.tensor([0.75]))

    twin = build(options.model, 10, 32)
    torch.manual_seed(0)
    twin.load_state_dict(build(options.model, 10, 32).state_dict())
    logits = twin.double().train()(images.double())
    assert data_module.extra is not None
    hard = F.one_hot(torch.from_numpy(data_module.train_labels[:64]), 10).double()
    table = 0.9 * torch.cat([hard, data_module.extra.probabilities.double()]) + 0.1 / 10
    expected = -((0.75 * table[rows] + 0.25 * table[partners]) * logits.log_softmax(1)).sum(1).mean()
    # fp32 through a network of four layers, against fp64: some 1e-6 of a loss near 2.3.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    right = (
        (logits.argmax(1) == table.argmax(1)[rows]).double(),
        (logits.argmax(1) == table.argmax(1)[partners]).double(),
    )
    assert correct.item() == pytest.approx((0.75 * right[0] + 0.25 * right[1]).sum().item(), rel=1e-6)
    assert torch.equal(data_module.classes_of(labels), torch.from_numpy(data_module.train_labels)[rows])


def test_rounds_from_the_weights_before(method: dict[str, Any], tmp_path: Path) -> None:
    """Round 1 then begins where round 0 ended, not where the seed draws."""
    options = recipe(method={**method, "restart": False, "soft": True, "threshold": 0.1, "balance": True})
    out = train(options, out=tmp_path / "run", device="cpu", quiet=True).run
    first = Recipe.load(out / "rounds" / "1" / "recipe.toml")
    assert first.transfer is not None and first.transfer.weights == str(out / "rounds" / "0")
    assert first.data.extra is not None and first.data.extra.soft
    found = read(out / "rounds" / "1.safetensors", open_dataset(method["unlabelled"], quiet=True), 10)
    counts = np.bincount(found.labels, minlength=10)
    assert len(set(counts[counts > 0].tolist())) == 1, "balanced"


def test_no_image_that_is_sure_enough_ends_the_run(
    method: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = recipe(method={**method, "threshold": 0.999, "rounds": 3})
    result = train(options, out=tmp_path / "run", device="cpu")
    assert "lower method.threshold" in capsys.readouterr().err
    assert result.summary["stopped"] == "no image had a class of 100% after round 0"
    assert len(result.summary["rounds"]) == 1


def test_what_cannot_be_leaves_nothing_behind(method: dict[str, Any], tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"method": {**method, "unlabelled": str(tmp_path / "none")}}, "none"),
        ({"method": method, "train": {"batch_size": 100}}, "is larger than the 64 images"),
        ({"method": method, "data": {"extra": {"source": "shapes10", "labels": "x"}}}, "leave it out"),
        ({"data": {"extra": {"source": "shapes10", "labels": str(tmp_path / "x")}}}, "does not exist"),
    ]
    path = extras(tmp_path / "labels.safetensors", classes=7)
    wrong.append(
        ({"data": {"extra": {"source": "shapes10", "labels": str(path)}}}, "is of 7 classes, the training set of 10")
    )
    write(tmp_path / "far.safetensors", np.array([20_000]), torch.full((1, 10), 0.1))
    far = {"source": "shapes10", "labels": str(tmp_path / "far.safetensors")}
    wrong.append(({"data": {"extra": far}}, "labels image 20000, shapes10 has 10000"))
    fine = {"source": "shapes10", "labels": str(extras(tmp_path / "fine.safetensors"))}
    wrong.append(({"data": {"extra": fine, "loader": "torch"}}, "data.extra needs data.loader = 'resident'"))
    for content in (b"", b"junk", path.read_bytes()[:-40]):
        damaged = tmp_path / f"{len(content)}.safetensors"
        damaged.write_bytes(content)
        extra = {"source": "shapes10", "labels": str(damaged)}
        wrong.append(({"data": {"extra": extra}}, "holds no labels, or is damaged"))
    for tables, said in wrong:
        with pytest.raises(UserError, match=said) as error:
            train(recipe(**tables), out=tmp_path / "run", device="cpu", quiet=True)
        assert len(str(error.value).splitlines()) <= 2
        assert not (tmp_path / "run").exists(), tables
