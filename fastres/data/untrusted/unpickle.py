"""Pickles from outside, read without running anything: the CIFAR batches and image pickles without labels.

A pickle is a program. This reader interprets only the part of the language that builds dicts, lists, strings, numbers
and numeric NumPy arrays; every other instruction, and every name but the four that NumPy arrays and bytes need, is
refused. Those four stand for functions of this file: nothing is imported, and NumPy sees sizes only after they were
compared with the bytes at hand. The interpreter is Python's own `pickle._Unpickler`, because the C version allocates
what a pickle announces (a memo slot 2**40, a bytearray of terabytes) before it looks whether the file has it.
"""

import io
import math
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastres.errors import UserError
from fastres.utils.terminal import brief
from fastres.utils.untrusted import read_regular

MAX_BYTES = 2 << 30  # 700,000 images of 32×32; the largest file of CIFAR has 155 MB
MAX_STEPS = 4_000_000  # CIFAR-100's training file takes 300,000; four million take about three seconds


class _Refused(Exception):
    """The pickle does something that data does not need."""


def load_file(path: Path) -> dict[str, Any]:
    """The dict in the pickle at `path`; see `load`. Raises UserError where the file cannot be read or trusted."""
    return load(read_regular(path, MAX_BYTES, "use a folder or tar of images instead"), str(path))


def load(data: bytes, name: str) -> dict[str, Any]:
    """The dict pickled in `data` (protocols 0 to 5, Python 2 or 3, NumPy 1 or 2).

    Keys are text; values are whatever plain data was pickled, arrays of numbers or fixed-length text as read-only
    `numpy.ndarray`. Strings of Python 2 arrive as bytes. Raises UserError, which calls the pickle `name`, for anything
    else: another top-level object, a name or instruction outside the subset, a size that the data does not bear out.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"{name} is larger than {MAX_BYTES >> 30} GiB: use a folder or tar of images instead")
    try:
        value = _Reader(data).load()
        if not isinstance(value, dict):
            raise _Refused("it holds no dict")
        return {_text(key): item.to_numpy() if isinstance(item, _Array) else item for key, item in value.items()}
    except _Refused as error:
        raise UserError(f"{name} is not a pickle of images, and was not run: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way at all, none of which is worth a traceback
        raise UserError(f"{name} is damaged or no pickle ({type(error).__name__}): fetch it again") from error


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


class _Dtype:
    """A NumPy dtype as a pickle describes it."""

    def __init__(self, kind: Any) -> None:
        kind = _text(kind) if isinstance(kind, str | bytes) else ""
        if not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU][0-9]{1,4})", kind):
            raise _Refused("it holds an array of something other than numbers or short text")
        self.numpy = np.dtype(kind)

    def restore(self, state: Any) -> None:
        """State: (version, byte order, subdtype, names, fields, ...); only the byte order matters to plain dtypes."""
        order = _text(state[1])
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _Refused("it holds an array with a structured type")
        if order in "<>":
            self.numpy = self.numpy.newbyteorder("<" if order == "<" else ">")


class _Array:
    """An array whose shape has been compared with its bytes; NumPy hears of it in `to_numpy` only."""

    def __init__(self) -> None:
        self._make: Callable[[], np.ndarray] | None = None

    def restore(self, state: Any) -> None:
        """State of `ndarray.__setstate__`: (version, shape, dtype, Fortran order, bytes)."""
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> None:
        if not isinstance(dtype, _Dtype) or type(raw) not in (bytes, bytearray) or type(shape) is not tuple:
            raise _Refused("it holds a malformed array")
        if len(shape) > 8 or any(type(side) is not int or side < 0 for side in shape):
            raise _Refused("it holds a malformed array")
        if math.prod(shape) * dtype.numpy.itemsize != len(raw) or order not in ("C", "F", "K"):
            raise _Refused("an array's shape does not match its bytes")
        numpy = dtype.numpy
        if numpy.kind == "U" and (np.frombuffer(raw, f"{numpy.byteorder}u4") > sys.maxunicode).any():
            raise _Refused("it holds text of no characters")  # Python fails to make a str of it

        def make() -> np.ndarray:
            array = np.frombuffer(raw, numpy).reshape(shape, order="F" if order == "F" else "C")
            array = array if axes is None else array.transpose(axes)
            array.flags.writeable = False
            return array

        self._make = make

    def to_numpy(self) -> np.ndarray:
        if self._make is None:
            raise _Refused("it holds an array without contents")
        return self._make()


class _Name:
    """A name that the pickle looked up. REDUCE may call it, and nothing else may touch it."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


