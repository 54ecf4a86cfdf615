"""SIGINT and SIGTERM as a flag that the training loop reads between two steps."""

import signal
import threading
from types import FrameType


class Interrupt:
    """A context in which the first SIGINT or SIGTERM only sets `requested`; a second one acts as usual.

    Outside the main thread, where Python allows no handlers, signals keep their meaning and `requested` stays None.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()
