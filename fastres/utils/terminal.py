"""Input and output between a command and the terminal or pipe it was started from."""

import os
import threading
from pathlib import Path
from typing import TextIO

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


def flushed(stream: TextIO) -> bool:
    """Write out what `stream` holds back; False where its reader has gone.

    Raises UserError on a full disk. What cannot be written is thrown away, or Python would try again at its end.
    """
    try:
        with disk_errors_are_the_users(Path(stream.name)):
            stream.flush()
    except (BrokenPipeError, UserError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, UserError):
            raise
        return False
    return True


def quiet_thread(ended: threading.ExceptHookArgs) -> None:
    """A `threading.excepthook` without the traceback of TensorBoard's thread when the disk fails it: the thread hands
    the error on to the next call, which says it in a line."""
    if not (isinstance(ended.exc_value, OSError) and type(ended.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(ended)
