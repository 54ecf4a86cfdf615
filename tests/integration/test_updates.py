"""Optimizers, schedules, averages and fractional epochs in whole runs; their errors on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastres.errors import Interrupted
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.training.run import resume, train
from fastres.training.state import TrainState

SETTINGS = [
    "optimizer.name=muon",
    "optimizer.lr=0.05",
    "optimizer.renormalise_every=2",
    "optimizer.auxiliary.lr=0.02",
    "optimizer.auxiliary.nesterov=true",
    "schedule.name=knots",
    "schedule.points=[[0, 0.2], [0.5, 1], [2.5, 0]]",
    "train.epochs=2.5",
    "train.lookahead.every=4",
]


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_last_epoch_stops_in_its_middle(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    """2.5 epochs of six steps, of which the sixth has 20 images and the others 32."""
    run = tmp_path / "run"
    settings = [part for setting in [*SETTINGS, "record.report=true"] for part in ("--set", setting)]
    code, _, err = fastres("train", tiny, "--out", run, *settings)
    assert code == 0, err
    assert "2.5 epochs of 6 steps" in err
    assert "epoch 3/3" in err
    summary, rows = json.loads((run / "summary.json").read_text()), rows_of(run)
    assert (summary["epochs"], summary["steps"], summary["stopped"]) == (2.5, 15, "completed")
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 6), (2, 12), (3, 15)]
    # The last step, number 14 from 0, is at epoch 14/6 of a line that falls from 1 at 0.5 to 0 at 2.5.
    assert rows[-1]["lr"] == pytest.approx(0.05 * (2.5 - 14 / 6) / 2)
    assert "2.5 epochs" in (run / "report.html").read_text()
    code, out, err = fastres("eval", run, "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"] == summary["test_accuracy"]


def test_steps_that_compile_are_not_in_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of each batch size, and the first without gradients for what has faded, which is another graph."""
    tables = {
        "data": {"source": "shapes10", "train_images": 70, "test_images": 10, "split": "none"},
        "model": {"name": "speednet", "widths": [4, 4]},
        "optimizer": {"name": "sgd", "lr": 0.01, "whiten_bias_epochs": 1.0},
        "train": {"epochs": 2.0, "batch_size": 20, "compile": False, "precision": "fp32"},
        "record": {"report": False},
    }
    counted: list[tuple[int, bool]] = []
    count = TrainState.time_step

    def counting(self: TrainState, images: int, seconds: float, *, timed: bool) -> None:
        counted.append((images, timed))
        count(self, images, seconds, timed=timed)

    monkeypatch.setattr(TrainState, "time_step", counting)
    train(Recipe.model_validate(tables), out=tmp_path / "run", quiet=True, device="cpu")
    steps = [(images, timed) for images, timed in counted if images]
    # An epoch is three batches of 20 and one of 10; the bias has faded when the second begins.
    assert steps == [(20, False), (20, True), (20, True), (10, False)] * 2