class _Steps(dict):
    """pickle's table of instructions, which counts how many were looked up."""

    left = MAX_STEPS

    def __getitem__(self, code: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _Refused(f"it has more than {MAX_STEPS:,} instructions")
        return super().__getitem__(code)


class _Reader(pickle._Unpickler):
    def __init__(self, data: bytes) -> None:
        self._buffer = io.BytesIO(data)
        self._encodable = len(data)
        super().__init__(self._buffer, encoding="bytes")
        self.dispatch = _Steps(_INSTRUCTIONS)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Callable[..., Any]] = {
            "_reconstruct": self._reconstruct,
            "ndarray": _refuse_call,
            "dtype": lambda kind, *flags: _Dtype(kind),
            "scalar": self._scalar,
            "_frombuffer": self._frombuffer,
            "encode": self._encode,
            "bytes": lambda: b"",
        }
        if name not in known or module not in _MODULES[name]:
            raise _Refused(f"it asks for {brief(f'{module}.{name}')}")
        return _Name(known[name])

    def _reconstruct(self, kind: Any, shape: Any, code: Any) -> _Array:
        return _Array()  # `shape` is a placeholder: the state that follows has the real one

    def _frombuffer(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
        array = _Array()
        array.fill(raw, dtype, shape, order, axes)
        return array

    def _scalar(self, dtype: Any, raw: Any) -> Any:
        array = _Array()
        array.fill(raw, dtype, (), "C")
        return array.to_numpy().item()

    def _encode(self, text: Any, codec: Any) -> bytes:
        """Bytes, as Python 3 writes them in protocols 0 to 2. Together no longer than the file, or memory would be."""
        if type(text) is not str or codec not in ("latin1", b"latin1"):
            raise _Refused("it asks for an encoding other than latin1")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise _Refused("it unfolds to more bytes than it has")
        return text.encode("latin1")

    def reduce(self) -> None:
        arguments = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, _Name) or type(arguments) is not tuple:
            raise _Refused("it calls something that is no constructor of arrays")
        self.stack[-1] = target.call(*arguments)  # type: ignore[attr-defined]

    def build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, _Array | _Dtype):
            raise _Refused("it sets the state of something that is no array")
        target.restore(state)

    def set_item(self) -> None:
        value = self.stack.pop()  # type: ignore[attr-defined]
        key = self.stack.pop()  # type: ignore[attr-defined]
        _put(self.stack[-1], key, value)  # type: ignore[attr-defined]

    def set_items(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(self.stack[-1], key, value)  # type: ignore[attr-defined]

    def make_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        result: dict = {}
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(result, key, value)
        self.append(result)  # type: ignore[attr-defined]

    def extend(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self._list().extend(items)

    def add(self) -> None:
        item = self.stack.pop()  # type: ignore[attr-defined]
        self._list().append(item)

    def _list(self) -> list:
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) is not list:
            raise _Refused("it appends to something that is no list")
        return target

    def bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        if size > min(len(self._buffer.getbuffer()), sys.maxsize):
            raise _Refused("it announces more bytes than it has")
        self.append(self.read(size))  # type: ignore[attr-defined]


def _refuse_call(*_: Any) -> None:
    raise _Refused("it builds an array in an unknown way")


def _put(target: Any, key: Any, value: Any) -> None:
    # Text only: the hash of a tuple nested a million deep overflows the C stack.
    if type(target) is not dict or type(key) not in (str, bytes):
        raise _Refused("a dict's key is not text")
    target[key] = value


_MODULES = {
    "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
    "scalar": ("numpy.core.multiarray", "numpy._core.multiarray"),
    "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
    "ndarray": ("numpy",),
    "dtype": ("numpy",),
    "encode": ("_codecs",),
    "bytes": ("__builtin__", "builtins"),
}
# Instructions that make objects of classes, reach outside the file, or build sets, which no data file needs.
_REFUSED = (
    *(pickle.PERSID, pickle.BINPERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
)


def _refuse_instruction(reader: _Reader) -> None:
    raise _Refused("it builds objects that are not plain data")


_INSTRUCTIONS: dict[int, Callable[[Any], None]] = {
    **pickle._Unpickler.dispatch,
    **{code[0]: _refuse_instruction for code in _REFUSED},
    pickle.REDUCE[0]: _Reader.reduce,
    pickle.BUILD[0]: _Reader.build,
    pickle.SETITEM[0]: _Reader.set_item,
    pickle.SETITEMS[0]: _Reader.set_items,
    pickle.DICT[0]: _Reader.make_dict,
    pickle.APPENDS[0]: _Reader.extend,
    pickle.APPEND[0]: _Reader.add,
    pickle.BYTEARRAY8[0]: _Reader.bytearray8,
}
