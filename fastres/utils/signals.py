"""SIGINT and SIGTERM: what ends a command, and as a flag that the training loop reads between two steps."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


class Ending:
    """A context in which SIGINT and SIGTERM raise KeyboardInterrupt, for a command's cleaning up, and are not lost.

    An exception that is raised in an import may be swallowed there, or end it with an error of its own: `asked` says
    that there was one, and what Python could only print comes again. A signal that is ignored stays so.
    """

    asked = False
    """Of the process."""

    def __enter__(self) -> "Ending":
        Ending.asked = False
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._raise)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook, Ending.asked = self._hook, False
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @staticmethod
    def _raise(number: int, frame: FrameType | None) -> None:
        Ending.asked = True
        signal.default_int_handler(number, frame)

    def _unraisable(self, error: Any) -> None:
        if issubclass(error.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            self._hook(error)


class Interrupt:
    """A context in which the first SIGINT or SIGTERM only sets `requested`; a second one acts as usual.

    Outside the main thread, where Python allows no handlers, signals keep their meaning and `requested` stays None.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupt":
        if Ending.asked:  # and swallowed
            raise KeyboardInterrupt
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()
        # A handler may interrupt a print: only a bare write is safe here.
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"\n{self.requested}: saving after this step; once more to stop at once\n".encode())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()


@contextmanager
def signals_wait() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends, here and in processes that the block starts.

    Ctrl-C in a terminal goes to every process of the group. A compiler that it kills looks like a failed compilation,
    after which the step would run eagerly, with other bits than the run had before.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
