"""The one exception that ends in a message instead of a traceback, and the errors of others that become one."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can put right. The text, one or two lines, names the fix; the command line exits with 2."""


class InvalidRecipe(UserError, ValueError):
    """Keys or values of a recipe's table that there are none of, with the nearest that there is."""


class Diverged(UserError):
    """Loss or weights of a run are not finite; other runs of a sweep go on."""


class Interrupted(Exception):
    """SIGINT or SIGTERM ended the work, in training after a checkpoint was saved; the command line exits with 130."""


# What ends reading and writing alike, whatever the file.
_FIXES_ANYWHERE = {
    errno.ENOSPC: "the disk is full: free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another place",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.ENAMETOOLONG: "the name is too long for the file system: choose a shorter one",
    errno.ELOOP: "its symbolic links go in a circle: choose another place or mend them",
}
_FIXES_OF_WRITING = _FIXES_ANYWHERE | {
    errno.EACCES: "no right to write there: choose another place or change its permissions",
    errno.EPERM: "no right to write there: choose another place or change its permissions",
    errno.EEXIST: "a file stands where a folder is needed: choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another place",
    errno.EISDIR: "it is a folder: give the name of a file",
}


@contextmanager
def disk_errors_are_the_users(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing right or an impossible name met while writing at or below `path` into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FIXES_OF_WRITING:
            raise
        raise UserError(f"cannot write {path}: {_FIXES_OF_WRITING[error.errno]}") from error


def disk_fault(error: OSError) -> str | None:
    """One line with the fix for an error that no code nearer to the file explained; None where only a traceback helps:
    a file that is missing or may not be read can be a fault of ours."""
    fix = _FIXES_ANYWHERE.get(error.errno or 0)
    return None if fix is None else f"{error.filename or 'a write failed'}: {fix}"


def out_of_gpu_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, is CUDA's lack of memory. Imports nothing: no torch, no lack."""
    torch = sys.modules.get("torch")
    kind = getattr(torch, "OutOfMemoryError", ())
    while error is not None and not isinstance(error, kind):
        error = error.__cause__  # a failure inside a compiled step comes wrapped
    return error is not None
