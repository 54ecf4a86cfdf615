"""`fastres compare` on real runs, and on what is none."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def trained(fastres: Any, tiny: Path, tmp_path: Path) -> Path:
    """A folder of three runs: two seeds of one recipe, and another learning rate for one epoch."""
    runs = tmp_path / "runs"
    for name, *settings in (
        ("seed0", "train.seed=0"),
        ("seed1", "train.seed=1"),
        ("short", "train.epochs=1", "optimizer.lr=0.1"),
    ):
        options = [part for setting in settings for part in ("--set", setting)]
        code, _, err = fastres("train", tiny, *options, "--out", runs / name, "--quiet", "--device", "cpu")
        assert code == 0, err
    return runs


def test_runs_are_compared(fastres: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained / "seed0", trained / "unfinished")  # as a kill after the first epoch leaves it
    (trained / "unfinished" / "summary.json").unlink()
    metrics = trained / "unfinished" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])

    code, out, err = fastres("compare", trained, "--out", tmp_path / "out", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["out"] == str(tmp_path / "out") and told["comparable"]
    assert [run["name"] for run in told["runs"]] == ["seed0", "seed1", "short", "unfinished"]
    for run in told["runs"][:3]:
        summary = json.loads((trained / run["name"] / "summary.json").read_text())
        for key in ("test_accuracy", "parameters", "epochs", "seconds", "images_per_second", "device"):
            assert run[key] == summary[key]
        assert run["interval"][0] <= run["test_accuracy"] <= run["interval"][1]
    assert [run["differences"] for run in told["runs"]] == [
        {"optimizer.lr": 0.05, "train.epochs": 2.0, "train.seed": 0},
        {"optimizer.lr": 0.05, "train.epochs": 2.0, "train.seed": 1},
        {"optimizer.lr": 0.1, "train.epochs": 1.0, "train.seed": 0},
        {"optimizer.lr": 0.05, "train.epochs": 2.0, "train.seed": 0},
    ]
    assert [run["finished"] for run in told["runs"]] == [True, True, True, False]
    [group] = told["groups"]
    first, second = (run["test_accuracy"] for run in told["runs"][:2])
    assert (group["runs"], group["seeds"]) == ([1, 2, 4], [0, 1])
    assert group["mean_test_accuracy"] == pytest.approx((first + second) / 2, abs=1e-15)  # one rounding of 1e-16
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "two seeds say little" in page
    assert page.count("data:image/png;base64,") == 3 and "epoch 1 of 2" in page
    figures = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert figures == ["accuracy.png", "loss.png", "pareto.png"]

    monkeypatch.chdir(tmp_path)
    code, out, err = fastres("compare", trained / "seed1", trained / "short")
    assert (code, err) == (0, "")
    assert f"{second:.2%}" in out and "optimizer.lr" in out and "mean" not in out
    [written] = (tmp_path / "runs").glob("compare-*")
    assert out.endswith(f"page runs/{written.name}/compare.html\n")
    # What a comparison leaves among the runs is no run of the next one.
    assert fastres("compare", "runs", "--json")[0] == 0


def test_what_cannot_be_compared_is_one_line(fastres: Any, trained: Path, tmp_path: Path) -> None:
    def refused(*runs: object) -> str:
        code, stdout, err = fastres("compare", *runs, "--out", tmp_path / "out")
        assert (code, stdout) == (2, ""), err
        assert err.startswith("fastres: ") and err.count("\n") == 1 and not (tmp_path / "out").exists()
        return err

    seed0, seed1 = trained / "seed0", trained / "seed1"
    assert "comparing takes two runs or more" in refused(seed0)
    assert "is not a run directory" in refused(seed0, tmp_path / "none")
    assert "the name is too long" in refused(seed0, "x" * 300)
    good = (seed1 / "metrics.jsonl").read_bytes()
    (seed1 / "metrics.jsonl").write_bytes(good[:-20])
    assert "metrics.jsonl is damaged" in refused(seed0, seed1)
    (seed1 / "metrics.jsonl").write_bytes(good)
    (seed1 / "summary.json").write_text("\x1b[31m{")
    assert "\x1b" not in refused(trained)
    (seed1 / "recipe.toml").write_text("[train]\nepoch = 3\n")
    assert "did you mean 'train.epochs'?" in refused(seed0, seed1)
    assert fastres("compare")[0] == 2
    code, _, err = fastres("compare", seed0, trained / "short", "--out", seed0)
    assert code == 2 and "exists and is not an empty folder" in err


def test_a_killed_comparison_does_not_block_its_repetition(fastres: Any, trained: Path, tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        from fastres.report import document

        document.html = lambda *_: os._exit(9)  # as SIGKILL does, when all pictures are there
        fastres("compare", trained, "--out", tmp_path / "out")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 9 << 8
    assert (tmp_path / "out/figures").is_dir() and not (tmp_path / "out/compare.html").exists()
    assert fastres("compare", trained, "--out", tmp_path / "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.html", "figures"]
