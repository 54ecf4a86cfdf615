"""Weights & Biases, with the library itself, offline: what its file of a run holds, resumption, groups, failures."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb", reason="wandb is not installed: pip install 'fastres[wandb]'")

from fastres.errors import UserError
from fastres.experiments.sweep.plan import load
from fastres.experiments.sweep.run import sweep
from fastres.recipe import Recipe
from fastres.runs import tracking
from fastres.runs.schema import Epoch, Summary
from fastres.training import run as training
from fastres.training.run import resume, train

TINY: dict[str, Any] = {
    "data": {"train_images": 64, "test_images": 40, "split": "none"},
    "model": {"blocks": [1], "channels": [4], "strides": [4]},
    "train": {"epochs": 2.0, "batch_size": 32, "compile": False, "precision": "fp32"},
    "record": {"report": False, "wandb": "offline"},
}


def recipe(**tables: Any) -> Recipe:
    return Recipe.model_validate({name: {**TINY.get(name, {}), **tables.get(name, {})} for name in {**TINY, **tables}})


@pytest.fixture(autouse=True, scope="module")
def service() -> Iterator[None]:
    """The library's process ends with these tests."""
    yield
    import wandb

    wandb.teardown()


class Logged:
    """What a file of the library holds: a LevelDB log of protobuf records in blocks of 32 KiB, after seven bytes."""

    def __init__(self, path: Path) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        data, at, record = path.read_bytes(), 7, b""
        assert data[:4] in (b":W&B", b"")
        self.records: list[Any] = []
        while at + 7 <= len(data):  # what a run at work has written so far
            if 32768 - at % 32768 < 7:  # no place for a header: the block is filled up
                at += 32768 - at % 32768
                continue
            _, size, kind = struct.unpack_from("<IHB", data, at)
            if at + 7 + size > len(data):
                break
            record += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last part of one
                self.records.append(Record.FromString(record))
                record = b""

    def of(self, kind: str) -> list[Any]:
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def run(self) -> Any:
        return self.of("run")[0]

    @property
    def config(self) -> dict[str, Any]:
        found = {item.key: json.loads(item.value_json) for item in self.run.config.update}
        return {key: value for key, value in found.items() if key != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        rows = [{_key(item): json.loads(item.value_json) for item in row.item} for row in self.of("history")]
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]

    @property
    def summary(self) -> dict[str, Any]:
        updates = [item for record in self.of("summary") for item in record.update]
        return {_key(item): json.loads(item.value_json) for item in updates}


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def files(run: Path) -> list[Logged]:
    """Those of a run directory, oldest first."""
    return [Logged(path) for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb"))]


def ended(run: Path) -> list[Logged]:
    """Those of a run that ended in this process: the library's writes the last ones a moment later."""
    deadline = time.monotonic() + 20
    while not (found := files(run)) or not found[-1].of("exit"):
        assert time.monotonic() < deadline, "the library has written no end"
        time.sleep(0.01)
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, without what has no value."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if value is not None} for row in lines]


def test_a_run_is_there_as_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Config, history and summary; nothing of the library's own outside of the run directory, or on the terminal."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name in ("HOME", "WANDB_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(elsewhere))
    options = recipe(record={"wandb_project": "shapes"})
    run = train(options, out=tmp_path / "mine", device="cpu", quiet=True).run
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert not list(elsewhere.iterdir())
    (logged,) = ended(run)
    assert logged.config == json.loads(json.dumps(Recipe.load(run / "recipe.toml").model_dump()))
    assert (logged.run.project, logged.run.display_name, logged.run.run_group) == ("shapes", "mine", "")
    assert logged.history == rows(run) and len(rows(run)) == 2
    assert [record.step.num for record in logged.of("history")] == [1, 2]
    summary = json.loads((run / "summary.json").read_text())
    assert {key: logged.summary[key] for key in summary} == summary
    assert [record.exit_code for record in logged.of("exit")] == [0]
    assert logged.run.run_id == (run / "wandb" / "id").read_text().strip()


def test_a_resumed_run_goes_on_as_the_same(tmp_path: Path) -> None:
    def interrupt(seen: list[dict[str, Any]]) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(recipe(train={"epochs": 3.0}), out=run, device="cpu", quiet=True, on_epoch=interrupt)
    resume(run, device="cpu", quiet=True)
    first, second = ended(run)
    assert first.run.run_id == second.run.run_id
    assert [row["epoch"] for row in first.history] == [1, 2]
    assert [row["epoch"] for row in second.history] == [3]
    assert first.history + second.history == rows(run)
    assert [logged.of("exit")[0].exit_code for logged in (first, second)] == [1, 0]


def test_a_run_that_was_untracked_when_interrupted_brings_its_rows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    known = [Epoch(epoch=1, train_loss=2.0, images_per_second=None), Epoch(epoch=2, train_loss=1.0)]
    tracker = tracking.Tracker(run, recipe(), known, pytest.fail)
    tracker.log(Epoch(epoch=3, train_loss=0.5))
    tracker.close(Summary(test_accuracy=0.5))
    (logged,) = ended(run)
    assert logged.summary["test_accuracy"] == 0.5
    losses = [(row["epoch"], row["train_loss"]) for row in logged.history]
    assert losses == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert "images_per_second" not in logged.history[0]


def test_the_runs_of_a_sweep_are_a_group_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe(sweep={"grid": {"train.seed": [0, 1]}}, train={"epochs": 1.0}).to_toml())
    folder = sweep(load(path), out=tmp_path / "seeds", device="cpu", quiet=True).folder
    found = {run.name: ended(run)[0].run for run in folder.iterdir() if run.is_dir()}
    assert {name: (run.display_name, run.run_group) for name, run in found.items()} == {
        "seed=0": ("seed=0", "seeds"),
        "seed=1": ("seed=1", "seeds"),
    }
    assert len({run.run_id for run in found.values()}) == 2


