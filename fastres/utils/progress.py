"""Messages, and the progress of long preparations, on standard error: a bar on a terminal, elsewhere a line at times.

Messages go through the logger `fastres`, which has a handler of its own so that nobody has to set one up. To have them
elsewhere: `logging.getLogger("fastres").handlers.clear()`, and let it propagate or give it another handler.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastres.utils.terminal import on_terminal, tell

SECONDS_BETWEEN_LINES = 5.0

Say = Callable[[str], None]
"""Shows a line to whoever watches."""


@contextmanager
def progress(what: str, total: int | None, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more of `total` (None: unknown) are done. `quiet` shows nothing."""
    if quiet:
        yield lambda count: None
    elif on_terminal():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        with _lines(what, total) as advance:
            yield advance


@contextmanager
def _lines(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    start = said = time.monotonic()
    done = 0
    of = f" of {total:,}" if total is not None else ""

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            left = f", about {(now - start) * (total - done) / done:.0f} s left" if total is not None and done else ""
            say(f"{what}: {done:,}{of}, {now - start:.0f} s{left}")

    yield advance
    say(f"{what}: {done:,}{of}, done in {time.monotonic() - start:.1f} s")


class _StandardError(logging.Handler):
    """Writes to what standard error is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(record.getMessage())


LOG = logging.getLogger("fastres")
LOG.setLevel(logging.INFO)
LOG.propagate = False
LOG.addHandler(_StandardError())


def say(text: str, *, quiet: bool = False) -> None:
    """Log a line, unless `quiet`."""
    if not quiet:
        LOG.info("%s", text)
