"""Speedruns: run by run the bits of `fastres train`, one compilation, interruption, what is refused."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastres.engine import compile_cache
from fastres.evaluation.evaluator import Evaluator
from fastres.experiments.speedrun import run
from fastres.experiments.speedrun.results import FIGURE, PLAN, ROWS, SUMMARY, describe
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.runs.schema import Speedrun
from fastres.training.run import train

WHOLE = ["data.split=none"]  # 200 images: six batches of 32 and one of 8
SPEEDNET = ["model.name=speednet", "model.widths=[4, 8]", "model.whiten_images=50", "eval.tta=translate"]
MUON = ["optimizer.name=muon", "optimizer.renormalise_every=2", "optimizer.auxiliary.lr=0.02"]
KINDS = {
    "momentum": ["optimizer.momentum=0.9", "train.epochs=1.5"],
    "adamw": [
        "optimizer.name=adamw",
        "optimizer.lr=0.01",
        "mix.cutmix_alpha=1",
        "model.dropout=0.3",
        "data.loader=torch",
    ],
    "muon": [*SPEEDNET, *MUON, "train.lookahead.every=3", "augment.flip=alternating"],
    "averages": ["train.ema=0.9", "train.drop_last=true", "augment.translate=2", "eval.tta=selective"],
}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]


def same_as_train(recipe: Path, settings: list[str], place: Path, seeds: tuple[int, ...] = (3, 4, 5)) -> None:
    """Runs with the seeds 3, 4 and 5 end with the weights and the accuracy of trainings with those of `seeds`."""
    compile_cache: list[dict[str, Tensor]] = []
    original = Evaluator.logits

    def watched(self: Evaluator, *arguments: Any) -> Tensor:
        compile_cache.append({name: tensor.clone() for name, tensor in self.network.state_dict().items()})
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "logits", watched)
        run.speedrun(Recipe.load(recipe, [*settings, "train.seed=3"]), 3, out=place / "runs", quiet=True)
    assert len(compile_cache) == 4, "the warm-up and three runs"
    rows = rows_of(place / "runs")
    assert [row["seed"] for row in rows] == [3, 4, 5]
    for seed in seeds:
        result = train(Recipe.load(recipe, [*settings, f"train.seed={seed}"]), out=place / f"seed{seed}", quiet=True)
        assert rows[seed - 3]["test_accuracy"] == result.test_accuracy
        assert rows[seed - 3]["test_loss"] == result.summary["test_loss"]
        expected, _ = checkpoint.load_weights(result.run / checkpoint.FINAL)
        weights = compile_cache[seed - 2]
        assert expected.keys() == weights.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", KINDS)
def test_each_run_has_the_bits_of_a_training(kind: str, tiny: Path, tmp_path: Path) -> None:
    same_as_train(tiny, [*WHOLE, *KINDS[kind]], tmp_path)


@pytest.mark.slow  # three graphs are compiled
def test_compiled_once_for_all_runs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And still with the bits of a training. Two batch sizes and the evaluation make three graphs, compiled or kept by
    an earlier run; from the first run on, none is asked for or traced."""
    from torch._dynamo.utils import counters

    seen: list[tuple[int, int]] = []
    asked: list[str] = []
    original, get_or_compile = run._Series._run, compile_cache.get_or_compile

    def counted(function: Any, *arguments: Any) -> Any:
        asked.append(function.__qualname__)
        return get_or_compile(function, *arguments)

    def compilations() -> tuple[int, int]:
        return len(asked), counters["stats"]["unique_graphs"]

    def watched(self: Any, *arguments: Any) -> Any:
        seen.append(compilations())
        row = original(self, *arguments)
        seen.append(compilations())
        return row

    monkeypatch.setattr(run._Series, "_run", watched)
    monkeypatch.setattr(compile_cache, "get_or_compile", counted)
    settings = [*WHOLE, *KINDS["muon"], "train.compile=true", "train.ema=0.9", "model.dropout=0.1"]
    same_as_train(tiny, settings, tmp_path, seeds=(5,))
    assert all(row["compiled"] for row in rows_of(tmp_path / "runs"))
    assert seen[0][0] == 3
    assert len(seen) == 6 and all(count == seen[0] for count in seen)


# ---------------------------------------------------------------------------------------------------- the command


def options(*settings: str) -> list[str]:
    return [part for setting in [*WHOLE, *settings] for part in ("--set", setting)]


