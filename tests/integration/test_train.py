"""Whole runs: what they leave behind, what ends them, what can be done with them."""

import csv
import gc
import json
import os
import pickle
import random
import re
import signal
import threading
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastres as library
from fastres.evaluation.evaluator import Evaluator
from fastres.evaluation.trained import TrainedModel
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.training.data import open_data_module


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_top_to_bottom(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["record.report=true", "record.tensorboard=true", "eval.test_every=2"]
    code, out, err = fastres("train", tiny, "--out", run, *(part for option in options for part in ("--set", option)))
    assert code == 0, err
    summary = json.loads((run / "summary.json").read_text())
    assert f"test accuracy {summary['test_accuracy']:.2%}" in out
    assert "epoch  1/2" in err.replace("epoch 1/2", "epoch  1/2")

    assert (summary["epochs"], summary["steps"], summary["test_images"]) == (2, 12, 100)
    assert summary["stopped"] == "completed"
    assert summary["images_per_second"] > 0
    assert 0 < summary["cold_seconds"] < summary["seconds"]
    assert summary["parameters"] == sum(
        tensor.numel()
        for name, tensor in checkpoint.load_weights(run / checkpoint.FINAL)[0].items()
        if "running" not in name and "tracked" not in name
    )
    first, second = rows_of(run)
    assert (first["epoch"], first["step"], second["step"]) == (1, 6, 12)
    assert set(second) - set(first) == {"test_loss", "test_accuracy"}
    assert second["test_accuracy"] == summary["test_accuracy"]

    resolved = Recipe.load(run / "recipe.toml")
    assert resolved == Recipe.load(tiny, options)
    assert "torch" in json.dumps(json.loads((run / "environment.json").read_text()))
    assert (run / "report.html").stat().st_size > 100_000
    assert {file.stem for file in (run / "figures").iterdir()} >= {
        "samples",
        "class_counts",
        "augmented",
        "loss",
        "accuracy",
        "learning_rate",
        "confusion",
        "worst_mistakes",
    }
    assert list((run / "tensorboard").glob("events*"))
    assert not list(run.rglob("*.tmp"))


def test_the_resolved_recipe_reproduces_the_run_to_the_bit(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    for out, recipe in (("one", tiny), ("two", tmp_path / "one" / "recipe.toml")):
        assert fastres("train", recipe, "--out", tmp_path / out, "--quiet")[0] == 0
    one, two = ((tmp_path / run / checkpoint.FINAL).read_bytes() for run in ("one", "two"))
    assert one == two
    assert fastres("train", tiny, "--out", tmp_path / "three", "--set", "train.seed=1", "--quiet")[0] == 0
    assert (tmp_path / "three" / checkpoint.FINAL).read_bytes() != one


MIXING = ["mix.cutmix_alpha=1.0", "mix.mixup_alpha=0.8", "augment.autocontrast=0.2", "augment.color_jitter.hue=0.1"]


def test_a_mixed_run_learns_and_repeats_to_the_bit(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    settings = [argument for setting in MIXING for argument in ("--set", setting)]
    for out in ("one", "two"):
        assert fastres("train", tiny, "--out", tmp_path / out, *settings, "--set", "train.epochs=4", "--quiet")[0] == 0
    one, two = ((tmp_path / run / checkpoint.FINAL).read_bytes() for run in ("one", "two"))
    assert one == two
    rows = rows_of(tmp_path / "one")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert 0 <= rows[-1]["train_accuracy"] <= 1
    # Without mixing another network comes out: the table does something.
    assert fastres("train", tiny, "--out", tmp_path / "plain", "--set", "train.epochs=4", "--quiet")[0] == 0
    assert (tmp_path / "plain" / checkpoint.FINAL).read_bytes() != one


def test_mixing_stops_after_its_last_epoch(tiny: Path) -> None:
    recipe = Recipe.load(tiny, [*MIXING, "mix.until=2"])
    data_module = open_data_module(recipe, torch.device("cpu"), quiet=True)
    weights = [float(data_module.augment(b.source, b.labels, b.indices, epoch, 0, b.rows).weight)
               for epoch in range(4) for b in [next(iter(data_module.train.batches(epoch)))]]  # fmt: skip
    assert weights[2:] == [1, 1]
    assert min(weights[:2]) < 1


def test_a_drawing_of_the_augmentation(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    settings = [argument for setting in MIXING for argument in ("--set", setting)]
    code, out, _ = fastres("show", tiny, *settings, "--augment", tmp_path / "drawn.png", "--json")
    assert (code, json.loads(out)) == (0, {"out": str(tmp_path / "drawn.png"), "images": 32})
    picture = np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB"))
    assert min(picture.shape[:2]) > 500
    assert picture.reshape(-1, 3).std(0).min() > 20, "not an empty page"
    code, _, err = fastres("show", tiny, "--augment", tmp_path)  # a folder
    assert (code, "Traceback" in err) == (2, False)


def test_json_is_alone_on_standard_output(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    code, out, err = fastres("train", tiny, "--out", tmp_path / "run", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["run"] == str(tmp_path / "run")
    assert found["test_accuracy"] == json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"]
    assert "epoch" in err
    assert fastres("train", tiny, "--out", tmp_path / "quiet", "--json", "--quiet")[2] == ""


@pytest.mark.parametrize("extra", [[], ["train.ema=0.8"], ["train.precision=fp16"], ["train.channels_last=false"]])
def test_eval_finds_what_training_found(fastres: Any, tiny: Path, tmp_path: Path, extra: list[str]) -> None:
    run = tmp_path / "run"
    settings = [part for option in extra for part in ("--set", option)]
    assert fastres("train", tiny, "--out", run, "--quiet", *settings)[0] == 0
    summary = json.loads((run / "summary.json").read_text())
    code, out, _ = fastres("eval", run, "--json")
    assert code == 0
    measured = json.loads(out)
    # The same code on the same weights: the same bits.
    assert measured["accuracy"] == summary["test_accuracy"]
    assert measured["loss"] == summary["test_loss"]
    assert measured["expected_calibration_error"] == summary["expected_calibration_error"]
    assert np.array(measured["confusion"]).sum() == 100
    code, out, _ = fastres("eval", run)
    assert code == 0
    for name in measured["classes"]:
        assert name in out


def test_predictions_of_a_pickle_without_labels(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fastres("train", tiny, "--out", run, "--quiet")[0] == 0
    test = library.data.open_dataset("shapes10").test
    images = test.images[:50]
    flat = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(50, -1)
    ids = np.arange(50)[::-1] + 7
    (tmp_path / "unlabelled.pkl").write_bytes(pickle.dumps({b"data": flat, b"ids": ids}))
    out = tmp_path / "submission.csv"
    assert fastres("predict", run, tmp_path / "unlabelled.pkl", "--out", out)[0] == 0
    with out.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["ID", "Labels"]
    assert [int(line[0]) for line in lines] == ids.tolist()
    assert [int(line[1]) for line in lines] == TrainedModel.load(run).logits(images).argmax(1).tolist()


def test_the_best_checkpoint_is_the_one_that_is_kept(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # From the fourth epoch on the rate is a hundred times what it should be, so that an earlier epoch is the best.
    options = ["train.best=test_loss", "eval.test_every=1", "train.epochs=5", "optimizer.lr=0.03"]
    options += ["schedule.name=step", "schedule.milestones=[3]", "schedule.gamma=100.0"]
    assert fastres("train", tiny, "--out", run, "--quiet", *(p for o in options for p in ("--set", o)))[0] == 0
    rows, summary = rows_of(run), json.loads((run / "summary.json").read_text())
    best = min(rows, key=lambda row: row["test_loss"])
    assert best["epoch"] < 5
    assert summary["best"] == {"metric": "test_loss", "epoch": best["epoch"], "value": best["test_loss"]}
    assert summary["test_loss"] == best["test_loss"]


def test_early_stopping_counts_epochs_without_a_better_value(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # A rate this small changes no prediction, so that the accuracy of the first epoch stays the best.
    options = ["train.best=val_accuracy", "train.early_stopping=3", "train.epochs=50", "optimizer.lr=1e-12"]
    assert fastres("train", tiny, "--out", run, "--quiet", *(p for o in options for p in ("--set", o)))[0] == 0
    rows, summary = rows_of(run), json.loads((run / "summary.json").read_text())
    assert summary["stopped"] == "early stopping"
    assert len(rows) == summary["best"]["epoch"] + 3
    assert summary["epochs"] == len(rows)


def test_a_loss_that_is_not_finite_ends_the_run(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # A sound first epoch, then a rate of 5e12.
    options = ["schedule.name=step", "schedule.milestones=[1]", "schedule.gamma=1e14", "train.precision=fp32"]
    options += ["train.checkpoint_seconds=1000.0"]
    code, _, err = fastres("train", tiny, "--out", run, *(p for o in options for p in ("--set", o)))
    assert code == 2
    assert re.search(r"(the loss is|weights are) not finite at step \d+ \(epoch 2\), learning rate 5e\+12", err)
    assert f"the last good checkpoint is {run / checkpoint.LAST}" in err
    assert "Traceback" not in err
    state = checkpoint.load(run / checkpoint.LAST)
    weights = state["step"]["network"].values()
    assert all(weight.isfinite().all() for weight in weights), "the checkpoint is from before the accident"
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("epochs", [1, 2])
def test_weights_that_are_not_finite_are_never_saved(fastres: Any, tiny: Path, tmp_path: Path, epochs: int) -> None:
    """One step an epoch, whose loss is still finite and whose weights are not any more."""
    run = tmp_path / "run"
    options = ["optimizer.lr=1e39", "schedule.name=constant", "train.precision=fp32", "train.batch_size=180"]
    options += [f"train.epochs={epochs}", "train.checkpoint_seconds=1000.0"]
    code, _, err = fastres("train", tiny, "--out", run, *(p for o in options for p in ("--set", o)))
    assert code == 2
    assert "weights are not finite at step 1" in err
    assert "no checkpoint had been saved yet" in err
    assert not list(run.glob("checkpoints/*"))


def test_the_reports_split_and_no_split(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    for split in ("report", "none"):
        run = tmp_path / split
        assert fastres("train", tiny, "--out", run, "--quiet", "--set", f"data.split={split}")[0] == 0
        assert ("val_loss" in rows_of(run)[0]) == (split == "report")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "one_cycle", "step"])
def test_every_optimizer_and_schedule_trains(name: str, schedule: str, tiny: Path, tmp_path: Path) -> None:
    overrides = [f"optimizer.name={name}", f"schedule.name={schedule}", "train.epochs=1", "optimizer.lr=0.01"]
    overrides += ["schedule.milestones=[0.5]"] if schedule == "step" else []
    result = library.train(Recipe.load(tiny, overrides), out=tmp_path / "run", quiet=True)
    assert 0 <= result.test_accuracy <= 1
    assert result.summary["epochs"] == 1


def test_a_relative_source_means_the_same_from_anywhere(
    fastres: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(20):
                pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{number}.png")
    (tmp_path / "shapes10").mkdir()  # a folder of that name does not change what the name means
    monkeypatch.chdir(tmp_path)
    assert fastres("train", tiny, "--out", "named", "--quiet")[0] == 0
    options = ["data.source=images", "data.root=root", "train.batch_size=8"]
    settings = [part for option in options for part in ("--set", option)]
    assert fastres("train", tiny, "--out", "run", "--quiet", *settings)[0] == 0
    monkeypatch.chdir("/")
    assert fastres("eval", tmp_path / "run", "--json")[0] == 0
    again = fastres("train", tmp_path / "run" / "recipe.toml", "--out", tmp_path / "again", "--quiet")
    assert again[0] == 0, again[2]


def test_a_checkpoint_of_something_else(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fastres("train", tiny, "--out", run, "--quiet")[0] == 0
    (run / "summary.json").unlink()
    whole = checkpoint.load(run / checkpoint.LAST)
    position = whole["position"]
    states = [
        {},
        whole | {"position": position | {"epok": 1}},
        whole | {"position": position | {"epoch": 1}},  # of two rows
        whole | {"position": position | {"step": 10**9}},
        whole | {"rows": whole["rows"] + [whole["rows"][-1]], "position": position | {"epoch": 3}},
        whole | {"rows": [*whole["rows"][:-1], {"epoch": 2, "val_accuracy": 2.0}]},
        whole | {"tally": torch.zeros(1, dtype=torch.float64)},
        whole | {"step": {}},
    ]
    for state in states:
        checkpoint.save(run / checkpoint.LAST, state)
        code, _, err = fastres("train", "--resume", run)
        assert code == 2
        assert "not a checkpoint of this version" in err
    checkpoint.save(run / checkpoint.LAST, whole)
    assert fastres("train", "--resume", run)[0] == 0


def test_a_flipped_bit_is_no_result(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    """Of a checkpoint, a network and labels, wherever they are read: one line, and nothing of theirs is used."""
    run = tmp_path / "run"
    assert fastres("train", tiny, "--out", run, "--quiet")[0] == 0
    kept, last = run / checkpoint.FINAL, run / checkpoint.LAST
    for path in (kept, last):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x40
        path.write_bytes(data)
    for command in (
        ["eval", run],
        ["predict", run, "shapes10", "--out", tmp_path / "submission.csv"],
        ["train", tiny, "--out", tmp_path / "other", "--set", f"transfer.weights={run}"],
        ["train", tiny, "--out", tmp_path / "other", "--set", f"transfer.weights={last}"],
    ):
        code, out, err = fastres(*command)
        assert (code, out) == (2, ""), command
        assert "damaged" in err and "Traceback" not in err
        assert len(err[err.rindex("fastres: ") :].splitlines()) == 1
    (run / "summary.json").unlink()
    code, _, err = fastres("train", "--resume", run)
    assert code == 2 and "its CRC-32 is another" in err
    assert not (tmp_path / "submission.csv").exists() and not (tmp_path / "other").exists()


def test_a_run_resumes_only_what_it_was(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fastres("train", tiny, "--out", run, "--quiet")[0] == 0
    assert "complete" in fastres("train", "--resume", run)[2]
    (run / "summary.json").unlink()
    text = (run / "recipe.toml").read_text()
    assert tomllib.loads(text)["optimizer"]["lr"] == 0.05
    (run / "recipe.toml").write_text(text.replace("lr = 0.05", "lr = 0.06"))
    code, _, err = fastres("train", "--resume", run)
    assert code == 2
    assert "is not the recipe that" in err
    (run / "recipe.toml").write_text(text)
    assert fastres("train", "--resume", run, "--quiet")[0] == 0
    assert (run / "summary.json").exists()


def test_real_images(real_images: Path, fast_precision: str, fastres: Any, tmp_path: Path) -> None:
    """CIFAR-10 (JPEG): a small network on 2,500 images learns something that chance (10%) does not explain."""
    recipe = tmp_path / "real.toml"
    recipe.write_text(
        f'[data]\nsource = "{real_images}"\ntrain_images = 2500\ntest_images = 2000\n'
        "[model]\nblocks = [1, 1, 1]\nchannels = [16, 32, 64]\nstrides = [1, 2, 2]\nkernels = [3, 3, 3]\n"
        "skip_kernels = [1, 1, 1]\n[train]\nepochs = 4\nbatch_size = 50\ncompile = false\n"
        f'precision = "{fast_precision}"\n[optimizer]\nlr = 0.05\n'
    )
    code, out, err = fastres("train", recipe, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    # One standard deviation of chance is 0.7 points on 2,000 images.
    assert json.loads(out)["test_accuracy"] > 0.30
    assert torch.load(tmp_path / "run" / checkpoint.LAST, weights_only=True)["position"]["epoch"] == 4


def test_the_page_of_any_run_can_be_drawn_again(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    assert fastres("train", tiny, "--out", run, "--quiet", "--set", "record.report=true")[0] == 0
    page = run / "report.html"
    drawn = page.read_bytes()
    page.unlink()
    code, out, err = fastres("report", run)
    assert (code, out) == (0, f"page {page}\n"), err
    assert page.read_bytes() == drawn, "the same network, tested on the same images"
    # As a kill after the first epoch leaves it, and then without its images.
    (run / "summary.json").unlink()
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    code, out, err = fastres("report", run, "--json")
    assert (code, json.loads(out)) == (0, {"out": str(page)}), err
    assert "Not complete: 1 of 2 epochs" in page.read_text() and "left out" not in page.read_text()
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"shapes10"', '"/nowhere"'))
    assert fastres("report", run)[0] == 0
    assert "Images and tests are left out: there is no file or folder /nowhere" in page.read_text()
    metrics.unlink()
    assert fastres("report", run)[0] == 0
    assert fastres("report", tmp_path)[0] == 2
    assert not list(run.rglob("*.tmp"))


def test_the_page_of_several_runs_is_that_of_the_last(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fastres("train", tiny, "--out", run / "rounds/9", "--quiet")[0] == 0
    assert fastres("train", tiny, "--out", run / "rounds/10", "--quiet", "--set", "train.epochs=1")[0] == 0
    (run / "recipe.toml").write_bytes((run / "rounds/9/recipe.toml").read_bytes())
    assert fastres("report", run)[1] == f"page {run / 'report.html'}\n"
    assert (run / "report.html").read_bytes() == (run / "rounds/10/report.html").read_bytes()
    assert not (run / "rounds/9/report.html").exists()


def test_a_page_that_cannot_be_drawn_costs_a_line(
    fastres: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("fastres.training.loop.draw_page", fail)
    run = tmp_path / "a run"
    code, _, err = fastres("train", tiny, "--out", run, "--set", "record.report=true")
    assert code == 0 and (run / "summary.json").exists()
    assert f"the page could not be drawn (RuntimeError: no font): `fastres report '{run}'` draws it again\n" in err


def test_one_class_is_warned_of(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        folder = tmp_path / "images" / part / "cat"
        folder.mkdir(parents=True)
        for number in range(8):
            Image.fromarray(np.full((32, 32, 3), 9 * number, np.uint8)).save(folder / f"{number}.png")
    options = [f"data.source={tmp_path / 'images'}", "data.split=none", "train.batch_size=8", "train.epochs=1"]
    options += ["data.train_images=8", "data.test_images=8"]
    settings = [part for option in options for part in ("--set", option)]
    code, out, err = fastres("train", tiny, "--out", tmp_path / "run", *settings)
    assert code == 0 and "test accuracy 100.00%" in out, err
    assert f"{tmp_path / 'images'} has a single class: every answer is right" in err


def test_a_path_is_a_recipe_too(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = library.train(str(tiny), device="cpu", quiet=True)
    assert result.run.parent.name == "runs" and result.run.name.startswith("tiny-")
    assert result.test_accuracy == library.train(Recipe.load(tiny), device="cpu", quiet=True).test_accuracy
    for wrong in ({"train": {"epochs": 1}}, None):
        with pytest.raises(TypeError, match=r"takes a fastres\.Recipe or the path of one"):
            library.train(wrong)  # type: ignore[arg-type]


def test_a_training_leaves_the_process_as_it_was(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> dict[str, Any]:
        return {
            "generator": torch.get_rng_state().tolist(),
            "random": random.getstate(),
            "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
            "threads": {thread.name for thread in threading.enumerate()},
            "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            "collector": gc.isenabled(),
            "variables": dict(os.environ),
        }

    recipe = Recipe.load(tiny, ["train.epochs=1", "model.dropout=0.1"])
    torch.manual_seed(1234)
    before = state()
    run = library.train(recipe, out=tmp_path / "run", device="cpu", quiet=True).run
    assert state() == before
    (run / "summary.json").unlink()
    library.resume(run, device="cpu", quiet=True)
    model = TrainedModel.load(run, "cpu")
    assert state() == before
    monkeypatch.setattr(Evaluator, "logits", lambda *_: torch.manual_seed(7))
    model.logits(np.zeros((1, 32, 32, 3), np.uint8))
    assert state() == before


def test_a_training_that_is_interrupted_before_its_first_checkpoint_leaves_no_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastres.training.loop.environment", interrupt)
    with pytest.raises(KeyboardInterrupt):
        library.train(Recipe.load(tiny), out=tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()
