"""Folders of what many runs gave: gone on with, made anew, or gone again where something went wrong."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from fastres.errors import UserError, disk_errors_are_the_users
from fastres.runs import directory
from fastres.utils.json_files import File
from fastres.utils.locks import open_lock, try_lock
from fastres.utils.paths import expand_home

Facts = TypeVar("Facts", bound=File)
UNFINISHED = ".unfinished"
"""In a folder that is being written."""


class Results(NamedTuple, Generic[Facts]):
    """What a command has written."""

    folder: Path
    """Folder of its tables, its pages and the run directories."""
    facts: Facts
    """Contents of its JSON file."""


@contextmanager
def continued_folder(out: str | Path | None, name: str, plan: str) -> Iterator[Path]:
    """`out`, else runs/<name>-<time>, kept from other processes meanwhile: a folder in which the file `plan` says that
    the same was begun there, or a new one. Raises UserError as `new_folder` and `run_lock` do."""
    out = out and expand_home(out)
    begun = out is not None and (Path(out) / plan).is_file()
    folder = Path(str(out)) if begun else directory.new_folder(out, name)
    with directory.run_lock(folder):
        yield folder


@contextmanager
def whole_folder(out: str | Path | None, name: str) -> Iterator[Path]:
    """The folder `new_folder(out, name)` for a block that writes all of it, or the one that a killed process began to
    write at `out`. Where the block raises, a new folder vanishes."""
    out = out and expand_home(out)
    begun = out is not None and (Path(out) / UNFINISHED).is_file()
    folder = Path(str(out)) if begun else directory.new_folder(out, name)
    try:
        with disk_errors_are_the_users(folder), open_lock(folder / UNFINISHED) as held:
            if not try_lock(held):
                raise UserError(f"another process is writing {folder}: wait for it, or stop it first")
            directory.remove_temporary(folder)
            yield folder
            (folder / UNFINISHED).unlink()
    except BaseException:
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)
        raise