def test_the_command(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, err = fastres("speedrun", tiny, "--runs", 3, "--target", 0.05, "--out", out, *options())
    assert code == 0, err
    assert "3 runs, seeds 0 to 2: mean test accuracy" in printed
    assert "(Student's t on the logit scale, 2 degrees of freedom)" in printed
    assert "mean above 5.00%: " in printed and "(one-sided t test)" in printed
    assert f"timed: {run.TIMED}" in printed and f"not timed: {run.NOT_TIMED}" in printed
    assert "run 2/3  seed 1" in err and err.count(" left\n") == 2
    rows, summary = rows_of(out), json.loads((out / SUMMARY).read_text())
    accuracies = [row["test_accuracy"] for row in rows]
    assert summary["mean_accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert summary["interval_low"] <= summary["mean_accuracy"] <= summary["interval_high"]
    assert summary["cold_seconds"] == rows[0]["cold_seconds"] > rows[0]["seconds"]
    assert (summary["runs"], summary["target"], summary["compiled"]) == (3, 0.05, False)
    assert (out / FIGURE).read_bytes().startswith(b"\x89PNG")
    assert not list(out.rglob("checkpoints")) and not (out / "report.html").exists()
    assert Recipe.load(out / "resolved.toml").hash() == summary["recipe_hash"]


def test_a_single_run_has_no_spread(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, err = fastres("speedrun", tiny, "--runs", 1, "--out", out, "--json", *options())
    assert code == 0, err
    summary = json.loads(printed)
    assert summary["out"] == str(out)
    for name in ("sd_accuracy", "interval_low", "interval_high", "p_mean_above_target", "sd_seconds"):
        assert summary[name] is None
    lines = describe(Speedrun.read(out / SUMMARY)).splitlines()
    assert lines[0].startswith("1 run, seed 0: mean test accuracy") and "interval" not in lines[0]
    two = {"runs": 2, "sd_accuracy": 0.01, "interval_low": 0.1, "interval_high": 0.9, "sd_seconds": 0.1}
    assert "two seeds say little" in describe(Speedrun.read(out / SUMMARY).updated(**two))


def test_a_run_that_diverges_counts(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, err = fastres("speedrun", tiny, "--runs", 2, "--out", out, *options("optimizer.lr=1e30"))
    assert code == 0, err
    assert "its loss is not finite" in err
    assert [row["test_loss"] for row in rows_of(out)] == [None, None]


def test_a_speedrun_that_ends_before_its_figure_goes_on(
    fastres: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summary, which says that all is done, is written last."""
    out, asked = (
        tmp_path / "out",
        ["speedrun", tiny, "--runs", 1, "--out", tmp_path / "out", *options("train.epochs=1")],
    )

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "png", killed)
    assert fastres(*asked)[0] == 130
    monkeypatch.undo()
    code, _, err = fastres(*asked)
    assert code == 0, err
    assert (out / FIGURE).is_file() and (out / SUMMARY).is_file()


def test_an_interrupted_speedrun_goes_on(
    fastres: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only with the plan it was begun with; finished, not at all."""
    assert fastres("speedrun", tiny, "--runs", 4, "--out", tmp_path / "straight", *options())[0] == 0
    out, original = tmp_path / "out", run._Series._run

    def interrupted(self: Any, seed: int, *arguments: Any) -> Any:
        if seed == 2:
            raise KeyboardInterrupt
        return original(self, seed, *arguments)

    monkeypatch.setattr(run._Series, "_run", interrupted)
    code, printed, err = fastres("speedrun", tiny, "--runs", 4, "--out", out, *options())
    monkeypatch.undo()
    assert (code, printed) == (130, "")
    assert err.endswith(f"interrupted: 2 of 4 runs are kept; the same command with --out {out} adds the rest\n")
    assert not (out / SUMMARY).exists()
    for wrong, expected in (
        (["--runs", 5, *options()], f"{out} was begun with --runs 4, not 5"),
        (["--runs", 4, "--target", 0.5, *options()], "was begun with --target 0.94, not 0.5"),
        (["--runs", 4, *options("optimizer.lr=0.06")], "was begun with another recipe"),
        (["--runs", 4, *options("train.seed=1")], "was begun with another recipe"),
    ):
        code, _, err = fastres("speedrun", tiny, "--out", out, *wrong)
        assert (code, err.count("\n")) == (2, 1), err
        assert expected in err and "or give another --out" in err
    assert len(rows_of(out)) == 2
    code, _, err = fastres("speedrun", tiny, "--runs", 4, "--out", out, *options())
    assert code == 0, err
    assert "2 runs were finished before" in err
    results = [[(row["seed"], row["test_loss"]) for row in rows_of(tmp_path / name)] for name in ("out", "straight")]
    assert results[0] == results[1]
    assert [("cold_seconds" in row) for row in rows_of(out)] == [True, False, True, False]
    code, _, err = fastres("speedrun", tiny, "--runs", 4, "--out", out, *options())
    assert code == 2 and "is complete" in err


@pytest.mark.serial
def test_a_signal_keeps_the_finished_runs(tiny: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fastres",
        "speedrun",
        tiny,
        "--runs",
        "5000",
        "--out",
        tmp_path / "out",
        *options(),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "out" / ROWS).is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed, err = process.communicate()
    assert process.returncode == 130, err
    assert printed == "" and "Traceback" not in err
    rows = rows_of(tmp_path / "out")
    assert f"interrupted: {len(rows)} of 5000 runs are kept" in err
    assert [row["seed"] for row in rows] == list(range(len(rows)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--runs", "0", *options()], "--runs 0: give the number of runs, at least 1"),
        (["--runs", "2", "--target", "94", *options()], "such as 0.94"),
        (["--runs", "2", *options("train.seed=4294967295")], "leaves no 2 seeds below 2³²"),
        (["--runs", "2"], "add --set data.split=none\n"),
        (
            ["--runs", "2", "--set", "train.best=val_loss", "--set", "train.early_stopping=3"],
            "add --set data.split=none --set train.best= --set train.early_stopping=0\n",
        ),
        (["--runs", "2", *options("eval.test_every=1")], "add --set eval.test_every=0\n"),
        (["--runs", "2", *options("train.batch_size=500")], "set it to at most 200"),
    ],
    ids=str,
)
def test_what_no_speedrun_can_do_is_one_line(
    arguments: list[str], expected: str, fastres: Any, tiny: Path, tmp_path: Path
) -> None:
    code, printed, err = fastres("speedrun", tiny, "--out", tmp_path / "out", *arguments)
    assert (code, printed) == (2, ""), err
    assert expected in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_in_it_is_refused(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    code, _, err = fastres("speedrun", tiny, "--runs", 1, "--out", tmp_path, *options())
    assert code == 2 and "not an empty folder" in err
    (tmp_path / PLAN).write_text("{}")
    code, _, err = fastres("speedrun", tiny, "--runs", 1, "--out", tmp_path, *options())
    assert code == 2 and "plan.json is damaged" in err
