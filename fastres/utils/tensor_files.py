"""Tensors in files that tell when they were damaged: torch's archives and safetensors.

Neither format notices a changed byte, so each file carries the CRC-32 of all its bytes where the format's own readers
do not look: an archive in its comment, a safetensors file in its metadata. Any change of one or two bits, or within 32
bits in a row, is found, and others but once in 2³² times. A core of an AMD EPYC does 4 GB/s of it; SHA-256 takes 2.3
times as long, and would not stop somebody who means to deceive either.

Readers believe no announced size: what a file unfolds to is no larger than the file.
"""

import json
import mmap
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from fastres.utils.files import atomic_file
from fastres.utils.untrusted import open_regular


class Damaged(Exception):
    """A file is not what was written; the text says in what."""


# --------------------------------------------------------------------------------------------- torch's archives

_LABEL = b"fastres CRC-32 "
_COMMENT = len(_LABEL) + 8
_HEAD = _COMMENT.to_bytes(2, "little") + _LABEL
"""The end of an archive up to the digits: the length of its comment, which torch writes as 0, and the comment."""
_TAIL = len(_HEAD) + 8
_END = b"PK\5\6"
"""Begins the 22 bytes that end an archive without a comment."""
_PARALLEL = 256 << 10
"""Bytes from which on summing (4 GB/s) takes longer than handing it to a thread."""
_AHEAD = 2 << 20
"""Bytes after which the disk is told to begin."""


def write_archive(path: Path, state: Any) -> None:
    """Replace `path` by what torch.save writes of `state`, and its CRC-32, atomically.

    The archive's own checksums, one a tensor, are left out: they cost as much again, and torch does not compare them.
    Raises UserError where nothing can be written.
    """
    from torch.utils.serialization import config

    with atomic_file(path) as file, ThreadPoolExecutor(1) as pool:
        summed = _Summed(file, pool)
        with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            torch.save(state, summed)  # type: ignore[arg-type]
        if summed.error is not None:
            raise summed.error
        file.seek(-2, os.SEEK_END)
        file.write(_HEAD + b"%08x" % summed.crc)


