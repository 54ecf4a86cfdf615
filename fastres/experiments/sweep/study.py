"""The study of a search: what Optuna knows of its trials, in an SQLite file. Its values are JSON: no pickles."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fastres.errors import UserError
from fastres.recipe import RangeConfig, SearchConfig
from fastres.runs.schema import TrialFacts
from fastres.utils.files import write_bytes
from fastres.utils.json_files import fault_in
from fastres.utils.progress import say

if TYPE_CHECKING:
    import optuna

STUDY = "study.db"
LOCK_SECONDS = 60.0
"""Seconds to wait for another process that writes the study."""
PRUNE_AFTER = 5
"""Completed trials from which on the median prunes."""


def import_optuna() -> Any:
    """Optuna, without its log. Raises UserError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("[sweep.search] needs Optuna: run pip install 'fastres[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Damaged(Exception):
    """A study holds what no search wrote."""


@contextmanager
def reading() -> Iterator[None]:
    """Raise Damaged for whatever Optuna makes of a study that holds anything; what its storage itself raises, which
    `storage_faults` tells apart, stays. Nothing but calls of Optuna belongs into the block."""
    optuna = import_optuna()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, Damaged):
        raise
    except Exception as error:
        raise Damaged(str(error)) from error


@contextmanager
def storage_faults(path: Path) -> Iterator[None]:
    """Turn what a locked, damaged or foreign study raises, or a full disk, into a UserError."""
    optuna = import_optuna()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, Damaged) as error:
        text = f"{error} {error.__cause__}"
        if "locked" in text:
            said = f"another process holds {path}: end it, and the same command goes on"
        elif "disk is full" in text:
            said = f"cannot write {path}: the disk is full: free some space, and the same command goes on"
        elif "readonly" in text:
            said = f"cannot write {path}: no right to write there: change its permissions, or give another --out"
        else:
            said = f"{path} is damaged, or no study of this version of Optuna: give another --out"
        raise UserError(said) from error


def open_study(folder: Path, search: SearchConfig, metric: str) -> "optuna.Study":
    """The study in `folder`, made where there is none. Raises UserError where its file cannot be used."""
    optuna = import_optuna()
    from sqlalchemy.engine import URL

    path = (folder / STUDY).absolute()
    for other in (path, *(path.with_name(f"{path.name}-{kind}") for kind in ("journal", "wal", "shm"))):
        if other.is_symlink() or (other.exists() and not other.is_file()):  # SQLite would write through it
            raise UserError(f"{other} is a link or no plain file, which no study is: remove it")
    _say_if_held(path)
    with storage_faults(path), reading():
        try:
            direction = "minimize" if metric.endswith("loss") else "maximize"
            if not path.exists():
                write_bytes(path, _empty_study(direction))
            storage = optuna.storages.RDBStorage(
                URL.create("sqlite", database=str(path)).render_as_string(),
                engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
            )
            pruner = optuna.pruners.NopPruner()
            if search.pruner == "median":
                pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER)
            return optuna.create_study(
                storage=storage, study_name="fastres", direction=direction, pruner=pruner, load_if_exists=True
            )
        except RuntimeError as error:  # another version's tables
            raise UserError(f"{path} is no study of this version of Optuna: give another --out") from error


def _empty_study(direction: str) -> bytes:
    """An SQLite file without trials. Optuna makes its tables in many transactions: in the file itself, a process that
    is killed would leave some of them, and a study that is damaged for ever."""
    optuna = import_optuna()
    storage = optuna.storages.RDBStorage("sqlite://")  # in memory
    optuna.create_study(storage=storage, study_name="fastres", direction=direction)
    with closing(storage.engine.raw_connection()) as connection:
        content: bytes = connection.driver_connection.serialize()
    return content


def _say_if_held(path: Path) -> None:
    """Say that another process writes the study, for which opening it then waits."""
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as study:
            study.execute("BEGIN IMMEDIATE")
            study.execute("ROLLBACK")
    except sqlite3.Error as error:  # what else may be wrong with it, opening it tells
        if "locked" in str(error):
            say(f"another process holds {path}: waiting for it, {LOCK_SECONDS:.0f} s at most")


def facts_of(trial: "optuna.trial.FrozenTrial | optuna.Trial") -> TrialFacts:
    """What the search itself noted of a trial. Raises Damaged where that was not it."""
    try:
        return TrialFacts.model_validate(trial.user_attrs)
    except ValidationError as error:
        raise Damaged(fault_in(error)) from error


def values_of(trial: "optuna.trial.FrozenTrial | optuna.Trial", search: SearchConfig) -> dict[str, Any]:
    """The parameters of a trial as values of the recipe. Raises Damaged for values that the search has no part in."""
    values = {}
    for key, inside in search.parameters.items():
        with reading():
            if isinstance(inside, RangeConfig):
                value = trial.params[key]
                slack = 1e-9 * (inside.high - inside.low)  # the steps to the end are rounded
                inside_it = inside.low - slack <= value <= inside.high + slack
            else:
                value = json.loads(trial.params[key])
                inside_it = value in inside
            if not inside_it:
                raise Damaged(f"{key} = {value!r:.40} of trial {trial.number}")
            values[key] = value
    return values


def counted(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """The trials that count, in the order of their folders: those with a folder, each by its last entry."""
    with reading():
        trials = [(facts_of(trial).folder, trial) for trial in study.get_trials(deepcopy=False)]
    last = {folder: trial for folder, trial in trials if folder is not None}
    return [last[name] for name in sorted(last)]


def recover(study: "optuna.Study") -> None:
    """Enter the trials anew that a process left behind; nobody may be at work."""
    from optuna.trial import TrialState

    with reading():
        waiting = [facts_of(trial).folder for trial in study.get_trials(states=(TrialState.WAITING,))]
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            # Entered before the old entry is ended: a process that is killed in between must not lose the trial.
            if facts_of(trial).folder not in (None, *waiting):
                study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
            study.tell(trial.number, state=TrialState.FAIL)
