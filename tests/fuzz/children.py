"""Mutated files read as the commands read them, in forked children whose time and memory end: what a kind of files has
to define, and how its inputs are counted.
"""

import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from fastres.errors import UserError, disk_fault
from tests.forks import Forks

SECONDS = 10
"""After which an input counts as a hang."""
BYTES = 2 << 30
"""Resident memory that no child may have."""
BATCH = 500
"""Inputs a child."""
EXECUTION = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "pickle.find_class", "ctypes.dlopen", "exec"),
)
"""Events of Python's audit that say that code ran, or was about to."""


def _makes_code() -> bool:
    """Whether a module is being imported, which may make code of text to define classes, or SQLAlchemy is at work,
    which always does."""
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib") or "/sqlalchemy/" in name:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Audit:
    """Hears of code that runs while inputs are read, and of files that are changed outside the kind's place."""

    def __init__(self, place: Path, executes: frozenset[str]) -> None:
        self.listens = False
        self.events: list[str] = []
        self._place = str(place)
        self._expected = executes

    @contextmanager
    def listening(self, listens: bool = True) -> Iterator[None]:
        before, self.listens = self.listens, listens
        try:
            yield
        finally:
            self.listens = before

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.listens:
            return
        if event in self._expected:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (mode is not None and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, (str, bytes)):
                name = os.fsdecode(path)
                followed = os.path.dirname(name) if (flags or 0) & os.O_NOFOLLOW else name  # noqa: PTH120
                if name != "/dev/null" and not os.path.realpath(followed).startswith(self._place):
                    self.events.append(f"{name} was opened for writing")
        elif event == "exec":
            code = arguments[0].co_filename
            if code.startswith(self._place) or (code.startswith("<string") and not _makes_code()):
                self.events.append(f"exec of {code}")
        elif event == "ctypes.dlopen":  # libraries of packages are loaded late, too
            if str(arguments[0]).startswith(self._place):
                self.events.append(f"{arguments[0]} was loaded")
        elif event in EXECUTION:
            self.events.append(f"{event} {arguments!r}"[:200])


class Wrong(Exception):
    """An input was read, and gave other values than it may."""


class Kind(ABC):
    """A kind of files from outside. Can be pickled before `open`."""

    name: ClassVar[str]
    refusals: ClassVar[tuple[type[Exception], ...]] = (UserError,)
    """What the reader raises for an input that it refuses."""
    executes: ClassVar[frozenset[str]] = frozenset()
    """Events of EXECUTION that reading a sound input means."""

    audit: "_Audit"
    """Set in the child."""

    def __init__(self, place: Path) -> None:
        """`place` is a folder of this kind's own."""
        self.place = place

    def write(self) -> None:  # noqa: B027  # some make theirs when they open
        """Write the sound inputs."""

    @abstractmethod
    def open(self) -> None:
        """Get ready what all inputs of a process share."""

    def unheard(self) -> AbstractContextManager[None]:
        """A block whose events are those of the comparison, and not of the reader."""
        return self.audit.listening(False)

    @abstractmethod
    def mutate(self, random: Random) -> str:
        """Write a mutated input; returns in words what was done."""

    @abstractmethod
    def read(self) -> None:
        """Read it as the commands do. Raises `Wrong` where it is accepted with other values than it may."""


@dataclass
class Counts:
    """How the inputs of a kind ended."""

    name: str
    ends: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)
    """By what happened: seeds, with what was done to the input."""
    slowest: tuple[float, int] = (0.0, -1)
    """Seconds, and the seed of that input."""
    largest: int = 0
    """Bytes of resident memory."""

    def __str__(self) -> str:
        ends = ", ".join(f"{end} {count:,}" for end, count in sorted(self.ends.items()))
        seconds, seed = self.slowest
        limits = f"slowest {seconds:.2f} s (seed {seed}), largest process {self.largest / 2**20:,.0f} MiB"
        return f"{self.name}: {sum(self.ends.values()):,} inputs: {ends}; {limits}"

    def told(self) -> str:
        """All faults, each with how often it happened and its first input."""
        return "\n".join(f"{len(seeds)} × {what}\n    first: {seeds[0]}" for what, seeds in self.faults.items())


