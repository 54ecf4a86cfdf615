"""Input and output between a command and the terminal or pipe it was started from."""

import errno
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from fastres.errors import UserError, disk_errors_are_the_users


def printable(text: str) -> str:
    """`text` with a question mark for whatever does not print.

    Names of files and classes are hostile: an escape sequence would command the terminal, a line break would forge a
    line, and a byte that is not UTF-8 (a surrogate in Python's str) cannot be encoded.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def brief(text: str, most: int = 120) -> str:
    """`text` for a message: on one line, without its middle where it has more than `most` characters."""
    return printable(text if len(text) <= most else f"{text[: 2 * most // 3]}…{text[-(most // 3) :]}")


class ReaderGone(BrokenPipeError):
    """Nobody reads standard output any more."""


class _Lasting(io.FileIO):
    """Output that is lost, and no error, once nobody can read it: a terminal that is gone answers EIO, and where the
    reader of standard error has gone the work goes on without telling. Raises ReaderGone on standard output."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            if error.errno == errno.EPIPE and self.name == "<stdout>":
                raise ReaderGone(*error.args) from error
            _discard(self.fileno())
            return len(data)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard output and error that a command can write to whatever becomes of them, until the block ends: one that is
    closed (`>&-`) takes everything and keeps nothing. Neither fails on a name that is not UTF-8, or on a terminal that
    knows no ×. What another program has put in their place stays."""
    before = sys.stdout, sys.stderr
    for descriptor in (0, 1, 2):  # or the next file that is opened would be it
        try:
            os.fstat(descriptor)
        except OSError:
            _discard(descriptor)
    sys.stdout, sys.stderr = _lasting(sys.stdout, sys.__stdout__, 1), _lasting(sys.stderr, sys.__stderr__, 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None, original: TextIO | None, descriptor: int) -> Any:
    """`stream`, or if it is the `original` one another on the same descriptor."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    if stream is not original:
        return stream
    raw = _Lasting(descriptor, "w", closefd=False)
    raw.name = ("<stdout>", "<stderr>")[descriptor - 1]
    through = isinstance(stream, io.TextIOWrapper) and stream.write_through  # PYTHONUNBUFFERED
    encoding = "utf-8" if stream is None else stream.encoding
    buffer: Any = raw if through else io.BufferedWriter(raw)
    lines = descriptor == 2 or raw.isatty()
    return io.TextIOWrapper(buffer, encoding, errors="replace", line_buffering=lines, write_through=through)


def _discard(descriptor: int) -> None:
    """Let everything that is written to `descriptor` vanish."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def on_terminal() -> bool:
    """Whether standard error is a terminal; a program without a console has none at all."""
    return sys.stderr is not None and sys.stderr.isatty()


def tell(text: str) -> None:
    """Print a line on standard error, where there is one."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def flushed(stream: TextIO) -> bool:
    """Write out what `stream` holds back; False where its reader has gone.

    Raises UserError on a full disk. What cannot be written is thrown away, or Python would try again at its end.
    """
    try:
        with disk_errors_are_the_users(Path(stream.name)):
            stream.flush()
    except (BrokenPipeError, UserError) as error:
        _discard(stream.fileno())
        if isinstance(error, UserError):
            raise
        return False
    return True


def quiet_thread(ended: threading.ExceptHookArgs) -> None:
    """A `threading.excepthook` without the traceback of TensorBoard's thread when the disk fails it: the thread hands
    the error on to the next call, which says it in a line."""
    if not (isinstance(ended.exc_value, OSError) and type(ended.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(ended)
