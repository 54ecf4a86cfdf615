"""Signals and kills: whatever ends a process, the resumed run ends with the bits of an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastres.errors import UserError
from fastres.runs import checkpoint

COMMAND = [sys.executable, "-m", "fastres"]
SLOW = (pytest.mark.slow, pytest.mark.kills)
pytestmark = pytest.mark.serial
STEPS = 6  # an epoch of the tiny recipe: five whole batches and a partial one


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    return process.wait(), process.communicate()[1]


def position(run: Path) -> tuple[int, int] | None:
    """Finished epochs and steps of the last checkpoint."""
    try:
        found = checkpoint.load(run / checkpoint.LAST)["position"]
    except UserError:
        return None
    return found["epoch"], found["step"]


def wait_for(run: Path, process: subprocess.Popen[str], steps: int) -> None:
    """Until a checkpoint has so many steps."""
    while process.poll() is None:
        at = position(run)
        if at is not None and at[0] * STEPS + at[1] >= steps:
            return
        time.sleep(0.001)


def same(run: Path, other: Path) -> None:
    """The two runs kept the same bits and logged the same numbers."""
    assert (run / checkpoint.FINAL).read_bytes() == (other / checkpoint.FINAL).read_bytes()
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (run, other)]
    for row, twin in zip(*(map(json.loads, part) for part in lines), strict=True):
        for name in ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert row[name] == twin[name]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=SLOW)])
def test_a_signal_saves_and_exits_130(number: signal.Signals, tiny: Path, tmp_path: Path, fastres: Any) -> None:
    # Mixed batches with every kind of draw: they too must come back after the resume.
    settings = ["train.epochs=30", "mix.cutmix_alpha=1", "mix.mixup_alpha=1", "augment.grayscale=0.5"]
    options = [argument for setting in settings for argument in ("--set", setting)]
    assert fastres("train", tiny, "--out", tmp_path / "straight", *options, "--quiet")[0] == 0
    run = tmp_path / "run"
    process = start("train", tiny, "--out", run, *options)
    wait_for(run, process, STEPS)
    process.send_signal(number)
    code, err = finish(process)
    assert code == 130, err
    assert f"{number.name}: saved after step" in err
    assert f"--resume {run}" in err
    assert "Traceback" not in err
    assert not (run / "summary.json").exists()
    assert fastres("train", "--resume", run, "--quiet")[0] == 0
    same(run, tmp_path / "straight")


def test_a_run_killed_before_its_first_checkpoint_starts_again(tiny: Path, tmp_path: Path, fastres: Any) -> None:
    assert fastres("train", tiny, "--out", tmp_path / "straight", "--quiet")[0] == 0
    run = tmp_path / "run"
    process = start("train", tiny, "--out", run)
    while not (run / "recipe.toml").exists():
        time.sleep(0.001)
    process.kill()
    finish(process)
    assert fastres("train", "--resume", run, "--quiet")[0] == 0
    same(run, tmp_path / "straight")


def kill_often(recipe: Path, tmp_path: Path, kills: int, overrides: list[str], seed: int) -> Path:
    """Train straight through in one process, and again with `kills` SIGKILLs: a third of them just after the partial
    batch of an epoch, when the whole batch's shape comes next, the others at random moments."""
    settings = [part for override in overrides for part in ("--set", override)]
    straight, run = tmp_path / "straight", tmp_path / "run"
    code, err = finish(start("train", recipe, "--out", straight, *settings))
    assert code == 0, err
    draw, done = random.Random(seed), 0
    process = start("train", recipe, "--out", run, *settings, "--set", "train.checkpoint_seconds=0")
    while process.poll() is None:
        at = position(run) or (0, 0)
        if done < kills:
            finished = at[0] * STEPS + at[1]
            if done % 3 == 0:
                wait_for(run, process, (finished // STEPS + 1) * STEPS)
            else:
                wait_for(run, process, finished + draw.randint(1, 3))
                time.sleep(draw.random() * 0.05)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                done += 1
        code, err = finish(process)
        if code == 0:
            break
        assert code == -signal.SIGKILL, err
        process = start("train", "--resume", run)
    assert done == kills, "the run was over before all kills: give it more epochs"
    same(run, straight)
    assert not list(run.rglob(".*.tmp")), "a resumed run cleans up what a kill left behind"
    return run


def test_two_kills(tiny: Path, tmp_path: Path) -> None:
    kill_often(tiny, tmp_path, 2, ["train.epochs=4"], seed=0)


@pytest.mark.slow
@pytest.mark.kills
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_twenty_kills(compiled: bool, tiny: Path, tmp_path: Path) -> None:
    options = ["train.epochs=24", f"train.compile={str(compiled).lower()}", "train.ema=0.9", "model.dropout=0.1"]
    options += ["train.best=val_loss", "train.early_stopping=23"]
    run = kill_often(tiny, tmp_path, 20, options, seed=int(compiled))
    assert json.loads((run / "summary.json").read_text())["compiled"] == compiled


@pytest.mark.slow
@pytest.mark.kills
def test_ctrl_c_during_compilation_does_not_reach_the_compiler(tiny: Path, tmp_path: Path, fastres: Any) -> None:
    """A terminal sends SIGINT to the whole process group, g++ included; the run must end compiled and with its bits."""
    settings = ["--set", "train.compile=true", "--set", "train.epochs=3"]
    assert finish(start("train", tiny, "--out", tmp_path / "straight", *settings))[0] == 0
    for number in range(4):
        run = tmp_path / f"run{number}"
        variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"cache{number}")}  # nothing compiled yet
        process = subprocess.Popen(
            [*COMMAND, "train", tiny, "--out", run, *settings],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
            start_new_session=True,
            # A shell makes what it starts in the background ignore SIGINT, tests included; the compiler shall not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not (run / "environment.json").exists():
            time.sleep(0.001)
        time.sleep(1 + number * 1.5)
        os.killpg(process.pid, signal.SIGINT)
        code, err = finish(process)
        assert code == 130, err
        assert "without compilation" not in err
        assert fastres("train", "--resume", run, "--quiet")[0] == 0
        same(run, tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.kills
def test_kills_while_preparing_leave_no_half_store(tmp_path: Path) -> None:
    """Twenty kills of `data prepare`; the store that the next one makes is sound and the rubbish is gone."""
    draw = random.Random(0)
    for _ in range(20):
        process = start("data", "prepare", "shapes10", "--root", tmp_path)
        time.sleep(0.3 + draw.random() * 2.5)
        process.kill()
        finish(process)
    assert finish(start("data", "prepare", "shapes10", "--root", tmp_path))[0] == 0
    assert finish(start("data", "verify", "shapes10", "--root", tmp_path))[0] == 0
    stores = [path.name for path in (tmp_path / "stores").iterdir() if path.is_dir()]
    assert len(stores) == 1, stores
