"""Metrics, progress and the facts of the machine."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastres
from fastres.errors import UserError
from fastres.runs.environment import Environment, environment
from fastres.runs.recorder import Recorder
from fastres.runs.schema import Epoch, read_epochs
from fastres.training.progress import Pace, Progress

PACKAGE = Path(fastres.__file__).parent


def strict(path: Path) -> list[dict]:
    """The rows of metrics.jsonl; NaN and Infinity, which Python would accept, are errors."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


# ---------------------------------------------------------------------------------------------------- Recorder


def test_every_epoch_is_a_line_of_strict_json(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.log(Epoch(epoch=1, lr=np.float32(0.5), train_loss=float("nan"), val_loss=float("-inf")))  # type: ignore[arg-type]
    recorder.log(Epoch(epoch=2, lr=0.25, train_loss=1.5, val_loss=np.float64("inf")))
    recorder.close()
    expected = [
        {"epoch": 1, "lr": 0.5, "train_loss": None, "val_loss": None},
        {"epoch": 2, "lr": 0.25, "train_loss": 1.5, "val_loss": None},
    ]
    assert strict(tmp_path / "metrics.jsonl") == expected
    assert [row.to_json() for row in recorder.rows] == expected


@given(st.lists(st.floats(width=32), min_size=1, max_size=5))  # a loss is computed in fp32
def test_rows_are_what_the_file_holds(tmp_path_factory: pytest.TempPathFactory, losses: list[float]) -> None:
    run = tmp_path_factory.mktemp("run")
    recorder = Recorder(run)
    for epoch, loss in enumerate(losses, 1):
        recorder.log(Epoch(epoch=epoch, train_loss=loss))
    assert strict(run / "metrics.jsonl") == [row.to_json() for row in recorder.rows]
    assert read_epochs(run) == recorder.rows
    assert [name.name for name in run.iterdir()] == ["metrics.jsonl"]


def test_a_resumed_run_drops_the_epochs_that_it_repeats(tmp_path: Path) -> None:
    first = Recorder(tmp_path)
    for epoch in (1, 2, 3):
        first.log(Epoch(epoch=epoch, train_loss=1.0))
    kept = first.rows[:1]
    second = Recorder(tmp_path, rows=kept)
    second.log(Epoch(epoch=2, train_loss=9.0))
    assert strict(tmp_path / "metrics.jsonl") == [{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "train_loss": 9.0}]
    assert len(kept) == 1  # the caller's list stays its own


@pytest.mark.serial
def test_a_kill_in_the_middle_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    # Rows of 100 kB make a write long enough to be hit.
    script = (
        "import sys; from pathlib import Path; from fastres.utils.json_files import Entry, write_lines\n"
        "class Long(Entry): epoch: int; pad: str = 'x' * 100_000\n"
        "rows = []\n"
        "for epoch in range(1, 10**6):\n"
        "    rows = [*rows[-9:], Long(epoch=epoch, pad='x' * 100_000)]\n"
        "    write_lines(Path(sys.argv[1]) / 'metrics.jsonl', rows)"
    )
    for wait in (0.0, 0.013, 0.041, 0.097):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=PACKAGE.parent)
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(wait)
        writer.kill()
        assert writer.wait() == -9
        epochs = [row["epoch"] for row in strict(path)]
        assert epochs == list(range(epochs[0], epochs[-1] + 1))


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = Recorder(tmp_path, tensorboard=True)
    recorder.log(Epoch(epoch=1, step=10, lr=0.5, train_loss=2.0, val_accuracy=0.25))
    recorder.log(Epoch(epoch=2, step=20, lr=0.25, train_loss=float("nan"), val_accuracy=0.75))
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["accuracy/val", "loss/train", "lr"]
    assert [(event.step, event.value) for event in events.Scalars("accuracy/val")] == [(1, 0.25), (2, 0.75)]
    assert [(event.step, event.value) for event in events.Scalars("loss/train")] == [(1, 2.0)]


def test_a_missing_tensorboard_is_named_with_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # how Python marks a module that must not be imported
    with pytest.raises(UserError, match=r"pip install 'fastres\[tensorboard\]'"):
        Recorder(tmp_path, tensorboard=True)


# ---------------------------------------------------------------------------------------------------- Pace


def clocked(pace: Pace, durations: list[float], *, first: int = 0, images: int = 10) -> None:
    now = 1000.0
    for offset, seconds in enumerate(durations, 1):
        now += seconds
        pace.step(now, first + offset, images)


def test_the_time_left_ignores_the_first_step() -> None:
    pace = Pace(epochs=1, steps_per_epoch=100)
    pace.step(60.0, 1, 10)
    assert pace.left() is None and pace.images_per_second() is None
    for step in range(2, 21):
        pace.step(60.0 + 0.5 * (step - 1), step, 10)
    # 80 steps of half a second, ten images each; the times are exact in binary.
    assert pace.left() == 40.0
    assert pace.images_per_second() == 20.0


