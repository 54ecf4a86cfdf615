"""Whole runs of speednet, and test-time augmentation in them: resume, eval, predict, what they say."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastres.data import open_dataset
from fastres.evaluation.evaluator import Evaluator
from fastres.models.speednet import whitening_filters
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.training.data import open_data_module
from fastres.training.step import Step

SPEEDNET = ["model.name=speednet", "model.widths=[8, 8]", "model.whiten_images=50", "optimizer.nesterov=true"]


def sets(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(run / checkpoint.FINAL)[0]


def test_whitening_comes_from_the_training_images_as_the_network_sees_them(
    fastres: Any, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = sets([*SPEEDNET, "train.precision=bf16"])
    assert fastres("train", tiny, "--out", run, *options, "--quiet")[0] == 0
    data_module = open_data_module(Recipe.load(run / "recipe.toml"), torch.device("cpu"), quiet=True)
    assert data_module.validation is not None
    chosen = data_module.train.subset[np.arange(50) * 180 // 50]
    assert not set(chosen) & set(data_module.validation.subset)
    seen = data_module.augment.normalize(torch.from_numpy(np.array(data_module.train_images[chosen])))
    assert seen.dtype == torch.bfloat16
    expected = whitening_filters([seen], 2, 5e-4)
    # One batch here, one there: equal but for the last bits of fp64, below fp32's; 50 images are one batch in both.
    assert torch.equal(weights_of(run)["whiten.weight"], expected.float())
    assert sum(map(len, data_module.sample(10_000))) == 180, "all there are"
    assert list(data_module.sample(0)) == []


@pytest.mark.parametrize("at", [1, 8], ids=["first step", "second epoch"])
def test_an_interrupted_run_ends_with_the_same_bits(
    fastres: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    options = sets([*SPEEDNET, "eval.tta=selective", "model.depth=3", "model.activation=silu"])
    assert fastres("train", tiny, "--out", tmp_path / "straight", *options, "--quiet")[0] == 0
    take = Step.__call__

    def interrupted(step: Step, number: int, *batch: Any) -> Any:
        if number == at:
            signal.raise_signal(signal.SIGINT)
        return take(step, number, *batch)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", interrupted)
        code, _, err = fastres("train", tiny, "--out", run, *options)
        assert code == 130, err
    assert fastres("train", "--resume", run, "--quiet")[0] == 0
    assert (run / checkpoint.FINAL).read_bytes() == (tmp_path / "straight" / checkpoint.FINAL).read_bytes()
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (run, tmp_path / "straight")]
    assert ends[0]["test_loss"] == ends[1]["test_loss"]


@pytest.mark.parametrize(("tta", "passes"), [("none", 1), ("mirror", 2), ("translate", 6), ("selective", 3)])
def test_eval_and_predict_use_the_views_of_the_test(
    fastres: Any, tiny: Path, tmp_path: Path, tta: str, passes: int
) -> None:
    run = tmp_path / "run"
    options = sets([*SPEEDNET, f"eval.tta={tta}", "eval.batch_size=48"])
    assert fastres("train", tiny, "--out", run, *options, "--quiet")[0] == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["tta"], summary["tta_passes"]) == (tta, passes)
    code, out, err = fastres("eval", run, "--json")
    assert code == 0, err
    assert json.loads(out)["loss"] == summary["test_loss"]
    # All 2,000 images of the test part are predicted, of which the run tested the first 100.
    assert fastres("predict", run, "shapes10", "--out", tmp_path / "out.csv")[0] == 0
    with (tmp_path / "out.csv").open() as file:
        predicted = [int(row["Labels"]) for row in csv.DictReader(file)]
    test = open_dataset("shapes10").test
    assert test is not None
    assert len(predicted) == len(test.images)
    if tta != "selective":  # which images are the least sure depends on the others
        right = np.mean(np.array(predicted[:100]) == np.array(test.labels)[:100])
        assert right == pytest.approx(summary["test_accuracy"])


def test_validation_has_no_views_unless_asked(
    fastres: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    logits = Evaluator.logits

    def noted(self: Any, loader: Any, options: Any = None) -> Any:
        used.append("none" if options is None else options.tta)
        return logits(self, loader, options)

    monkeypatch.setattr(Evaluator, "logits", noted)
    options = sets(["eval.tta=mirror", "eval.test_every=1", "train.epochs=1"])
    assert fastres("train", tiny, "--out", tmp_path / "a", *options, "--quiet")[0] == 0
    assert used == ["none", "none", "mirror", "mirror"], "the test, and validation once more for the temperature"
    used.clear()
    asked = [*options, *sets(["eval.tta_while_training=true"])]
    assert fastres("train", tiny, "--out", tmp_path / "b", *asked, "--quiet")[0] == 0
    assert used == ["mirror"] * 4


def test_show_lists_its_layers(fastres: Any, tiny: Path) -> None:
    code, out, _ = fastres("show", tiny, "--set", "model.name=speednet", "--json")
    shown = json.loads(out)
    assert (code, shown["parameters"], shown["multiply_adds"]) == (0, 1_971_352, 118_147_360)
    assert shown["layers"][0] | {"output": None} == {
        "name": "whiten", "kind": "conv 2×2", "output": None, "parameters": 24, "multiply_adds": 12 * 24 * 31**2
    }  # fmt: skip
    assert "blocks" not in shown["recipe"]["model"], "keys of the other family are gone"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["model.name=speednt"], "did you mean 'speednet'?"),
        (["model.name=speednet", "model.width=[8]"], "did you mean 'model.widths'?"),
        (["model.name=speednet", "model.blocks=[1]"], "unknown key 'model.blocks'"),
        (["model.whiten_epss=1"], "unknown key 'model.whiten_epss'"),
        (["model.name=speednet", "model.widths=[]"], "'model.widths'"),
        (["model.name=speednet", "model.widths=[0]"], "'model.widths"),
        (["model.name=speednet", "model.widths=[8, 8, 8, 8, 8]"], "take fewer groups"),
        (["model.name=speednet", "model.depth=4"], "'model.depth'"),
        (["model.name=speednet", "model.pool=4"], "model.pool"),
        (["model.name=speednet", "model.whiten_eps=0"], "'model.whiten_eps'"),
        (["model.name=speednet", "model.max_parameters=100"], "max_parameters"),
        (["model.activation=gelo"], "did you mean 'gelu'?"),
        (["model.bn_momentum=0"], "'model.bn_momentum'"),
        (["model.zero_init_residual=true", "model.bn_scale=false"], "choose one"),
        (["eval.tta=flip"], "'eval.tta'"),
        (["eval.tta=mirrors"], "did you mean 'mirror'?"),
        (["eval.tta_share=0"], "'eval.tta_share'"),
        (["eval.ttta=mirror"], "did you mean 'eval.tta'?"),
    ],
)
def test_options_that_do_not_fit(fastres: Any, tiny: Path, tmp_path: Path, settings: list[str], expected: str) -> None:
    code, _, err = fastres("train", tiny, "--out", tmp_path / "out", *sets(settings))
    assert (code, "Traceback" in err) == (2, False), err
    assert expected in err
    assert not (tmp_path / "out").exists()
