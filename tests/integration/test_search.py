"""`[sweep.search]`: trials go by validation images alone, are pruned, interrupted and shared among processes."""

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Engine, event

from fastres.errors import UserError
from fastres.experiments.sweep import search, study
from fastres.recipe import Recipe, SearchConfig
from fastres.runs import checkpoint
from fastres.runs.schema import Epoch
from fastres.training.run import train

SEARCH = """
[sweep.search]
trials = 5
sampler = "random"

[sweep.search.parameters]
"optimizer.lr" = { low = 1e-3, high = 0.3, log = true }
"train.batch_size" = { low = 16, high = 48, step = 16 }
"model.channels" = [[4, 8], [8, 8]]
"""


@pytest.fixture
def searched(tiny: Path) -> Path:
    """The tiny recipe, which trains in a second, with a search of five trials."""
    tiny.write_text(tiny.read_text() + SEARCH)
    return tiny


def command(recipe: Path, out: Path, *settings: str) -> list[object]:
    options = [part for setting in settings for part in ("--set", setting)]
    return ["sweep", recipe, "--out", out, "--device", "cpu", *options]


def trials_of(out: Path) -> list[optuna.trial.FrozenTrial]:
    return study.counted(optuna.load_study(study_name="fastres", storage=f"sqlite:///{out / study.STUDY}"))


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------- a search


def test_a_search_goes_by_validation_images_alone(fastres: Any, searched: Path, tmp_path: Path) -> None:
    """What the study knows are numbers of the validation images, and no test result but the best trial's is written."""
    out = tmp_path / "out"
    code, printed, err = fastres(*command(searched, out))
    assert code == 0, err
    assert "trial-0005 of 5: optimizer.lr = " in err and " left\n" in err
    trials = trials_of(out)
    assert [trial.user_attrs["folder"] for trial in trials] == [f"trial-000{number}" for number in range(1, 6)]
    for trial in trials:
        run = out / trial.user_attrs["folder"]
        rows, recipe = rows_of(run), Recipe.load(run / "recipe.toml")
        assert trial.value == rows[-1]["val_accuracy"]
        assert trial.intermediate_values == {row["epoch"]: row["val_accuracy"] for row in rows}
        assert 1e-3 <= recipe.optimizer.lr <= 0.3 and recipe.optimizer.lr == trial.params["optimizer.lr"]
        assert recipe.train.batch_size in (16, 32, 48) and recipe.model.channels in ([4, 8], [8, 8])
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 5
    summary = json.loads((out / "sweep.json").read_text())
    values = [row["val_accuracy"] for row in summary["points"]]
    assert values == sorted((trial.value for trial in trials), reverse=True)
    assert all(row["test_accuracy"] is None and row["test_loss"] is None for row in summary["points"])
    best = json.loads((out / summary["points"][0]["name"] / "summary.json").read_text())
    assert summary["best"] == {
        "name": summary["points"][0]["name"],
        "test_accuracy": best["test_accuracy"],
        "test_loss": best["test_loss"],
        "test_images": 100,
        "val_accuracy": values[0],
    }
    assert f"Its test accuracy is {best['test_accuracy']:.2%}" in printed
    assert "test accuracy |" not in (out / "sweep.md").read_text()


