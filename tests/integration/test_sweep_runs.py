"""`fastres sweep`: its points are ordinary runs, it goes on where it stopped, and what cannot be is said beforehand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastres.experiments.sweep.plan import load
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.training.run import train

SWEEP = """
[sweep.grid]
"train.seed" = [0, 1]

[[sweep.points]]
name = "sgd"

[[sweep.points]]
name = "adamw"
set = { "optimizer.name" = "adamw", "optimizer.lr" = 0.003 }
"""
NAMES = ["sgd,seed=0", "sgd,seed=1", "adamw,seed=0", "adamw,seed=1"]


@pytest.fixture
def swept(tiny: Path) -> Path:
    """The tiny recipe, which trains in a second, with four points."""
    tiny.write_text(tiny.read_text() + SWEEP)
    return tiny


def weights(run: Path) -> bytes:
    return (run / checkpoint.FINAL).read_bytes()


def test_the_command(fastres: Any, swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, err = fastres("sweep", swept, "--out", out, "--device", "cpu")
    assert code == 0, err
    assert [f"point {number}/4: {name}" in err for number, name in enumerate(NAMES, 1)] == [True] * 4
    assert err.count(" left\n") >= 3, "from the second point on, there is a measure of the time"
    assert printed.startswith("point") and "mean test accuracy" in printed and "optimistic" in printed
    summary = json.loads((out / "sweep.json").read_text())
    accuracies = [row["test_accuracy"] for row in summary["points"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert {row["name"] for row in summary["points"]} == set(NAMES)
    for row in summary["points"]:
        own = json.loads((out / row["name"] / "summary.json").read_text())
        last = json.loads((out / row["name"] / "metrics.jsonl").read_text().splitlines()[-1])
        assert row["test_accuracy"] == own["test_accuracy"] and row["seconds"] == own["seconds"]
        assert (row["val_loss"], row["val_accuracy"]) == (last["val_loss"], last["val_accuracy"])
        assert f"| {row['name']} |" in (out / "sweep.md").read_text()
    assert "data:image/png" in (out / "sweep.html").read_text()
    # A point is what `fastres train` makes of its recipe, whatever was trained before it in the same process.
    alone = train(Recipe.load(out / NAMES[3] / "recipe.toml"), out=tmp_path / "alone", device="cpu", quiet=True)
    assert weights(alone.run) == weights(out / NAMES[3])
    # Once more: nothing is trained, and the result is the same.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    code, printed, err = fastres("sweep", swept, "--out", out, "--device", "cpu", "--json")
    assert code == 0, err
    assert "point 1/4" not in err
    assert json.loads(printed) == {"out": str(out), **summary}
    assert {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")} == before
    # More points, same folder: only they are trained.
    code, _, err = fastres("sweep", swept, "--out", out, "--device", "cpu", "--set", "sweep.grid.train.seed=[0, 1, 2]")
    assert code == 0, err
    assert err.count("\npoint ") + err.startswith("point ") == 2
    assert "point 3/6: sgd,seed=2  2 were finished before" in err
    assert len(json.loads((out / "sweep.json").read_text())["points"]) == 6


def test_a_point_that_diverges_does_not_end_the_sweep(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(tiny.read_text() + '[sweep.grid]\n"optimizer.lr" = [1e30, 0.05]\n')
    out = tmp_path / "out"
    code, _, err = fastres("sweep", tiny, "--out", out, "--device", "cpu")
    assert code == 0, err
    assert "lr=1e+30: the loss is not finite at step" in err
    first, last = json.loads((out / "sweep.json").read_text())["points"]
    assert (first["name"], first["state"], last["name"], last["state"]) == (
        "lr=0.05",
        "complete",
        "lr=1e+30",
        "diverged",
    )
    assert "the loss is not finite" in last["error"]
    code, _, err = fastres("sweep", tiny, "--out", out, "--device", "cpu")
    assert code == 0 and "point 1/2" not in err, "a divergence is a result too"


@pytest.mark.slow
@pytest.mark.kills
def test_ctrl_c_leaves_everything_resumable(fastres: Any, swept: Path, tmp_path: Path) -> None:
    swept.write_text(swept.read_text().replace("epochs = 2", "epochs = 20"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fastres", "sweep", swept, "--out", out, "--device", "cpu"]

    def hears_ctrl_c() -> None:
        """A shell makes what it starts in the background ignore SIGINT, tests included; the sweep shall not."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ, preexec_fn=hears_ctrl_c
    )
    while process.poll() is None and not (out / NAMES[1] / checkpoint.LAST).is_file():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate()
    assert process.returncode == 130, err
    assert printed == "" and "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("fastres: ") and last.endswith(f"; the same command with --out {out} goes on")
    assert "of 4 points are finished" in last
    assert not (out / "sweep.json").exists()
    code, _, err = fastres("sweep", swept, "--out", out, "--device", "cpu")
    assert code == 0, err
    point = load(swept).points[1]
    straight = train(point.recipe, out=tmp_path / "straight", device="cpu", quiet=True)
    assert weights(straight.run) == weights(out / NAMES[1]), "resumed to the bits of an undisturbed run"


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"optimizer.lrr" = [0.1]', "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ('"model.channels" = [[4, 8], [4, 8, 16]]', "point channels=4-8-16: model: blocks has 2 entries"),
        ('"model.pool" = [0, 99]', "point pool=99: model.pool = 99, but 32-pixel images leave a map of"),
        ('"model.max_parameters" = [5000, 100]', "point max_parameters=100: "),
    ],
)
def test_all_points_are_checked_before_the_first_run(
    text: str, expected: str, fastres: Any, tiny: Path, tmp_path: Path
) -> None:
    tiny.write_text(f"{tiny.read_text()}[sweep.grid]\n{text}\n")
    code, printed, err = fastres("sweep", tiny, "--out", tmp_path / "out")
    assert (code, printed, err.count("\n")) == (2, "", 1), err
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_other_commands_know_a_sweep(fastres: Any, swept: Path, tmp_path: Path) -> None:
    for command in (["train", swept], ["speedrun", swept, "--runs", 2, "--set", "data.split=none"]):
        code, printed, err = fastres(*command, "--out", tmp_path / "out")
        assert (code, printed, err.count("\n")) == (2, "", 1), err
        assert "`fastres sweep RECIPE`" in err
        assert not (tmp_path / "out").exists()
    code, printed, _ = fastres("show", swept)
    assert code == 0
    assert all(f"\n{name}" in printed for name in NAMES)
    code, printed, _ = fastres("show", swept, "--json")
    assert json.loads(printed)["points"][NAMES[3]] == {
        "optimizer.name": "adamw",
        "optimizer.lr": 0.003,
        "train.seed": 1,
    }


def test_folders_of_others_are_refused(fastres: Any, swept: Path, tmp_path: Path) -> None:
    code, _, err = fastres("sweep", swept, "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1) and "is not an empty folder" in err
    out = tmp_path / "out"
    assert fastres("sweep", swept, "--out", out, "--device", "cpu")[0] == 0
    code, _, err = fastres("sweep", swept, "--out", out, "--set", "optimizer.weight_decay=0.1")
    assert (code, err.count("\n")) == (2, 1), err
    assert f"{out / NAMES[0]} was trained with another recipe: give another --out" in err
    assert (out / "sweep.json").exists(), "what was refused has changed nothing"
