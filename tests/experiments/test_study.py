"""Studies: what somebody else wrote into study.db is told in a line, and nothing is written through a link."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fastres.errors import UserError
from fastres.experiments.sweep.study import STUDY, counted, open_study, recover, storage_faults, values_of
from fastres.recipe import SearchConfig

pytest.importorskip("optuna")

SEARCH = SearchConfig.model_validate(
    {
        "parameters": {
            "optimizer.lr": {"low": 0.01, "high": 0.3, "log": True},
            "optimizer.momentum": {"low": 0.0, "high": 0.9, "step": 0.3},
            "train.batch_size": {"low": 8, "high": 64},
            "model.channels": [[4, 8], [8, 16]],
        }
    }
)
VALUES = {"optimizer.lr": 0.1, "optimizer.momentum": 0.3, "train.batch_size": 16, "model.channels": "[4, 8]"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A study of two trials: a finished one, and one that a process left behind."""
    folder = tmp_path_factory.mktemp("study")
    study = open_study(folder, SEARCH, "val_accuracy")
    for number in range(1, 3):
        study.enqueue_trial(VALUES, user_attrs={"folder": f"trial-{number:04}"})
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 0.01, 0.3, log=True)
        trial.suggest_float("optimizer.momentum", 0.0, 0.9, step=0.3)
        trial.suggest_int("train.batch_size", 8, 64)
        trial.suggest_categorical("model.channels", ["[4, 8]", "[8, 16]"])
        trial.report(0.5, 1)
        if number == 1:
            study.tell(trial, 0.5)
    return (folder / STUDY).read_bytes()


def read(folder: Path) -> list[dict[str, Any]]:
    """All that a search reads of its study."""
    study = open_study(folder, SEARCH, "val_accuracy")
    with storage_faults(folder / STUDY):
        recover(study)
        return [values_of(trial, SEARCH) for trial in counted(study) if trial.state.is_finished()]


def test_what_was_written_is_read(begun: bytes, tmp_path: Path) -> None:
    (tmp_path / STUDY).write_bytes(begun)
    assert read(tmp_path) == [VALUES | {"model.channels": [4, 8]}]


DAMAGE = {
    "a folder elsewhere": "UPDATE trial_user_attributes SET value_json = '\"../../elsewhere\"'",
    "an absolute folder": "UPDATE trial_user_attributes SET value_json = '\"/tmp\"'",
    "a folder that is a number": "UPDATE trial_user_attributes SET value_json = '3'",
    "a folder that is no JSON": "UPDATE trial_user_attributes SET value_json = 'x'",
    "a value outside its range": "UPDATE trial_params SET param_value = 1e9 WHERE param_name = 'optimizer.lr'",
    "a value that is none": "UPDATE trial_params SET param_value = 'x' WHERE param_name = 'optimizer.lr'",
    "a value of NaN": "UPDATE trial_params SET param_value = NULL WHERE param_name = 'train.batch_size'",
    "a choice that there is not": "UPDATE trial_params SET param_value = 7 WHERE param_name = 'model.channels'",
    "another distribution": "UPDATE trial_params SET distribution_json = '{}'",
    "another choice": "UPDATE trial_params SET distribution_json = replace(distribution_json, '4', '5')",
    "no values": "DELETE FROM trial_params",
    "a state that there is not": "UPDATE trials SET state = 'NONE'",
    "no study": "DELETE FROM studies",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_no_search_wrote_is_a_line(what: str, begun: bytes, tmp_path: Path) -> None:
    (tmp_path / STUDY).write_bytes(begun)
    with closing(sqlite3.connect(tmp_path / STUDY)) as damaged:
        damaged.execute(DAMAGE[what])
        damaged.commit()
    with pytest.raises(UserError, match=r"study\.db is damaged, or no study of this version of Optuna") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "count", [15, pytest.param(5000, marks=(pytest.mark.slow, pytest.mark.fuzz))], ids=["sample", "all"]
)
def test_a_damaged_database_is_read_or_told(count: int, begun: bytes, tmp_path: Path) -> None:
    for seed in range(count):
        source = random.Random(seed)
        data = bytearray(begun)
        for _ in range(source.choice((1, 1, 4, 50))):
            place = source.randrange(len(data))
            data[place : place + 8] = source.randbytes(8)
        (tmp_path / STUDY).write_bytes(data)
        try:
            read(tmp_path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1, error


@pytest.mark.parametrize("name", [STUDY, f"{STUDY}-journal", f"{STUDY}-wal"])
def test_no_study_is_written_through_a_link(name: str, begun: bytes, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim.db", tmp_path / "sweep"
    folder.mkdir()
    with closing(sqlite3.connect(victim)) as mine:
        mine.execute("CREATE TABLE mine (value)")
    before = victim.read_bytes()
    if name != STUDY:
        (folder / STUDY).write_bytes(begun)
    (folder / name).symlink_to(victim)
    with pytest.raises(UserError, match=f"{name} is a link or no plain file"):
        read(folder)
    assert victim.read_bytes() == before
