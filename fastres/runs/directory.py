"""Run directories: making one, locking it, reading its recipe."""

import datetime
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fastres.errors import UserError, disk_errors_are_the_users
from fastres.recipe import Recipe
from fastres.runs.schema import SUMMARY
from fastres.utils.files import write_text
from fastres.utils.locks import open_lock, try_lock
from fastres.utils.untrusted import name_of_folder

PLAN = "sweep.toml"
"""The recipe of a sweep, in the folder of its runs; its presence says that a folder is one of ours."""


def create(out: str | Path | None, name: str, recipe: Recipe) -> Path:
    """A new run directory that holds the resolved recipe: `out`, or runs/<name>-<time>.

    Raises UserError where something is in the way or nothing can be written; no folder is left behind then.
    """
    run = new_folder(out, name)
    try:
        write_text(run / "recipe.toml", recipe.to_toml())
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        raise
    return run


def check_free(out: str | Path | None) -> None:
    """Raise UserError where `out` holds something already: before any work, not after it."""
    if out is None or not Path(out).exists():
        return
    # A killed process may leave its lock, and what was to become its first file.
    if Path(out).is_dir() and all(re.fullmatch(r"\.lock|\..*\.tmp", path.name) for path in Path(out).iterdir()):
        return
    begun = (Path(out) / "recipe.toml").is_file()
    resume = f", or go on with `fastres train --resume {shlex.quote(str(out))}`" if begun else ""
    raise UserError(f"{out} exists and is not an empty folder: give another one{resume}")


def new_folder(out: str | Path | None, name: str) -> Path:
    """`out`, or runs/<name>-<time>, empty. Raises UserError where something is in the way or cannot be written."""
    check_free(out)
    try:
        name = name_of_folder(name)
    except ValueError as error:
        raise UserError(f"the name {error}") from error
    stem = Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    candidates = [Path(out)] if out is not None else [stem, *(Path(f"{stem}-{number}") for number in range(2, 100))]
    for run in candidates:
        with disk_errors_are_the_users(run), suppress(FileExistsError):
            run.mkdir(parents=True, exist_ok=out is not None)
            return run
    raise UserError(f"{stem} exists already, and so do its next names: name another folder")


def remove_temporary(folder: Path) -> None:
    """Clear away the temporary files of a killed process."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Keep other processes from training `run` meanwhile; the claim ends with the process, however that ends.

    Clears away the temporary files of a killed process. Raises UserError where another process has the claim.
    """
    with ExitStack() as stack:
        with disk_errors_are_the_users(run):
            held = stack.enter_context(open_lock(run / ".lock"))
        if not try_lock(held):
            raise UserError(f"another process is training {run}: wait for it, or stop it first")
        remove_temporary(run)
        yield


def remove_unsaved(run: Path) -> None:
    """Remove the run directory `run` if nothing was saved in it from which a training could go on."""
    if not any(run.rglob("*.pt")) and not any(run.rglob(SUMMARY)):
        shutil.rmtree(run, ignore_errors=True)


def read_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run. Raises UserError where `run` is none."""
    if not (run / "recipe.toml").is_file():
        raise UserError(f"{run} is not a run directory: it has no recipe.toml; give a folder that `fastres train` made")
    return Recipe.load(run / "recipe.toml")