def fuzz(forks: Forks, kind: Kind, count: int, first: int = 0) -> Counts:
    """Read `count` inputs of `kind`, of the seeds from `first` on."""
    kind.place.mkdir(parents=True, exist_ok=True)
    log, results = kind.place.with_suffix(".log"), kind.place.with_suffix(".jsonl")
    assert forks.run(_write, kind, output=log) == 0, log.read_text()
    counts, seed = Counts(kind.name), first
    while seed < first + count:
        results.unlink(missing_ok=True)
        code = forks.run(_read_all, kind, seed, min(seed + BATCH, first + count), results, output=log)
        lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        begun = {line[0]: line[1] for line in lines if len(line) == 2}
        ended = {line[0]: line[1:] for line in lines if len(line) > 2}
        for number, (end, fault, seconds, size) in ended.items():
            counts.ends[end] += 1
            counts.slowest = max(counts.slowest, (seconds, number))
            counts.largest = max(counts.largest, size)
            if fault is not None:
                counts.faults.setdefault(fault, []).append(f"{number}: {begun[number]}")
        seed += len(ended)
        if code != 0:
            assert begun.keys() - ended.keys() == {seed}, log.read_text()
            fault = f"no answer in {SECONDS} s" if code == -signal.SIGALRM else f"the process ended with {code}"
            counts.ends["FAULT"] += 1
            counts.faults.setdefault(fault, []).append(f"{seed}: {begun[seed]}")
            seed += 1
    return counts


def _write(kind: Kind) -> None:
    kind.write()


def _read_all(kind: Kind, first: int, end: int, results: Path) -> None:
    """Read the inputs of the seeds from `first` to before `end`; a line before and after each into `results`."""
    sys.dont_write_bytecode = True
    tempfile.gettempdir()  # the first call tries where one can write
    os.fsync = lambda descriptor: None  # of a file that is read at once it decides nothing, and takes the longest
    audit = kind.audit = _Audit(kind.place, kind.executes)
    kind.open()
    sys.addaudithook(audit)
    status = Path("/proc/self/statm").read_text().split()
    virtual, resident = (int(pages) * resource.getpagesize() for pages in status[:2])
    resource.setrlimit(resource.RLIMIT_AS, (virtual + BYTES - resident, resource.getrlimit(resource.RLIMIT_AS)[1]))
    descriptor = os.open(results, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(*values: Any) -> None:
        os.write(descriptor, (json.dumps(values) + "\n").encode())

    for seed in range(first, end):
        tell(seed, kind.mutate(Random(f"{kind.name} {seed}"))[:2000])
        ended, fault = "read", None
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # nobody handles SIGALRM: it ends the process, wherever it is
        try:
            with audit.listening(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                kind.read()
        except Wrong as error:
            ended, fault = "WRONG", f"accepted with other values: {error}"
        except BaseException as error:
            refused = isinstance(error, kind.refusals) or (isinstance(error, OSError) and disk_fault(error) is not None)
            ended, fault = type(error).__name__, _ill_told(error) if refused else _symptom(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if audit.events:
            fault = f"code ran: {audit.events[0]}"
            audit.events.clear()
        elif size > BYTES and fault is None:
            fault = f"more than {BYTES >> 30} GiB"
        tell(seed, ended if fault is None or ended == "WRONG" else "FAULT", fault, time.perf_counter() - began, size)
        if size > BYTES:  # the peak stays: the inputs that follow need a process of their own
            os._exit(0)


def _ill_told(error: BaseException) -> str | None:
    """What is wrong with the message of a refusal."""
    lines = (str(error) if isinstance(error, UserError) else "one line").splitlines()
    if not 1 <= len(lines) <= 2 or max(map(len, lines)) > 2000:
        return f"a message of {len(lines)} lines and {max(map(len, lines), default=0)} characters: {lines[0][:200]}"
    return None


def _symptom(error: BaseException) -> str:
    """The error in a line, with where it was raised and by which line of fastres."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/fastres/" in frame.filename or "/kernels/" in frame.filename]
    where = [f"{frame.filename.rpartition('/fastres/')[2]}:{frame.lineno}" for frame in (*ours[-2:], *frames[-1:])]
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {''.join(c for c in text if not c.isdigit())[:150]} ({', '.join(where)})"
