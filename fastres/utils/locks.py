"""Locks between processes, on files that are never deleted: a process that waits has its file open. One that ends,
however it does, lets go."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastres.errors import UserError


@contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """A descriptor of the lock file at `path`, made where there is none, whose lock goes with the block.

    Raises UserError for a link, or anything else that is no plain file: it could make us open a file of somebody else.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise UserError(f"{path} is a link or no plain file, which no lock is: remove it") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path} is a link or no plain file, which no lock is: remove it")
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock if nobody has it; returns whether nobody had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def lock(descriptor: int, *, shared: bool = False) -> None:
    """Wait for the lock, alone or `shared` with others that share it."""
    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
