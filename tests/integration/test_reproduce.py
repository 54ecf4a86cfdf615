"""`fastres reproduce`: from the claims to the page; what is finished is found again, what was interrupted goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.training.run import train
from tests.pages import Page

RECIPES = Path(__file__).parents[2] / "recipes"
# The report's recipes on a hundredth of its network: a run takes a second or two.
SMALL = ["--recipes", RECIPES, "--source", "shapes10", "--device", "cpu", "--scale", "0.0004"]
SMALL += ["--set", "model.channels=[4,8,16,32]", "--set", "train.compile=false"]


def weights(run: Path) -> bytes:
    return (run / checkpoint.FINAL).read_bytes()


def test_the_command(fastres: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, err = fastres("reproduce", "leak", "best", *SMALL, "--seeds", 2, "--out", out)
    assert code == 0, err
    assert [f"run {number}/4: " in err for number in range(1, 5)] == [True] * 4 and err.count(" left\n") >= 3
    lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    ends = {name: " ".join(line.split()[-6:]) for name, line in lines.items()}
    assert ends["best"].endswith("2 not testable at this scale") and ends["held-out"].endswith("2 not reproduced")
    told = json.loads((out / "reproduce.json").read_text())
    found = {row["name"]: row for row in told["claims"]}
    runs = {(row["recipe"], row["seed"]): row for row in told["runs"]}
    assert {*runs} == {(r, s) for r in ("report_best.toml", "report/validation.toml split=holdout") for s in (0, 1)}
    # The numbers are those of the runs.
    for row in runs.values():
        own = json.loads((out / "runs" / row["run"] / "summary.json").read_text())
        assert (row["test_accuracy"], row["seconds"]) == (own["test_accuracy"], own["seconds"])
        assert own["test_images"] == 1000 and own["epochs"] == 2  # √0.0004 of 100
    assert found["best"]["values"] == [runs["report_best.toml", seed]["test_accuracy"] for seed in (0, 1)]
    honest = [runs["report/validation.toml split=holdout", seed] for seed in (0, 1)]
    ratios = [row["validation_loss"] / row["training_loss"] for row in honest]
    assert found["honest-split"]["values"] == pytest.approx(ratios, rel=1e-15)
    # Both pages have every claim, figures 1 to 4 and that of the leak.
    page, written = Page((out / "report.html").read_text()), (out / "report.md").read_text()
    assert len(page.images()) == 5
    for row in told["claims"]:
        assert row["says"] in "".join(page.text) and row["says"] in written
        assert row["verdict"] in written and row["measured"] in written
    for name in ("samples", "class_counts", "augmented", "loss", "leak"):
        assert (out / "figures" / f"{name}.png").is_file() and f"figures/{name}.png" in written
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 4 and all((out / link).is_dir() for link in links)
    # A run is what `fastres train` makes of its recipe.
    run = out / "runs" / runs["report_best.toml", 1]["run"]
    alone = train(Recipe.load(run / "recipe.toml"), out=tmp_path / "alone", device="cpu", quiet=True)
    assert weights(alone.run) == weights(run)

    # Once more, without one run's result, and with a third seed, two at a time: only what is missing is trained.
    lost = runs["report/validation.toml split=holdout", 0]["run"]
    (out / "runs" / lost / "summary.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    again = ("reproduce", "leak", "best", *SMALL, "--seeds", 3, "--out", out, "--workers", 2, "--json")
    code, printed, err = fastres(*again)
    assert code == 0, err
    assert err.startswith("3 of 6 runs are finished already\n") and err.count(": run ") == 3
    assert {line.split(":")[0] for line in err.splitlines()[1:]} <= {"worker 1", "worker 2"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    told = json.loads(printed)
    assert told == {"out": str(out), **json.loads((out / "reproduce.json").read_text())}
    found = {row["name"]: row for row in told["claims"]}
    assert [row["seeds"] for row in found.values()] == [3] * 4 and found["best"]["interval"] is not None
    assert "Up to 2 runs shared the device" in (out / "report.md").read_text()

    # Other claims of the same runs; other scales, a folder of somebody else and damage are refused.
    code, printed, err = fastres("reproduce", "losses", *SMALL, "--seeds", 1, "--out", out)
    assert code == 0 and "a single seed" not in err and "run 1/" not in err
    for options, expected in (
        (["--scale", "0.5"], f"{out} was begun with scale = 0.0004, not 0.5: give another --out"),
        (["--set", "optimizer.lr=1"], f"{out} was begun with set = "),
        (["--out", tmp_path], f"{tmp_path} exists and is not an empty folder"),
    ):
        code, printed, err = fastres("reproduce", "leak", *SMALL, "--out", out, *options)
        assert (code, printed, err.count("\n")) == (2, "", 1) and expected in err, err
    (run / "summary.json").write_text("{")
    code, printed, err = fastres("reproduce", "best", *SMALL, "--seeds", 2, "--out", out)
    assert (code, printed, err.count("\n")) == (2, "", 1) and f"{run / 'summary.json'} is damaged" in err
    (out / "plan.json").write_text("[]")
    code, printed, err = fastres("reproduce", "best", *SMALL, "--out", out)
    assert (code, printed, err.count("\n")) == (2, "", 1) and "plan.json is damaged" in err


def test_a_run_that_diverges_leaves_its_claims_open(fastres: Any, tmp_path: Path) -> None:
    options = [*SMALL, "--set", "optimizer.lr=1e30", "--seeds", 1, "--out", tmp_path / "out", "--json"]
    code, printed, err = fastres("reproduce", "losses", *options)
    assert code == 0, err
    assert "the loss is not finite at step" in err
    told = json.loads(printed)
    assert [(row["values"], row["measured"]) for row in told["claims"]] == [([None], "–")] * 2
    assert "diverged" in (tmp_path / "out" / "report.md").read_text()
    code, _, err = fastres("reproduce", "losses", *options)
    assert code == 0 and err == "1 of 1 runs are finished already\n"


@pytest.mark.slow
@pytest.mark.kills
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_everything_resumable(workers: int, fastres: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # 600 epochs are 12 at this scale.
    asked = ["reproduce", "leak", *SMALL, "--seeds", 1, "--out", out, "--workers", workers]
    asked += ["--set", "train.epochs=600"]
    command = [sys.executable, "-m", "fastres", *map(str, asked)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not [*out.glob(f"runs/*/{checkpoint.LAST}")]:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate()
    assert process.returncode == 130, err
    assert printed == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("fastres: interrupted; ")
    assert err.endswith(f" of 2 runs are finished; the same command with --out {out} goes on\n")
    assert not (out / "reproduce.json").exists()
    begun = [path.parent.parent for path in out.glob(f"runs/*/{checkpoint.LAST}")]
    assert begun
    code, _, err = fastres(*asked)
    assert code == 0, err
    # The order of sums, and with it the last bits, is that of so many threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(json.loads((begun[0] / "environment.json").read_text())["threads"])
    try:
        straight = train(Recipe.load(begun[0] / "recipe.toml"), out=tmp_path / "straight", device="cpu", quiet=True)
    finally:
        torch.set_num_threads(threads)
    assert weights(straight.run) == weights(begun[0]), "resumed to the bits of an undisturbed run"


def test_the_list_trains_nothing(fastres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["reproduce", "leak", "parameters-best", "--recipes", RECIPES, "--source", "shapes10", "--list"]
    code, printed, err = fastres(*asked)
    assert (code, err) == (0, "")
    assert "6 runs, 4,800,000 images trained on" in printed  # two recipes, three seeds, 100 epochs of 8,000
    code, printed, err = fastres(*asked, "--json")
    told = json.loads(printed)
    assert told["image_passes"] == 4_800_000 and len(told["runs"]) == 6 and len(told["claims"]) == 4
    assert [*tmp_path.iterdir()] == []


def test_sources_without_labels_are_refused(fastres: Any, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(4):
        folder = tmp_path / "images" / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(folder / f"{number}.png")
    out = tmp_path / "out"
    options = ["--recipes", RECIPES, "--source", tmp_path / "images", "--out", out]
    code, printed, err = fastres("reproduce", "leak", *options)
    assert code == 2 and printed == "", err
    assert err.splitlines()[-1].startswith("fastres: ") and "no test images with labels" in err
    assert not out.exists()


@pytest.mark.slow  # two tests on 75 shifted sets
def test_shifted_images_and_pseudo_labels(fastres: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    claims = ("unlabelled-100", "over-fitting", "pseudo-labels")
    asked = ["reproduce", *claims, *SMALL, "--seeds", 1, "--out", out, "--json"]
    code, printed, err = fastres(*asked)
    assert code == 0, err
    found = {row["name"]: row for row in json.loads(printed)["claims"]}
    assert found["unlabelled-100"]["verdict"] == "cannot be told"
    shifts = {path.parent.name: json.loads(path.read_text()) for path in out.glob("runs/*/shift.json")}
    assert len(shifts) == 2
    assert found["unlabelled-100"]["values"][0] in [shift["mean_corruption_accuracy"] for shift in shifts.values()]
    rounds = next(
        summary["rounds"]
        for path in out.glob("runs/*/summary.json")
        if "rounds" in (summary := json.loads(path.read_text()))
    )
    gain = rounds[-1]["test_accuracy"] - rounds[0]["test_accuracy"]
    assert found["pseudo-labels"]["values"] == [gain] and rounds[-1]["added"] == 1000
    before = {path: path.stat().st_mtime_ns for path in out.rglob("shift.json")}
    assert fastres(*asked)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("shift.json")} == before
