"""Files that are complete or absent at any instant: write beside, fsync, rename."""

import errno
import fcntl
import glob
import json
import os
import secrets
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fastres.errors import UserError, disk_errors_are_the_users
from fastres.utils.locks import open_lock, try_lock


def sync(path: Path) -> None:
    """Make what was written to the file `path`, or renamed inside the folder `path`, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` when the block ends, and vanishes when the block raises.

    Raises UserError where the disk is full or not writable or `path` is a folder; what stood there is then as it was.
    """
    with disk_errors_are_the_users(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:  # never through a link that somebody laid there
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def as_on_disk(path: Path) -> Path:
    """`path` with its names in the Unicode form in which they lie on the disk, where they are there in another one:
    typed, é is one character, and in the names that macOS wrote, two. Any other path is given back as it is."""
    if str(path).isascii() or os.path.lexists(path) or path == path.parent:
        return path
    parent, wanted = as_on_disk(path.parent), unicodedata.normalize("NFC", path.name)
    with suppress(OSError, ValueError):
        alike = [other for other in parent.iterdir() if unicodedata.normalize("NFC", other.name) == wanted]
        return min(alike, default=path)
    return path


class _Writable(Exception):
    """Ends a trial."""


def check_writable(path: Path) -> None:
    """Raise the UserError that writing `path` would, before the work whose result it is to hold. A temporary file is
    made and taken away again, as are those of killed processes; folders on the way to `path` stay."""
    with suppress(_Writable), atomic_file(path):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*-????????.tmp"):
            with suppress(OSError, UserError), open_lock(leftover) as held:
                if try_lock(held):
                    leftover.unlink()
        raise _Writable


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data`, atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically.

    Raises UserError for a name in it whose bytes are no UTF-8, which Python's str holds as surrogates.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        name = text[max(0, error.start - 40) : error.end].splitlines()[-1]
        message = f"cannot write {path}: a name that goes into it is not UTF-8 (up to {name!r}): rename that file"
        raise UserError(message) from error
    write_bytes(path, data)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