@pytest.mark.parametrize("after", [1, 7, 13, 15])
def test_a_run_that_is_interrupted_ends_with_the_same_bits(
    after: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the very last step, before the line of its epoch is written."""
    recipe = Recipe.load(tiny, SETTINGS)
    straight = train(recipe, out=tmp_path / "straight", quiet=True).run

    from fastres.training.step import Step

    original, run = Step.__call__, tmp_path / "run"

    def interrupted(self: Step, step: int, *batch: Any) -> Any:
        if step + 1 == after:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step, *batch)

    monkeypatch.setattr(Step, "__call__", interrupted)
    with pytest.raises(Interrupted, match=f"saved after step {after};"):
        train(recipe, out=run, quiet=True)
    monkeypatch.setattr(Step, "__call__", original)
    resume(run, quiet=True)
    assert (run / checkpoint.FINAL).read_bytes() == (straight / checkpoint.FINAL).read_bytes()
    for row, twin in zip(rows_of(run), rows_of(straight), strict=True):
        assert all(row[key] == twin[key] for key in ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss"))


def test_less_than_an_epoch(tiny: Path, tmp_path: Path) -> None:
    result = train(Recipe.load(tiny, ["train.epochs=0.5"]), out=tmp_path / "run", quiet=True)
    assert (result.summary["epochs"], result.summary["steps"]) == (0.5, 3)


def test_what_lookahead_keeps_is_its_slow_weights(tiny: Path, tmp_path: Path) -> None:
    run = train(Recipe.load(tiny, ["train.lookahead.every=5"]), out=tmp_path / "run", quiet=True).run
    step = checkpoint.load(run / checkpoint.LAST)["step"]
    kept, _ = checkpoint.load_weights(run / checkpoint.FINAL)
    assert all(torch.equal(kept[name], tensor) for name, tensor in step["lookahead"].items())
    assert not torch.equal(kept["conv1.weight"], step["network"]["conv1.weight"]), "12 steps: two ahead of the tenth"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["optimizer.nestrov=true"], "did you mean 'optimizer.nesterov'"),
        (["optimizer.name=muon", "optimizer.newton_schultz_steps=3"], "did you mean 'optimizer.newton_schulz_steps'"),
        (["optimizer.name=muon", "optimizer.newton_schulz_steps=0"], "greater than or equal to 1"),
        (["optimizer.name=muon", "optimizer.auxiliary.momentun=0.8"], "did you mean 'optimizer.auxiliary.momentum'"),
        (
            ["optimizer.name=muon", "optimizer.auxiliary.name=adam_w"],
            "did you mean 'adamw'? there are sgd, adam, adamw",
        ),
        (["optimizer.name=muon", "optimizer.auxiliary.lr=-1"], "'optimizer.auxiliary.lr' is -1"),
        (["optimizer.name=muon", "optimizer.momentum=0"], "nesterov needs a momentum above 0"),
        (["optimizer.bias_lr_factr=2"], "did you mean 'optimizer.bias_lr_factor'"),
        (["optimizer.head_lr_factor=0"], "greater than 0"),
        (["schedule.name=knot"], "did you mean 'knots'"),
        (["schedule.name=knots"], "'schedule.points' is missing"),
        (["schedule.name=knots", "schedule.points=[]"], "at least 1 item"),
        (["schedule.name=knots", "schedule.points=[[1, 1], [0.5, 0]]"], "the epochs of points must rise"),
        (["schedule.name=knots", "schedule.points=[[1, 1, 1]]"], "at most 2 items"),
        (["schedule.name=knots", "schedule.points=[[0, -1]]"], "greater than or equal to 0"),
        (["schedule.name=knots", "schedule.points=[[0, 1], [3, 0]]"], "end at epoch 3, after train.epochs = 2"),
        (["schedule.name=knots", "schedule.points=[[0, 1]]", "schedule.warmup_epochs=1"], "warm up by themselves"),
        (["train.lookahead.evry=5"], "did you mean 'train.lookahead.every'"),
        (["train.lookahead.decay=1.0"], "less than 1"),
        (["train.epochs=0"], "greater than 0"),
    ],
    ids=str,
)
def test_wrong_values_end_with_a_line_that_helps(
    settings: list[str], expected: str, fastres: Any, tiny: Path, tmp_path: Path
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    code, _, err = fastres("train", tiny, "--out", tmp_path / "run", *options)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) <= 2
    assert not (tmp_path / "run").exists()


def test_another_auxiliary_forgets_the_keys_of_the_first(tiny: Path) -> None:
    tiny.write_text(
        tiny.read_text().replace(
            '[optimizer]\nname = "sgd"\nlr = 0.05\n',
            '[optimizer]\nname = "muon"\nauxiliary = { lr = 0.3, momentum = 0.8, bias_lr_factor = 5 }\n',
        )
    )
    optimizer: Any = Recipe.load(tiny, ["optimizer.auxiliary.name=adamw"]).optimizer
    assert (optimizer.auxiliary.name, optimizer.auxiliary.lr, optimizer.auxiliary.bias_lr_factor) == ("adamw", 0.3, 5)
    optimizer = Recipe.load(tiny).optimizer
    assert (optimizer.auxiliary.name, optimizer.auxiliary.momentum) == ("sgd", 0.8)