@given(
    per_epoch=st.integers(2, 50),
    epochs=st.integers(1, 20),
    seconds=st.floats(1e-4, 20.0),
    share=st.floats(0.0, 1.0),
    start=st.floats(0.0, 1.0),
)
def test_a_steady_run_is_estimated_right(
    per_epoch: int, epochs: int, seconds: float, share: float, start: float
) -> None:
    total = per_epoch * epochs
    first = int(start * (total - 2))  # a resumed run has done so many
    steps = max(3, int(share * (total - first)))
    steps = min(steps, total - first)
    pace = Pace(epochs, per_epoch)
    clocked(pace, [seconds] * steps, first=first)
    left = pace.left()
    if left is not None:  # none if the only interval was an end of an epoch
        # Sums of up to 1,000 durations near 1,000 s: rounding of 1e-13 s a step against steps of at least 1e-4 s.
        assert left == pytest.approx((total - first - steps) * seconds, rel=1e-6, abs=1e-6)


def test_the_first_partial_batch_which_compiles_does_not_count() -> None:
    pace = Pace(epochs=4, steps_per_epoch=15)
    clocked(pace, [20.0] + [0.0625] * 13 + [15.0])
    # 45 of 60 steps are left, a sixteenth of a second each; all is exact in binary.
    assert pace.left() == 45 * 0.0625
    assert pace.images_per_second() == 160.0


def test_a_stall_is_forgotten() -> None:
    pace = Pace(epochs=1, steps_per_epoch=1000)
    # A stall in the second step, when nothing is known to compare it with, and one later.
    clocked(pace, [60.0, 25.0] + [0.125] * 40 + [25.0] + [0.125] * 40)
    # The five exact stretches outvote that of the first stall: 917 steps of an eighth of a second.
    assert pace.left() == pytest.approx(917 * 0.125, rel=1e-9)


def test_a_lasting_slowness_is_believed() -> None:
    pace = Pace(epochs=1, steps_per_epoch=200)
    clocked(pace, [0.125] * 100 + [5.0] * 50)
    assert pace.left() == pytest.approx(50 * 5.0, rel=1e-9)


def test_a_change_of_speed_is_followed() -> None:
    pace = Pace(epochs=1, steps_per_epoch=1000)
    clocked(pace, [1.0] * 100 + [0.5] * 100)
    assert pace.left() == pytest.approx(800 * 0.5, rel=1e-9)


def test_the_ends_of_epochs_count_once_they_are_warm() -> None:
    pace = Pace(epochs=10, steps_per_epoch=4)
    steps = [0.5, 0.5, 0.5, 0.5]
    # The first end takes 40 s to compile, later ones 3 s; an interval over an end holds a step too.
    clocked(pace, [*steps, 40.5, *steps[1:], 3.5, *steps[1:], 3.5, *steps[1:]])
    # After 16 of 40 steps: 24 steps of 0.5 s, and 7 ends, that of the fourth epoch among them.
    assert pace.left() == pytest.approx(24 * 0.5 + 7 * 3.0, rel=1e-9)


def test_epochs_of_one_step_have_a_time_left() -> None:
    pace = Pace(epochs=10, steps_per_epoch=1)
    clocked(pace, [30.0, 20.0, 2.0, 2.0])
    # Seven ends of epochs are left, the running one included; a step and its end cannot be told apart.
    assert pace.left() == pytest.approx(7 * 2.0, rel=1e-9)


# ---------------------------------------------------------------------------------------------------- Progress