def test_names_of_runs_in_runs(tmp_path: Path) -> None:
    assert tracking.names(tmp_path / "a") == ("a", None)
    assert tracking.names(tmp_path / "a" / "rounds" / "1") == ("a/rounds/1", "a")
    assert tracking.names(tmp_path / "a" / "teacher") == ("teacher", None), "a run of that name"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "recipe.toml").write_text("")
    assert tracking.names(tmp_path / "a" / "teacher") == ("a/teacher", "a")
    (tmp_path / "sweep.toml").write_text("")
    assert tracking.names(tmp_path / "a" / "rounds" / "1") == ("a/rounds/1", tmp_path.name)


def test_the_tracker_changes_no_bit_and_no_hash(tmp_path: Path) -> None:
    tracked, alone = recipe(), recipe(record={"wandb": "off"})
    assert tracked.hash() == alone.hash()
    finals = []
    for name, options in (("tracked", tracked), ("alone", alone)):
        run = train(options, out=tmp_path / name, device="cpu", quiet=True).run
        finals.append((run / "checkpoints" / "final.safetensors").read_bytes())
    assert finals[0] == finals[1]
    assert not (tmp_path / "alone" / "wandb").exists()


@pytest.mark.parametrize("when", ["begin", "log", "end"])
def test_a_failing_tracker_costs_a_message(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def fail(*_: Any, **__: Any) -> None:
        raise wandb.Error("the server is on fire\nand this is how")

    run = tmp_path / "run"
    if when == "begin":  # as a file in the place of its folder would
        monkeypatch.setattr(wandb, "init", fail)
    else:
        monkeypatch.setattr(wandb.Run, {"log": "log", "end": "finish"}[when], fail)
    result = train(recipe(), out=run, device="cpu")
    err = capsys.readouterr().err
    assert err.count("the run goes on without it (Error: the server is on fire)") == 1
    assert "Traceback" not in err
    assert result.summary["stopped"] == "completed" and len(rows(run)) == 2


def test_what_is_missing_is_said_before_there_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # how Python marks a module that must not be imported
    with pytest.raises(UserError, match=r"pip install 'fastres\[wandb\]'"):
        train(recipe(), out=tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def unknowing() -> dict[str, str]:
    """The environment without the variables by which processes share the library's process, and an account."""
    return {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}


def test_nobody_imports_it_unasked() -> None:
    script = "import sys, fastres.training.run, fastres.cli.app; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_online_without_an_account_is_one_line(tmp_path: Path) -> None:
    """In a process of its own: the library remembers accounts and environment."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipe(record={"wandb": "online"}).to_toml())
    environment = unknowing() | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    command = [sys.executable, "-m", "fastres", "train", str(path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    expected = "fastres: record.wandb = 'online' needs an account: run `wandb login`, or set record.wandb = 'offline'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert not (tmp_path / "run").exists()


def service_of(process: subprocess.Popen[str]) -> int:
    """The process that the library has started for ours: its command names whom it serves."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(b"/wandb-core") and str(process.pid).encode() in words:
                return int(path.parent.name)
    raise AssertionError("the library has no process")


def gone(pid: int, seconds: float) -> bool:
    """Whether a process has ended, or does so in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.serial
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_its_process_ends_with_ours(number: signal.Signals, tmp_path: Path) -> None:
    """Whatever ends ours; Ctrl-C means what it always does, and the terminal's reaches no process of the library."""
    path, run = tmp_path / "recipe.toml", tmp_path / "run"
    path.write_text(recipe(train={"epochs": 3000.0}).to_toml())
    command = [sys.executable, "-m", "fastres", "train", str(path), "--out", str(run)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, env=unknowing(), **pipes)
    try:
        while process.poll() is None and not any(logged.history for logged in files(run)):
            time.sleep(0.05)
        core = service_of(process)
        os.killpg(process.pid, number)
        err = process.communicate()[1]
    finally:
        process.kill()
        process.communicate()
    # It looks for its parent once a second.
    assert gone(core, 20)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert f"--resume {run}" in err and "Traceback" not in err
        (logged,) = files(run)
        assert logged.of("exit")[0].exit_code == 1
    else:
        assert process.returncode == -signal.SIGKILL
    resumed = training.resume(run, device="cpu", quiet=True, on_epoch=lambda _: "enough")
    assert resumed.summary["stopped"] == "enough"
    known = (run / "wandb" / "id").read_text().strip()
    assert [logged.run.run_id for logged in ended(run)] == [known, known]
