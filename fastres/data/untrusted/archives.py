"""Tar archives from outside, read as a stream: nothing is ever unpacked to disk.

An archive is refused whole, naming the member, if any member is a link, a device, a sparse file, or has a path that is
absolute or climbs out with `..`: such archives are made to attack, or to be unpacked, and are read for neither.
"""

import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from fastres.errors import UserError
from fastres.utils.untrusted import open_regular

MAX_MEMBERS = 5_000_000
MEMBER = 32
"""Packed bytes that a member takes at least: names that differ do not shrink to less."""
UNFOLDED, RATIO = 256 << 20, 100
"""An archive that unfolds to more bytes than both this and so many times its own is refused: zeros shrink to a
thousandth, images hardly at all, and small ones with their headers to a twentieth."""
PADDING = 16 << 20
"""Zeros behind the end of an archive; tar fills up blocks of 10 KB, or of a mebibyte for tapes."""
_HEADERS = 4 << 20  # bytes that the headers of one member may take; long names need 1 KB


def is_archive(path: Path) -> bool:
    """Whether the file at `path` starts like a tar, plain or packed by gzip or xz. Raises OSError,
    and UserError for what is no regular file."""
    with open_regular(path) as file:
        start = file.read(512)
    return _packer(start) is not None or start[257:262] == b"ustar"


def is_packed(path: Path) -> bool:
    """Whether the file at `path` is packed by gzip or xz. Raises OSError, and UserError for what is no regular file."""
    with open_regular(path) as file:
        return _packer(file.read(6)) is not None


def _packer(start: bytes) -> str | None:
    if start[:2] == b"\x1f\x8b":
        return "gzip"
    return "xz" if start[:6] == b"\xfd7zXZ\x00" else None


class Member:
    """A file inside an archive, to be read before the next one is asked for."""

    def __init__(self, archive: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self.name = info.name.removeprefix("./")
        self.size = info.size
        self.offset = info.offset_data
        """Where the contents start in the unpacked archive."""
        self._archive, self._tar, self._info = archive, tar, info

    def read(self, limit: int) -> bytes:
        """The contents. Raises UserError if they are longer than `limit` bytes."""
        if self.size > limit:
            what = f"member {self.name} has {self.size:,} bytes, more than the {limit:,} accepted"
            raise UserError(f"{self._archive}: {what}: remove it")
        with _damage_is_the_users(self._archive):
            file = self._tar.extractfile(self._info)
            assert file is not None  # only regular files become members
            return file.read()


def members(path: Path) -> Iterator[Member]:
    """Yield the regular files of the tar at `path`, in the archive's order.

    Raises UserError for an unsafe member, and for an archive that is damaged or ends too early, at the latest after
    the last member: keep nothing of an archive that was not read to its end.
    """
    with _damage_is_the_users(path), ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        size = os.fstat(file.fileno()).st_size
        packed = _packer(file.read(6)) is not None
        limit = max(UNFOLDED, RATIO * size) if packed else size
        stream = _Stream(stack.enter_context(_unpacked(file)), limit, _unfolds(path) if packed else EOFError(_CUT))
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", errorlevel=2))
        count = 0
        while (info := tar.next()) is not None:
            # Next come this member's data and padding, then the headers of the one after it.
            stream.allowance = info.size + 1024 + _HEADERS
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep 1.5 KB a member
            count += 1
            if count > MAX_MEMBERS:
                raise UserError(f"{path} has more than {MAX_MEMBERS:,} members: split it")
            if count > 10_000 + size // MEMBER:
                raise _unfolds(path)
            _check(path, info)
            if info.isreg():
                stream.expect(info.offset_data + info.size)
                yield Member(path, tar, info)
        stream.read_to_end(tar.offset)


@contextmanager
def _damage_is_the_users(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({_first_line(error)}): fetch or pack it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error


def _check(path: Path, info: tarfile.TarInfo) -> None:
    name = info.name
    if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or "\0" in name:
        problem = "would be written outside its folder"
    elif info.issym() or info.islnk():
        problem = "is a link"
    elif info.issparse() or info.size < 0 or not (info.isreg() or info.isdir()):
        problem = "is no regular file"
    else:
        return
    raise UserError(f"{path} is refused: member {name[:200]!r} {problem}; pack plain files and folders only")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:100] or type(error).__name__


def _unfolds(path: Path) -> UserError:
    return UserError(f"{path} unfolds to far more than images do: unpack it yourself, and name the folder")


_CUT = "it ends within a member"


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    packer = _packer(file.read(6))
    file.seek(0)
    if packer == "gzip":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    return lzma.LZMAFile(file) if packer == "xz" else file


class _Stream(io.RawIOBase):
    """The unpacked bytes on their way to tarfile, which reads whatever size a header announces, passes over what is not
    there for hours, and takes an archive that stops between two members, or goes on with a damaged header, for a whole
    one. All are put right here."""

    def __init__(self, file: IO[bytes], limit: int, beyond: Exception) -> None:
        """`file` has at most `limit` bytes; `beyond` is raised where it announces or has more."""
        self._file, self._limit, self._beyond = file, limit, beyond
        self._count = 0
        self._last = 0  # where the last byte that is not zero ends
        self._expected = 0
        self.allowance = _HEADERS

    def expect(self, end: int) -> None:
        """A member announces that it ends there."""
        if end > self._limit:
            raise self._beyond
        self._expected = end

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if not data and self._count < self._expected:
            raise EOFError(_CUT)
        self.allowance -= len(data)
        if self.allowance < -(1 << 16):  # tarfile's own buffer of 10 KB may run ahead of a member
            raise tarfile.ReadError("a header is larger than 4 MiB")
        if content := data.rstrip(b"\0"):
            self._last = self._count + len(content)
        self._count += len(data)
        if self._count > self._limit:
            raise self._beyond
        return data

    def read_to_end(self, offset: int) -> None:
        """Read to the end, which checks the packer's checksums. From `offset`, where tarfile stopped, there must be
        the empty blocks that end a tar, and nothing else."""
        while self._count < offset + PADDING:
            self.allowance = _HEADERS
            if not self.read(1 << 16):
                break
        else:
            raise EOFError("zeros without end are behind it")
        if self._last > offset or self._count < offset + 512:
            raise EOFError("it does not end as a tar does")