ROW = Epoch(
    epoch=1,
    step=100,
    lr=0.1,
    train_loss=1.23456,
    train_accuracy=0.5,
    val_loss=None,
    val_accuracy=0.25,
    seconds=50.0,
    images_per_second=1234.4,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(epochs=12, steps_per_epoch=100, batch_size=128, first_step=5, clock=clock) as progress:
        for step in range(6, 101):
            clock.now += 0.5
            progress.step(step, 128, 2.5, 0.125)
        progress.epoch(ROW)
        progress.message("[bold]as it is[/bold]")
        progress.epoch(ROW.updated(epoch=12, train_loss=0.5, train_accuracy=1.0, images_per_second=None))
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err and "\r" not in err
    lines = err.splitlines()
    assert lines[0] == "12 epochs of 100 steps, 128 images a step, from step 5"
    # 30 s are 60 steps: step 65 is the first shown, 1,135 steps are left of 1,200; 128 images in half a second.
    assert lines[1] == "epoch  1/12  step 65/100  loss 2.5000  acc 12.50%  256 images/s  0:09:28 left"
    assert lines[2] == (
        "epoch  1/12  lr 0.1       train  1.2346  50.00%  val     nan  25.00%      1,234 images/s     50.0 s"
        "  0:09:10 left"
    )
    assert lines[3] == "[bold]as it is[/bold]"
    assert lines[4] == (
        "epoch 12/12  lr 0.1       train  0.5000 100.00%  val     nan  25.00%          0 images/s     50.0 s"
    )
    assert len(lines) == 5


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(epochs=1, steps_per_epoch=100, batch_size=1, quiet=True, clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 60
            progress.step(step, 1)
        progress.epoch(ROW)
        progress.message("hello")
    assert capsys.readouterr() == ("", "")


@pytest.mark.serial
def test_a_step_costs_under_20_microseconds() -> None:
    progress = Progress(epochs=1, steps_per_epoch=10**6, batch_size=1)
    averages = []
    for attempt in range(3):
        started = time.process_time()  # another process may take the core meanwhile
        for step in range(attempt * 20_000 + 1, (attempt + 1) * 20_000 + 1):
            progress.step(step, 1, 0.5, 0.5)
        averages.append((time.process_time() - started) / 20_000)
    # The best of three. About 1 µs is measured.
    assert min(averages) < 20e-6


@pytest.mark.serial
def test_on_a_terminal_the_bar_moves_and_lines_stay() -> None:
    script = (
        "import time; from fastres.training.progress import Progress; from fastres.runs.schema import Epoch\n"
        "with Progress(epochs=2, steps_per_epoch=20_000, batch_size=8) as progress:\n"
        "    started = time.process_time()\n"
        "    for step in range(1, 20_001): progress.step(step, 8, 0.5, 0.75)\n"
        "    print((time.process_time() - started) / 20_000)\n"
        "    time.sleep(0.3); progress.step(20_001, 8, 0.5, 0.75)\n"
        f"    progress.epoch(Epoch(**{ROW.model_dump(exclude_unset=True)})); progress.message('[a] line')\n"
    )
    ours, theirs = pty.openpty()
    terminal = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, stdout=subprocess.PIPE, stderr=theirs, env=terminal
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # Linux says EIO when the other side is closed
        pass
    os.close(ours)
    assert child.stdout is not None
    cost = child.stdout.read().decode()
    child.stdout.close()
    assert child.wait() == 0, shown.decode()
    # Standard output has the printed number alone: it is never redirected into the bar. 2 ms a redraw, 4 a second.
    assert float(cost) < 20e-6
    text = shown.decode()
    assert "epoch 1/2  lr 0.1" in text and "[a] line" in text
    assert re.search(r"epoch 2/2  loss 0\.5000  acc 75\.00%  [\d,]+ images/s  0:00:\d\d left", text)
    assert "\x1b[2K" in text  # a line is erased and drawn anew


# ---------------------------------------------------------------------------------------------------- environment


def test_the_environment_is_json_and_true(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    facts = environment()
    assert Environment.model_validate_json(json.dumps(facts.to_json(), allow_nan=False)).to_json() == facts.to_json()
    assert facts["fastres"] == fastres.__version__
    assert facts["torch"] == torch.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu_model"]
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["variables"]["TRITON_CACHE_DIR"] == "/somewhere"
    assert "secret" not in json.dumps(facts.to_json())
    assert 1 <= facts["usable_cores"] <= facts["cores"]


def ask(root: Path, what: str, **variables: str) -> str:
    """Run Python in `root` with nothing but `variables` set, and return what it prints."""
    done = subprocess.run([sys.executable, "-c", what], cwd=root, env=variables, capture_output=True, check=True)
    return done.stdout.decode()


def test_the_environment_of_a_bare_machine_is_found_too(tmp_path: Path) -> None:
    what = "import json; from fastres.runs.environment import environment; print(json.dumps(environment().to_json()))"
    facts = json.loads(ask(PACKAGE.parent, what, PATH=str(tmp_path)))  # no git, no nvidia-smi, no HOME
    assert facts["commit"] is None and facts["dirty"] is None
    assert facts["fastres"] == fastres.__version__


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_own_checkout_only(tmp_path: Path) -> None:
    package = tmp_path / "checkout" / "fastres"
    package.mkdir(parents=True)
    for name in ("__init__.py", "_version.py", "errors.py", "utils", "runs"):
        copy = shutil.copytree if (PACKAGE / name).is_dir() else shutil.copy
        copy(PACKAGE / name, package / name)
    what = "from fastres.utils import machine; print(*machine._commit())"
    path = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "safe.directory=*")
        done = subprocess.run(["git", *who, *arguments], cwd=package.parent, env=path, capture_output=True, check=True)
        return done.stdout.decode().strip()

    assert ask(package.parent, what, **path) == "None None\n"
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    assert ask(package.parent, what, **path) == f"{git('rev-parse', 'HEAD')} False\n"
    (package / "utils" / "machine.py").write_text((package / "utils" / "machine.py").read_text() + "\n")
    assert ask(package.parent, what, **path) == f"{git('rev-parse', 'HEAD')} True\n"
    # Installed into a virtual environment inside a checkout, the package is no part of it.
    inside = package.parent / "venv" / "lib"
    shutil.copytree(package, inside / "fastres")
    assert ask(inside, what, **path) == "None None\n"