class _Summed:
    """A file for torch.save, and the CRC-32 of what was written to it, summed in `pool` while it is written.

    `error` keeps what the disk, or Ctrl-C, raised: torch's writer would replace it by an error of its own.
    """

    def __init__(self, file: IO[bytes], pool: ThreadPoolExecutor) -> None:
        self._file, self._pool = file, pool
        self._begun = 0
        self.crc = 0
        self.error: BaseException | None = None

    def write(self, data: memoryview) -> int:
        if self.error is None:
            try:
                summing = self._pool.submit(zlib.crc32, data, self.crc) if len(data) >= _PARALLEL else None
                try:
                    self._file.write(data)
                finally:  # torch keeps `data` only until this call ends
                    self.crc = zlib.crc32(data, self.crc) if summing is None else summing.result()
                self._begin()
            except BaseException as error:
                self.error = error
        return len(data)

    def _begin(self) -> None:
        """Let the disk begin with what was written, for which fsync would wait otherwise: a fifth of the time."""
        end = self._file.tell()
        if end - self._begun >= _AHEAD:
            self._file.flush()
            with suppress(OSError):  # a file system that takes no advice
                # Linux starts to write dirty pages that are not needed, and keeps them until they are written.
                os.posix_fadvise(self._file.fileno(), self._begun, end - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = end

    def flush(self) -> None:
        """`atomic_file` does."""


def read_archive(path: Path) -> tuple[Any, bool]:
    """What torch.save wrote to `path`, on the CPU, and whether the file had a CRC-32; without, its numbers are finite.

    Tensors are views of the file, which writing into them does not change. Raises OSError, UserError for what is no
    regular file, Damaged, and whatever torch and zipfile raise for a file that is no such archive, or not only data.
    """
    with open_regular(path) as file, ThreadPoolExecutor(1) as pool:
        size = _check_parts(file)
        loading = pool.submit(_load, file, mmap=True)  # holds Python's lock, which summing does without
        summed = _check_archive(file, size)
        state = loading.result()
    check_tensors(state, size, finite=not summed)
    return state, summed


def read_foreign(path: Path) -> Any:
    """`read_archive` of a file of other programs, which may be of the form before torch 1.6, too."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if zipfile.is_zipfile(file):
            _check_parts(file)
            with zipfile.ZipFile(file) as archive:
                for part in archive.infolist():
                    if part.CRC:  # torch.save can be told to write none
                        archive.read(part)  # raises BadZipFile where it is another
        state = _load(file)
    check_tensors(state, size)
    return state


def _load(file: IO[bytes], *, mmap: bool = False) -> Any:
    # By the descriptor: it is the file that is checked.
    return torch.load(f"/proc/self/fd/{file.fileno()}", map_location="cpu", weights_only=True, mmap=mmap)


def _check_parts(file: IO[bytes]) -> int:
    """Raise Damaged where the parts of the archive are packed (they can unfold to a thousand times their size, and
    torch.save packs nothing), or announce more than there is; returns the archive's bytes."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise Damaged("it is packed")
    if sum(entry.file_size for entry in entries) > size:
        raise Damaged("it announces more than it holds")
    return size


def _check_archive(file: IO[bytes], size: int) -> bool:
    """Compare the archive with its CRC-32, or those of its parts where it has none; returns whether it has."""
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    if tail.startswith(_HEAD):
        crc = zlib.crc32(bytes(2), _crc(file, 0, size - _TAIL))  # as torch wrote it, without a comment
        if tail[len(_HEAD) :] != b"%08x" % crc:
            raise Damaged("it was changed: its CRC-32 is another")
        return True
    if not tail[-22:].startswith(_END) or tail[-2:] != bytes(2):
        raise Damaged("its end was changed")
    with zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:
            raise Damaged("it was changed: its archive's CRC-32 is another")
    return False


def _crc(file: IO[bytes], start: int, end: int, crc: int = 0) -> int:
    """The CRC-32 of the bytes from `start` to `end`, after others whose CRC-32 is `crc`: in one call, which lets go of
    Python's lock once. A thread that asked for it every mebibyte would wait 5 ms each time."""
    with (
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
        whole[start:end] as part,
    ):
        return zlib.crc32(part, crc)


# ------------------------------------------------------------------------------------------------- safetensors

KEY = "fastres"
"""Of the metadata of our files; its value is JSON."""
_MARK = rb"\"crc32\": \""
"""What stands before the eight digits, as JSON within JSON has it."""
_HEADER = 100 << 20
"""Bytes of a header that safetensors accepts."""


def write_tensors(path: Path, tensors: dict[str, Tensor], about: Mapping[str, object]) -> None:
    """Replace `path` by a safetensors file of `tensors`, CPU and contiguous, with `about` as metadata, atomically."""
    from safetensors.torch import save

    text = json.dumps({"version": 1, "crc32": "0" * 8, **about})
    data = memoryview(save(tensors, metadata={KEY: text}))
    start = bytes(data[: 8 + int.from_bytes(data[:8], "little")]).index(_MARK) + len(_MARK)
    with atomic_file(path) as file:
        for part in (data[:start], b"%08x" % zlib.crc32(data), data[start + 8 :]):
            file.write(part)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None, bool]:
    """The tensors of a safetensors file, on the CPU; the JSON with which `write_tensors` wrote them, None for a file
    that it did not write; and whether the file had a CRC-32.

    Tensors are views of the file. Raises OSError, UserError for what is no regular file, Damaged, and SafetensorError.
    """
    from safetensors import safe_open

    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        summed = _check_safetensors(file, size)
        with safe_open(f"/proc/self/fd/{file.fileno()}", framework="pt") as content:
            names: list[str] = list(content.keys())
            tensors = {name: content.get_tensor(name) for name in names}
            about = (content.metadata() or {}).get(KEY)
    if not summed and about is not None and about.startswith('{"version"'):
        raise Damaged("its metadata were changed")
    check_tensors(tensors, size)
    return tensors, about, summed


def _check_safetensors(file: IO[bytes], size: int) -> bool:
    """Compare the file with its CRC-32; returns whether it has one."""
    length = file.read(8)
    count = int.from_bytes(length, "little")
    if count > min(size, _HEADER):
        raise Damaged("it announces more than it holds")
    header = file.read(count)
    start = header.find(_MARK) + len(_MARK)
    if start < len(_MARK):
        return False
    crc = zlib.crc32(length + header[:start] + b"0" * 8 + header[start + 8 :])
    if header[start : start + 8] != b"%08x" % _crc(file, 8 + count, size, crc):
        raise Damaged("it was changed: its CRC-32 is another")
    return True


# ------------------------------------------------------------------------------------------------------- values


def check_tensors(value: Any, size: int, *, finite: bool = True) -> None:
    """Raise Damaged where the tensors within `value`, from a file of `size` bytes, claim much more than that (a single
    element can stand for 2⁶⁰ of them), or, if they are to be `finite`, hold a number that is not."""
    left, met, total = [value], {id(value)}, 0
    tensors: list[Tensor] = []
    while left:
        content = left.pop()
        if isinstance(content, Tensor):
            total += content.nbytes
            if content.layout != torch.strided or total > 8 * size:  # the same weights may stand there a few times
                raise Damaged("it announces more than it holds")
            tensors.append(content)
        elif isinstance(content, dict | list | tuple):
            inside = [*(content.values() if isinstance(content, dict) else content)]
            left += [part for part in inside if id(part) not in met]
            met.update(map(id, inside))
    if finite and not all_finite(tensors):
        raise Damaged("it has numbers that are not finite")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is infinite or NaN, which would be the least or the largest of its tensor: ten times as fast as
    isfinite, which makes a tensor of bools of each. Waits for the device."""
    ends = [end for tensor in tensors if tensor.is_floating_point() and tensor.numel() for end in tensor.aminmax()]
    return not ends or bool(torch.stack([end.double() for end in ends]).isfinite().all())
