"""Functions in forked children of a process that has imported what they need: a child starts in milliseconds, and can
be killed.

The process in between runs one thread, and never a backward pass, after which torch refuses them in forks.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class Child:
    """A function at work in a process of its own."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pidfd: int | None = None
        with suppress(ProcessLookupError):  # it has ended
            self._pidfd = os.pidfd_open(connection.recv())

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code, that of a signal negative; None where it is still at work after `seconds`."""
        if not self._connection.poll(seconds):
            return None
        if self._pidfd is not None:
            os.close(self._pidfd)
        code: int = self._connection.recv()
        return code

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Forks:
    """Starts children, one at a time. Close it, or leave its block, when done."""

    def __init__(self, modules: Sequence[str]) -> None:
        """`modules` are imported before the first child starts."""
        self._connection, end = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(end, list(modules)))
        self._process.start()
        end.close()

    def start(self, function: Callable[..., int | None], *arguments: Any, output: Path) -> Child:
        """Call `function` of an importable module in a child, which exits with what it returns, 1 where it raises, and
        writes what it prints into the file `output`."""
        self._connection.send((function, arguments, output))
        return Child(self._connection)

    def run(self, function: Callable[..., int | None], *arguments: Any, output: Path) -> int:
        """`start`, and wait for the exit code."""
        code = self.start(function, *arguments, output=output).wait()
        assert code is not None
        return code

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(connection: Any, modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    while True:
        try:
            function, arguments, output = connection.recv()
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            connection.close()
            _work(function, arguments, output)
        connection.send(pid)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _work(function: Callable[..., int | None], arguments: tuple[Any, ...], output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    code = 1
    try:
        code = function(*arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
