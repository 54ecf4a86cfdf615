"""Folders of this user's alone, and what is in them: for files that are code.

Nothing here is opened through a link, and files are used by the descriptors that were looked at.
"""

import errno
import functools
import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

LARGEST = 1 << 30
"""Bytes of a file that is read."""


class NotPrivate(Exception):
    """Somebody else can have put something there; the text says where."""


def private_folder(folder: Path) -> Path:
    """The absolute path `folder` without links, made if need be, as a folder of this user's alone.

    Whoever can write into a folder on the way can put another one in the place of what is in it. So every one belongs
    to this user or to root and nobody else can write into it, except where it is sticky, in which only an owner can
    move what is his, and the last belongs to this user. Raises NotPrivate where that is not so, and OSError.
    """
    path, left, links = Path("/"), list(folder.parts[1:]), 0
    demand_safe(path, os.lstat(path))
    while left:
        name = left.pop(0)
        if name == "..":
            path = path.parent
            continue
        with suppress(FileExistsError):
            if not os.path.lexists(path / name):
                (path / name).mkdir(mode=0o700)
        status = os.lstat(path / name)
        if not stat.S_ISLNK(status.st_mode):
            path = path / name
            demand_safe(path, status, last=not left)
            continue
        links += 1
        if status.st_uid not in (0, os.geteuid()):
            raise NotPrivate(f"{path / name} is another user's link")
        if links > 40:  # as many as Linux follows
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = (path / name).readlink()
        left[:0] = target.relative_to("/").parts if target.is_absolute() else target.parts
        path = Path("/") if target.is_absolute() else path
    return path


def demand_safe(folder: Path, status: os.stat_result, *, last: bool = False) -> None:
    """Raise NotPrivate unless nobody but this user and root can change what is in `folder`."""
    if not stat.S_ISDIR(status.st_mode):
        raise NotPrivate(f"{folder} is not a folder")
    if status.st_uid not in ((os.geteuid(),) if last else (0, os.geteuid())):
        raise NotPrivate(f"{folder} belongs to another user")
    sticky = not last and status.st_mode & stat.S_ISVTX
    by_group = status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid)
    if (by_group or status.st_mode & stat.S_IWOTH) and not sticky:
        raise NotPrivate(f"others can write into {folder}: `chmod {'700' if last else 'go-w'} {folder}`")


@functools.cache
def _is_private(group: int) -> bool:
    """Whether `group` is this user's own: of the same name, as it is made with a user, and without other members."""
    try:
        user, about = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return user.pw_gid == group and user.pw_name == about.gr_name and set(about.gr_mem) <= {user.pw_name}


@contextmanager
def opened(path: Path | str, flags: int, folder: int | None = None) -> Iterator[int]:
    """A descriptor of what is at `path`, in `folder` if that is open; no link is followed."""
    descriptor = os.open(path, flags | os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def contents(folder: int, above: str = "") -> Iterator[tuple[str, BufferedReader]]:
    """The files in the open `folder`, by their path there, and below it. Raises OSError and NotPrivate for a link
    and whatever else is neither file nor folder of this user's; locks, which are empty, are left out."""
    for name in sorted(os.listdir(folder)):
        with opened(name, 0, folder) as descriptor:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid():
                raise NotPrivate(f"{above}{name} belongs to another user")
            if stat.S_ISDIR(status.st_mode):
                yield from contents(descriptor, f"{above}{name}/")
            elif not stat.S_ISREG(status.st_mode):
                raise NotPrivate(f"{above}{name} is no file")
            elif status.st_size or not name.endswith(".lock"):
                with os.fdopen(os.dup(descriptor), "rb") as file:
                    yield f"{above}{name}", file


def digest(file: BufferedReader) -> tuple[int, str]:
    """Size and SHA-256 of a file. Raises NotPrivate for one of more than LARGEST bytes, which none of ours has: a hole
    of a terabyte takes no room, and hours to read."""
    size = os.fstat(file.fileno()).st_size
    if size > LARGEST:
        raise NotPrivate(f"{file.name} has more than {LARGEST >> 20} MiB")
    return size, hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of the files below `folder`, by their path there. Raises as `contents` does."""
    with opened(folder, os.O_DIRECTORY) as descriptor:
        return {name: digest(file) for name, file in contents(descriptor)}
