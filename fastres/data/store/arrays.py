"""Arrays of a store, as its manifest describes them: none is believed larger than its file, and all but pixels are
compared with their SHA-256 when they are read."""

import hashlib
import io
import math
import os
from pathlib import Path
from typing import IO

import numpy as np

from fastres.data.store.manifest import StoredFile
from fastres.utils.untrusted import open_regular, read_regular

LIMIT = 1 << 30
"""Bytes of an array that is read into memory: five million names of two hundred."""


def map_array(path: Path, entry: StoredFile) -> np.ndarray:
    """The array in the `.npy` file at `path`, a read-only memory map. Raises OSError, UserError for what is no regular
    file, and ValueError where the file is not as `entry` says."""
    with open_regular(path) as file:
        start = _check(file, os.fstat(file.fileno()).st_size, path.name, entry)
    return np.memmap(path, np.dtype(entry.dtype), "r", start, tuple(entry.shape or ()))


def read_array(path: Path, entry: StoredFile) -> np.ndarray:
    """The same in memory, compared with its SHA-256. Raises as `map_array` does."""
    data = read_regular(path, LIMIT, "no store has such an array")
    start = _check(io.BytesIO(data), len(data), path.name, entry)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ValueError(f"{path.name} was changed: its sha256 is not the manifest's")
    return np.frombuffer(data, entry.dtype, offset=start).reshape(entry.shape or ()).copy()


def _check(file: IO[bytes], size: int, name: str, entry: StoredFile) -> int:
    """Where the values begin in the `.npy` file of `size` bytes, if it is as `entry` says."""
    if size != entry.bytes:
        raise ValueError(f"{name} has {size} bytes instead of {entry.bytes}")
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name} has another header than fastres writes")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or list(shape) != entry.shape or dtype.str != entry.dtype or dtype.hasobject:
        raise ValueError(f"{name} has another shape or type than its manifest says")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"{name} announces another size than it has")
    return file.tell()
