"""The one exception that ends in a message instead of a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can put right. The text is one or two lines and names the fix; the command line prints it and
    exits with status 2."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and a checkpoint was saved; the command line exits with status 130."""


@contextmanager
def disk_errors_are_the_users(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing right or a read-only file system met while writing below `path` into a UserError."""
    fixes = {
        errno.ENOSPC: "the disk is full: free some space or choose another place",
        errno.EDQUOT: "the disk quota is used up: free some space or choose another place",
        errno.EACCES: "no right to write there: choose another place or change its permissions",
        errno.EPERM: "no right to write there: choose another place or change its permissions",
        errno.EROFS: "the file system is read-only: choose another place",
        errno.EEXIST: "a file stands where a folder is needed: choose another place",
        errno.ENOTDIR: "a file stands where a folder is needed: choose another place",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in fixes:
            raise
        raise UserError(f"cannot write {path}: {fixes[error.errno]}") from error
