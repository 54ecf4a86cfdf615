"""The study of a search: what Optuna knows of its trials, in an SQLite file. Its values are JSON: no pickles."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastres.errors import UserError
from fastres.recipe import SearchConfig
from fastres.utils.files import write_bytes
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


@contextmanager
def storage_faults(path: Path) -> Iterator[None]:
    """Turn what a locked, damaged or foreign study raises, or a full disk, into a UserError."""
    optuna = import_optuna()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
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
    _say_if_held(path)
    with storage_faults(path):
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


def counted(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """The trials that count, in the order of their folders: those with a folder, each by its last entry."""
    last = {
        trial.user_attrs["folder"]: trial for trial in study.get_trials(deepcopy=False) if "folder" in trial.user_attrs
    }
    return [last[name] for name in sorted(last)]


def recover(study: "optuna.Study") -> None:
    """Enter the trials anew that a process left behind; nobody may be at work."""
    from optuna.trial import TrialState

    waiting = [trial.user_attrs.get("folder") for trial in study.get_trials(states=(TrialState.WAITING,))]
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        # Entered before the old entry is ended: a process that is killed in between must not lose the trial.
        if trial.user_attrs.get("folder") not in (None, *waiting):
            study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
        study.tell(trial.number, state=TrialState.FAIL)
