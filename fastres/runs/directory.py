"""Run directories: making one, locking it, reading its recipe."""

import datetime
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fastres.errors import UserError, disk_errors_are_the_users
from fastres.recipe import Recipe
from fastres.utils.files import write_text
from fastres.utils.locks import open_lock, try_lock

PLAN = "sweep.toml"
"""The recipe of a sweep, in the folder of its runs; its presence says that a folder is one of ours."""


def create(out: str | Path | None, name: str, recipe: Recipe) -> Path:
    """A new run directory that holds the resolved recipe: `out`, or runs/<name>-<time>.

    Raises UserError where something is in the way or nothing can be written; no folder is left behind then.
    """
    run = new_folder(out, name)
    try:
        write_text(run / "recipe.toml", recipe.to_toml())
    except UserError:
        run.rmdir()
        raise
    return run


def check_free(out: str | Path | None) -> None:
    """Raise UserError where `out` holds something already: before any work, not after it."""
    if out is None or not Path(out).exists() or (Path(out).is_dir() and not any(Path(out).iterdir())):
        return
    resume = f", or go on with --resume {out}" if (Path(out) / "recipe.toml").is_file() else ""
    raise UserError(f"{out} exists and is not an empty folder: give another --out{resume}")


def new_folder(out: str | Path | None, name: str) -> Path:
    """`out`, or runs/<name>-<time>, empty. Raises UserError where something is in the way or cannot be written."""
    check_free(out)
    stem = Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    candidates = [Path(out)] if out is not None else [stem, *(Path(f"{stem}-{number}") for number in range(2, 100))]
    for run in candidates:
        with disk_errors_are_the_users(run), suppress(FileExistsError):
            run.mkdir(parents=True, exist_ok=out is not None)
            return run
    raise UserError(f"{stem} exists already, and so do its next names: give --out")


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
        for leftover in run.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield


def read_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run. Raises UserError where `run` is none."""
    if not (run / "recipe.toml").is_file():
        raise UserError(f"{run} is not a run directory: it has no recipe.toml; give a folder that `fastres train` made")
    return Recipe.load(run / "recipe.toml")