def test_more_trials_are_added_and_another_recipe_is_refused(fastres: Any, searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fastres(*command(searched, out, "sweep.search.trials=2"))[0] == 0
    first = [trial.params for trial in trials_of(out)]
    code, _, err = fastres(*command(searched, out, "sweep.search.trials=3"))
    assert code == 0, err
    assert [trial.params for trial in trials_of(out)][:2] == first and len(trials_of(out)) == 3
    code, _, err = fastres(*command(searched, out, "train.epochs=3"))
    assert (code, err.count("\n")) == (2, 1), err
    assert f"{out} was begun with another recipe" in err


def test_an_interrupted_search_goes_on(
    fastres: Any, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the trials, values and weights of one that nobody disturbed, though TPE has begun to model."""
    monkeypatch.setattr(search, "RANDOM_TRIALS", 2)
    settings = ["sweep.search.sampler=tpe", "sweep.metric=val_loss", "sweep.search.pruner=none"]
    assert fastres(*command(searched, tmp_path / "straight", *settings))[0] == 0
    out, original = tmp_path / "out", search._Watch.__call__

    def interrupted(self: Any, rows: list[dict[str, Any]]) -> str | None:
        if self.trial.user_attrs["folder"] == "trial-0003" and len(rows) == 1:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(search._Watch, "__call__", interrupted)
    code, printed, err = fastres(*command(searched, out, *settings))
    monkeypatch.setattr(search._Watch, "__call__", original)
    assert (code, printed) == (130, ""), err
    assert err.endswith(f"interrupted; 2 of 5 trials are finished; the same command with --out {out} goes on\n")
    assert not (out / "sweep.json").exists()
    code, _, err = fastres(*command(searched, out, *settings))
    assert code == 0, err
    assert "from step" in err, "the interrupted trial was resumed"
    results = []
    for folder in (out, tmp_path / "straight"):
        results.append([(trial.params, trial.value, trial.intermediate_values) for trial in trials_of(folder)])
    assert results[0] == results[1]
    assert not list(out.glob("trial-0006"))


def test_a_trial_that_ended_before_it_was_told_is_picked_up(
    fastres: Any, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original = tmp_path / "out", search.results.read_point
    seen = itertools.count()

    def killed(run: Path, *arguments: Any) -> Any:
        row = original(run, *arguments)
        if row is not None and next(seen) == 1:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(search.results, "read_point", killed)
    assert fastres(*command(searched, out))[0] == 130
    monkeypatch.setattr(search.results, "read_point", original)
    before = (out / "trial-0002" / "summary.json").stat().st_mtime_ns
    code, _, err = fastres(*command(searched, out))
    assert code == 0, err
    assert (out / "trial-0002" / "summary.json").stat().st_mtime_ns == before
    trial = trials_of(out)[1]
    assert trial.state == TrialState.COMPLETE
    assert trial.intermediate_values == {row["epoch"]: row["val_accuracy"] for row in rows_of(out / "trial-0002")}


def test_a_study_is_whole_or_not_there(tmp_path: Path) -> None:
    """Its tables take many transactions, before each of which a process may be killed."""
    options = SearchConfig.model_validate({"parameters": {"optimizer.lr": [0.1, 0.2]}})
    for count in itertools.count():
        folder, left = tmp_path / str(count), itertools.count(count, -1)
        folder.mkdir()

        def killed(*arguments: Any, left: Iterator[int] = left) -> None:
            if next(left) == 0:
                raise KeyboardInterrupt

        event.listen(Engine, "commit", killed)
        try:
            study.open_study(folder, options, "val_accuracy")
            break  # that was after the last of them
        except KeyboardInterrupt:
            event.remove(Engine, "commit", killed)
            assert study.open_study(folder, options, "val_accuracy").get_trials() == []
        finally:
            if event.contains(Engine, "commit", killed):
                event.remove(Engine, "commit", killed)
    assert count > 3


def test_no_trial_is_lost_between_two_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it enters an interrupted trial anew leaves it to the next one, which enters it
    once."""
    options = SearchConfig.model_validate({"parameters": {"optimizer.lr": [0.1, 0.2]}})
    known = study.open_study(tmp_path, options, "val_accuracy")
    known.ask().set_user_attr("folder", "trial-0001")

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    for name in ("enqueue_trial", "tell"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(optuna.Study, name, killed)
            study.recover(known)
        assert study.counted(known)[0].state in (TrialState.RUNNING, TrialState.WAITING)
    study.recover(known)
    assert [trial.state for trial in known.get_trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_the_metric_is_that_of_the_kept_weights(fastres: Any, searched: Path, tmp_path: Path) -> None:
    settings = ["train.best=val_accuracy", "train.epochs=4", "sweep.metric=val_loss", "sweep.search.trials=2"]
    out = tmp_path / "out"
    assert fastres(*command(searched, out, *settings))[0] == 0
    for trial in trials_of(out):
        run = out / trial.user_attrs["folder"]
        best = json.loads((run / "summary.json").read_text())["best"]
        assert trial.value == rows_of(run)[best["epoch"] - 1]["val_loss"]


def test_trials_without_a_result_do_not_end_a_search(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    """A loss that is not finite, and values that do not go together."""
    tiny.write_text(
        tiny.read_text().replace("[model]", "[model]\nmax_parameters = 5000")
        + '[sweep.search]\ntrials = 8\n[sweep.search.parameters]\n"optimizer.lr" = [0.05, 1e30]\n'
        + '"model.channels" = [[4, 8], [64, 64]]\n'
    )
    out = tmp_path / "out"
    code, _, err = fastres(*command(tiny, out))
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads((out / "sweep.json").read_text())["points"]}
    assert len(rows) == 8
    for row in rows.values():
        lr, channels = row["settings"]["optimizer.lr"], row["settings"]["model.channels"]
        expected = "failed" if channels == [64, 64] else "diverged" if lr == 1e30 else "complete"
        assert row["state"] == expected
    states = [trial.state for trial in trials_of(out)]
    assert states.count(TrialState.FAIL) == sum(row["state"] != "complete" for row in rows.values())
    assert {row["state"] for row in rows.values()} == {"failed", "diverged", "complete"}, "the seed draws each kind"
    assert fastres(*command(tiny, out))[0] == 0 and len(trials_of(out)) == 8


# ---------------------------------------------------------------------------------------------------- pruning


def test_the_median_prunes(tmp_path: Path) -> None:
    """After epoch 1 the completed trials had 0.3, 0.5 and 0.7: a trial whose best is below 0.5 ends, but not after its
    last epoch."""
    options = SearchConfig.model_validate({"parameters": {"optimizer.lr": [0.1, 0.2]}})
    known = study.open_study(tmp_path, options, "val_accuracy")
    for start in (0.3, 0.5, 0.7, 0.5, 0.5):
        trial = known.ask()
        trial.report(start, 1)
        known.tell(trial, start)

    def watch(epochs: float) -> search._Watch:
        watch = object.__new__(search._Watch)
        watch.metric, watch.trial, watch.epochs, watch.reported = "val_accuracy", known.ask(), epochs, 0
        return watch

    assert watch(3.0)([Epoch(epoch=1, val_accuracy=0.4)]) == "pruned"
    assert watch(3.0)([Epoch(epoch=1, val_accuracy=0.6)]) is None
    assert watch(1.0)([Epoch(epoch=1, val_accuracy=0.4)]) is None
    assert watch(0.5)([Epoch(epoch=1, val_accuracy=0.4)]) is None


def test_a_pruned_trial_is_a_whole_run(
    fastres: Any, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 1)
    out = tmp_path / "out"
    code, printed, err = fastres(*command(searched, out, "sweep.search.trials=3"))
    assert code == 0, err
    assert "pruned after epoch 1" in err
    summary = json.loads((out / "trial-0002" / "summary.json").read_text())
    assert (summary["stopped"], summary["epochs"]) == ("pruned", 1)
    assert [trial.state for trial in trials_of(out)] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert json.loads((out / "sweep.json").read_text())["points"][2]["state"] == "pruned"
    assert "%, pruned" in printed


def test_on_epoch_hears_every_epoch_and_can_stop(tiny: Path, tmp_path: Path) -> None:
    heard: list[list[int]] = []

    def listen(rows: list[Epoch]) -> str | None:
        heard.append([row["epoch"] for row in rows])
        return "enough" if len(rows) == 2 else None

    recipe = Recipe.load(tiny, ["train.epochs=5"])
    result = train(recipe, out=tmp_path / "run", device="cpu", quiet=True, on_epoch=listen)
    assert heard == [[1], [1, 2]]
    assert (result.summary["stopped"], result.summary["epochs"]) == ("enough", 2)


# ---------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_workers_share_trials_and_threads(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "fastres", *map(str, command(searched, out)), "--workers", "2"],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "worker 1: trial-000" in done.stderr and "worker 2: trial-000" in done.stderr
    assert sorted(path.name for path in out.glob("trial-*")) == [f"trial-000{number}" for number in range(1, 6)]
    assert len(json.loads((out / "sweep.json").read_text())["points"]) == 5
    for run in out.glob("trial-*"):
        assert json.loads((run / "environment.json").read_text())["threads"] == 1


@pytest.mark.slow
@pytest.mark.kills
def test_a_killed_worker_is_one_line_and_the_search_goes_on(fastres: Any, searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "fastres", *map(str, command(searched, out, "train.epochs=60")), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list(out.glob(f"trial-*/{checkpoint.LAST}"))) < 2:
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 2, err
    assert "fastres: a worker was killed by SIGKILL: the same command goes on" in err and "Traceback" not in err
    code, _, err = fastres(*command(searched, out, "train.epochs=60"))
    assert code == 0, err
    assert len(json.loads((out / "sweep.json").read_text())["points"]) == 5


@pytest.mark.slow
@pytest.mark.kills
def test_ctrl_c_stops_all_workers_once(fastres: Any, searched: Path, tmp_path: Path) -> None:
    """A terminal's Ctrl-C goes to the whole process group; each worker must be asked once, or it would not save."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "fastres", *map(str, command(searched, out, "train.epochs=60")), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and len(list(out.glob(f"trial-*/{checkpoint.LAST}"))) < 2:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    printed, err = process.communicate()
    assert process.returncode == 130, err
    assert printed == "" and "Traceback" not in err
    assert f"trials are finished; the same command with --out {out} goes on" in err
    assert err.count("SIGINT: saving after this step") == 2
    code, _, err = fastres(*command(searched, out, "train.epochs=60"))
    assert code == 0, err
    assert len(trials_of(out)) == 5 and all(trial.state.is_finished() for trial in trials_of(out))


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["data.split=none"], "add --set data.split=holdout"),
        (["method.name=pseudo_label", "method.unlabelled=shapes10"], "pseudo_label' trains in rounds: leave it out"),
        (["data.split=report"], "never trained on: add --set data.split=holdout"),
        (["train.best=test_loss", "eval.test_every=1"], "chooses by test images: add --set train.best=val_accuracy"),
        (["sweep.metric=test_accuracy"], "a search by test_accuracy would fit the test images"),
        (["sweep.search.parameters.train.seed=[0, 1]"], "'train.seed' changes the validation images"),
        (
            ["sweep.search.parameters.data.validation_share=[0.1, 0.2]"],
            "'data.validation_share' changes the validation",
        ),
        (["sweep.search.parameters.optimizer.lrr=[0.1, 0.2]"], "'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        (["sweep.search.parameters.optimizer.lr.low=0"], "parameters.optimizer.lr: log needs a low above 0"),
        (["sweep.search.parameters.optimizer.lr.steps=1"], "did you mean 'sweep.search.parameters.optimizer.lr.step'?"),
        (["sweep.search.parameters.optimizer.lr.high=1e-4"], "low = 0.001 must be below high = 0.0001"),
        (["sweep.search.parameters.train.batch_size.step=15"], "lead from low to high in whole steps"),
        (["sweep.search.parameters.train.batch_size.low=0"], "'train.batch_size' is 0"),
        (["sweep.search.parameters.model.channels=[[4, 8]]"], "at least 2 items"),
        (["optimizer.lr=0.1"], "the points of the sweep set 'optimizer.lr' themselves"),
        (["sweep.grid.train.seed=[0, 1]"], "a search chooses its own points"),
        (["sweep.search.sampler=tpa"], "did you mean 'tpe'?"),
    ],
    ids=str,
)
def test_what_no_search_can_do_is_one_line(
    settings: list[str], expected: str, fastres: Any, searched: Path, tmp_path: Path
) -> None:
    code, printed, err = fastres(*command(searched, tmp_path / "out", *settings))
    assert (code, printed, err.count("\n")) == (2, "", 1), err
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_what_the_command_refuses(
    fastres: Any, searched: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = fastres(*command(searched, tmp_path / "out"), "--workers", 0)
    assert (code, err.count("\n")) == (2, 1) and "--workers 0: give the number of processes, at least 1" in err
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = fastres(*command(searched, tmp_path / "out"))
    assert (code, err.count("\n")) == (2, 1) and "pip install 'fastres[sweep]'" in err
    tiny.write_text(tiny.read_text().partition("[sweep.search]")[0] + '[sweep.grid]\n"train.seed" = [0, 1]\n')
    code, _, err = fastres(*command(tiny, tmp_path / "out"), "--workers", 2)
    assert (code, err.count("\n")) == (2, 1) and "--workers is for a [sweep.search]" in err
    assert not (tmp_path / "out").exists()


def test_a_study_that_cannot_be_used_is_one_line(
    fastres: Any, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert fastres(*command(searched, out, "sweep.search.trials=1"))[0] == 0
    monkeypatch.setattr(study, "LOCK_SECONDS", 0.1)
    with sqlite3.connect(out / study.STUDY) as other:
        other.execute("BEGIN EXCLUSIVE")
        code, _, err = fastres(*command(searched, out))
        other.rollback()
    other.close()
    assert (code, err.count("\n")) == (2, 2), err
    assert f"another process holds {out / study.STUDY}: waiting for it" in err.splitlines()[0]
    assert f"another process holds {out / study.STUDY}: end it" in err.splitlines()[1]
    for content in (b"no database at all" * 100, (out / study.STUDY).read_bytes()[:5000]):
        (out / study.STUDY).write_bytes(content)
        code, _, err = fastres(*command(searched, out))
        assert (code, err.count("\n")) == (2, 1), err
        assert f"{out / study.STUDY} is damaged, or no study of this version of Optuna" in err


def test_ranges_know_whole_numbers() -> None:
    def parameter(text: dict[str, Any]) -> Any:
        return SearchConfig.model_validate({"parameters": {"a.b": text}}).parameters["a.b"]

    assert parameter({"low": 1, "high": 5}).whole
    assert not parameter({"low": 1, "high": 5.0}).whole
    assert not parameter({"low": 0, "high": 1, "step": 0.25}).whole
    assert parameter({"low": 0.1, "high": 0.3, "step": 0.1}).step == 0.1, "0.1 + 0.2 is not 0.3 in binary"


def test_show_prints_a_search(fastres: Any, searched: Path) -> None:
    code, printed, err = fastres("show", searched)
    assert code == 0, err
    assert "[sweep.search.parameters" in printed and "points, for" not in printed
    with pytest.raises(UserError, match="fastres sweep"):
        train(Recipe.load(searched))
