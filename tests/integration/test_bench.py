"""`fastres bench`: recipes trained and compared, a step on this machine's roofline."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastres.bench import roofline
from fastres.experiments.sweep import run as sweep
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.training.run import train

NAMES = ["tiny,seed=0", "tiny,seed=1", "wild,seed=0", "wild,seed=1"]


@pytest.fixture
def wild(tiny: Path) -> Path:
    """The tiny recipe with a rate at which it diverges."""
    path = tiny.with_name("wild.toml")
    path.write_text(tiny.read_text().replace("lr = 0.05", "lr = 1e30"))
    return path


def test_recipes_are_trained_compared_and_picked_up(fastres: Any, tiny: Path, wild: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["bench", "pareto", tiny, wild, "--runs", "2", "--out", out, "--device", "cpu"]
    code, printed, err = fastres(*command)
    assert code == 0, err
    assert [f"point {number}/4: {name}" in err for number, name in enumerate(NAMES, 1)] == [True] * 4
    assert printed.startswith("Recipe") and "0 (2 diverged)" in printed
    assert "wild,seed=0: diverged: the loss is not finite at step" in printed
    assert printed.endswith(f"page {out}/pareto.md\n")
    told = json.loads((out / "pareto.json").read_text())
    first, second = told["entries"]
    summaries = [json.loads((out / name / "summary.json").read_text()) for name in NAMES[:2]]
    for run, summary in zip(first["runs"], summaries, strict=True):
        for key in ("test_accuracy", "seconds", "images_per_second", "parameters", "cold_seconds", "warm_seconds"):
            assert run[key] == summary[key]
    mean = sum(summary["test_accuracy"] for summary in summaries) / 2
    assert first["mean"]["test_accuracy"] == pytest.approx(mean, abs=1e-15)  # one rounding of 1e-16
    assert first["front"] == ["images_per_second", "seconds"] and second["front"] == []
    assert [run["state"] for run in second["runs"]] == ["diverged"] * 2 and second["mean"]["seconds"] is None
    assert told["records"] == [] and "published" not in (out / "pareto.md").read_text(), "shapes10 is not CIFAR-10"
    # A run is what `fastres train` makes of its recipe.
    alone = train(Recipe.load(out / NAMES[1] / "recipe.toml"), out=tmp_path / "alone", device="cpu", quiet=True)
    assert (alone.run / checkpoint.FINAL).read_bytes() == (out / NAMES[1] / checkpoint.FINAL).read_bytes()
    # Once more: nothing is trained, and the numbers are the same.
    code, printed, err = fastres(*command, "--json")
    assert code == 0 and "point 1/4" not in err, err
    assert json.loads(printed) == {"out": str(out), **told}
    # More seeds in the same folder: only they are trained.
    code, _, err = fastres("bench", "pareto", tiny, "--runs", "3", "--out", out, "--device", "cpu")
    assert code == 0, err
    assert err.count("point ") == 1 and "point 3/3: tiny,seed=2  2 were finished before" in err


def test_an_interrupted_comparison_goes_on(
    fastres: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(run: Path, *rest: Any) -> None:
        if run.name.endswith("seed=1"):
            raise KeyboardInterrupt
        train_run(run, *rest)

    train_run = sweep.train_run
    monkeypatch.setattr(sweep, "train_run", stops)
    out = tmp_path / "out"
    command = ["bench", "pareto", tiny, "--runs", "2", "--out", out, "--device", "cpu", "--quiet"]
    code, printed, err = fastres(*command)
    assert (code, printed) == (130, "")
    message = f"1 of 2 points are finished; the same command with --out {out} goes on"
    assert err == f"fastres: interrupted; {message}\n" and not (out / "pareto.json").exists()
    monkeypatch.undo()
    before = (out / "tiny,seed=0" / "summary.json").stat().st_mtime_ns
    assert fastres(*command)[0] == 0 and (out / "pareto.json").exists()
    assert (out / "tiny,seed=0" / "summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.kills
def test_ctrl_c_leaves_everything_resumable(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(tiny.read_text().replace("epochs = 2", "epochs = 20"))
    out = tmp_path / "out"
    arguments = ["bench", "pareto", str(tiny), "--runs", "1", "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastres", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        # A shell makes what it starts in the background ignore SIGINT, tests included; the command shall not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not (out / "tiny,seed=0" / checkpoint.LAST).is_file():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate()
    assert (process.returncode, printed) == (130, ""), err
    assert "Traceback" not in err and err.splitlines()[-1].endswith(f"the same command with --out {out} goes on")
    assert not (out / "pareto.json").exists()
    code, _, err = fastres(*arguments)
    assert code == 0 and (out / "pareto.json").exists(), err


def test_folders_of_others_are_left_alone(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        code, out, err = fastres("bench", *arguments, "--device", "cpu")
        assert (code, out) == (2, ""), err
        assert err.startswith("fastres: ") and err.count("\n") <= 2
        return err

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    assert "not an empty folder" in refused("pareto", tiny, "--out", tmp_path / "mine")
    assert "not an empty folder" in refused("roofline", tiny, "--out", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
    out = tmp_path / "out"
    assert fastres("bench", "pareto", tiny, "--runs", "1", "--out", out, "--device", "cpu", "--quiet")[0] == 0
    other = refused("pareto", tiny, "--runs", "1", "--out", out, "--set", "optimizer.lr=0.1")
    assert "was trained with another recipe" in other
    assert "none.toml" in refused("pareto", tmp_path / "none.toml")


def test_a_step_is_put_on_the_roofline(
    fastres: Any, tiny: Path, fast_precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(roofline, "scale_for", lambda device: roofline.TINY)  # to run the code, not to measure
    out = tmp_path / "out"
    code, printed, err = fastres("bench", "roofline", tiny, "--out", out, "--device", "cpu")
    assert code == 0, err
    assert printed.startswith(f"tiny.toml, batch 32, {fast_precision}, on ") and "matrix products: " in printed
    assert printed.endswith(f"page {out}/roofline.md\n") and "whole step" in printed
    told = json.loads((out / "roofline.json").read_text())
    assert {path.name for path in out.iterdir()} == {"roofline.json", "roofline.md", "roofline.png"}
    assert told["points"][-1]["kind"] == "whole step" and told["recipe"] == "tiny.toml"
    monkeypatch.chdir(tmp_path)  # where runs/roofline-<time> is made
    code, printed, err = fastres("bench", "roofline", tiny, "--set", "train.batch_size=8", "--json", "--device", "cpu")
    assert code == 0, err
    assert json.loads(printed)["batch_size"] == 8 and json.loads(printed)["set"] == ["train.batch_size=8"]


def test_doctor_compares_with_fp64(fastres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        "model = { blocks = [1], channels = [16], strides = [2] }\n"
        "train = { precision = 'fp32', compile = false, batch_size = 4 }\n"
        "method = { name = 'dino' }\n"
    )
    code, out, err = fastres("doctor", path, "--numerics", "--device", "cpu")
    assert code == 0 and err.endswith("layers, the step and the augmentation with fp64\n")
    assert "fp32 on cpu, batches of 4, torch " in out
    assert "not compared: the step: method.name = 'dino' adds to it what layers do not show" in out
    monkeypatch.setattr("fastres.bench.numerics._limit", lambda *_: 0.0)
    code, out, err = fastres("doctor", path, "--numerics", "--device", "cpu", "--json")
    assert code == 1 and json.loads(out)["sound"] is False
    code, out, err = fastres("doctor", path)
    assert (code, out) == (2, "") and "add --numerics" in err
