"""Folders of what many runs gave: gone on with, made anew, or gone again where something went wrong."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from fastres.runs import directory
from fastres.utils.json_files import File

Facts = TypeVar("Facts", bound=File)


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
    begun = out is not None and (Path(out) / plan).is_file()
    folder = Path(str(out)) if begun else directory.new_folder(out, name)
    with directory.run_lock(folder):
        yield folder


@contextmanager
def whole_folder(out: str | Path | None, name: str) -> Iterator[Path]:
    """The new folder `out`, else runs/<name>-<time>, of which nothing is left where the block raises."""
    folder = directory.new_folder(out, name)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
