"""The torch loader: `torch.utils.data.DataLoader` with worker processes, the baseline that everybody knows.

Its batches do not travel as tensors. Those take a file of /dev/shm each, of which containers have 64 MB, and a file
handle for as long as somebody holds the batch. Workers write into memory that was shared with them when they were
forked, which has no name to be left behind and no handle to be used up, and what goes through a queue is a step.

Workers are forked, not spawned. A spawned one imports torch again, two seconds each at every epoch, and runs the
user's script a second time, which must then be importable and guarded. Fork is unsafe where the child needs what
another thread of the parent held, or the thread pools of OpenMP and Numba, or CUDA: a worker here copies or decodes
in its only thread and touches none of them.
"""

import atexit
import gc
import math
import mmap
import multiprocessing
import os
import signal
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import worker
from torch.utils.data._utils.signal_handling import _remove_worker_pids  # type: ignore[attr-defined]

from fastres.data.loaders.base import LOADERS, ReadingLoader, Rows
from fastres.data.loaders.paging import Paging
from fastres.data.loaders.resident import shared
from fastres.data.store.encoded import EncodedImages, load_decoders
from fastres.errors import UserError
from fastres.utils.progress import say
from fastres.utils.signals import signals_wait

_AHEAD = 2  # batches under way for each worker

_FIXES = {  # by exit code
    -signal.SIGKILL: "if memory ran out, use fewer workers (data.workers) or smaller batches",
    -signal.SIGBUS: "a file of the store was cut, or its disk failed: run `fastres data verify`",
}


@LOADERS.register("torch")
class TorchLoader(ReadingLoader):
    """Batches read by a `DataLoader`: `workers` processes, or with 0 this one.

    `pixels` is uint8 [M, H, W, 3], memory-mapped, or `EncodedImages`; the other arguments are those of
    `ReadingLoader`. Each call of `batches` starts its own workers, and the end of its iterator ends them. A worker
    that dies is a UserError that names the images it was to read, at most five seconds later. In a daemonic process, as
    a DataLoader's workers are, which may start none, that process reads itself, with a message.
    """

    _told = False

    def _read(self, batches: Sequence[Rows]) -> Generator[Tensor, None, None]:
        if not batches:
            return
        if isinstance(self.pixels, EncodedImages):
            load_decoders()  # before the fork, so that not every worker does
            source: Tensor | EncodedImages = self.pixels
        else:
            source = shared(self.pixels)
        paging = Paging(self.pixels)
        shape, workers = self.pixels.shape[1:], min(self.workers, len(batches))
        if workers and multiprocessing.current_process().daemon:
            workers = 0
            if not self._told:
                say("the torch loader reads in this process: it is another's worker, which may start none of its own")
                self._told = True
        pinned = self.device.type == "cuda"
        if not workers:
            yield from _loader(_Here(source, paging, batches, shape, pinned), len(batches))
            return
        # Step s is asked for once step s - _AHEAD * workers was received, so that one slot more than are under way
        # leaves the received one in peace until the next is asked for.
        slots = _shared((_AHEAD * workers + 1, max(map(len, batches)), *shape))
        with _forked(_There(source, paging, batches, slots), len(batches), workers) as (iterator, context):
            for step, rows in enumerate(batches):
                try:
                    failure = next(iterator)
                except Exception as error:
                    context.raise_if_dead(f"while it read {_listed(rows, source)}", error)
                    error.add_note(f"while a loader's worker read {_listed(rows, source)}")
                    raise
                if failure is not None:
                    raise UserError(failure)
                own = torch.empty((len(rows), *shape), dtype=torch.uint8, pin_memory=pinned)
                yield own.copy_(slots[step % len(slots), : len(rows)])


def _loader(dataset: Dataset[Any], steps: int, **options: Any) -> DataLoader[Any]:
    # One item is one batch. The generator is its own: a DataLoader draws a seed, by default from the whole process's.
    return DataLoader(dataset, batch_size=None, sampler=range(steps), generator=torch.Generator(), **options)


def _shared(shape: tuple[int, ...]) -> Tensor:
    """uint8 zeros that this process shares with those that it forks from now on; freed with the last reference."""
    size = math.prod(shape)
    try:
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).view(shape)
    except OSError as error:
        raise UserError(
            f"there are no {size >> 20:,} MiB of memory to share with workers ({error.strerror}):\n"
            "use fewer workers (data.workers) or smaller batches"
        ) from error


def _fill(out: Tensor, source: "Tensor | EncodedImages", paging: Paging, rows: Rows) -> None:
    try:
        paging.announce_rows(rows)
        if isinstance(source, EncodedImages):
            source.decode(rows, out.numpy())
        else:
            torch.index_select(source, 0, torch.from_numpy(rows), out=out)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot read {_listed(rows, source)}: {reason}; use fewer workers (data.workers)") from error


def _listed(rows: Rows, source: "Tensor | EncodedImages") -> str:
    """The first of `rows`, by their names where they are files, and how many there are."""
    first = rows[:3].tolist()
    names = [f"{row} ({source.name(row)})" if isinstance(source, EncodedImages) else str(row) for row in first]
    return f"images {', '.join(names)}{f' and {len(rows) - 3} more' if len(rows) > 3 else ''}"


class _Here(Dataset[Tensor]):
    """A step's batch, read in the process that asks."""

    def __init__(
        self,
        source: "Tensor | EncodedImages",
        paging: Paging,
        batches: Sequence[Rows],
        shape: tuple[int, ...],
        pinned: bool,
    ) -> None:
        self._source, self._paging, self._batches = source, paging, batches
        self._shape, self._pinned = shape, pinned

    def __getitem__(self, step: int) -> Tensor:
        rows = self._batches[step]
        out = torch.empty((len(rows), *self._shape), dtype=torch.uint8, pin_memory=self._pinned)
        _fill(out, self._source, self._paging, rows)
        return out


class _There(Dataset[str | None]):
    """A step's batch, read into its slot by a worker, which answers None, or what is wrong."""

    def __init__(
        self, source: "Tensor | EncodedImages", paging: Paging, batches: Sequence[Rows], slots: Tensor
    ) -> None:
        self._source, self._paging, self._batches, self._slots = source, paging, batches, slots

    def __getitem__(self, step: int) -> str | None:
        rows = self._batches[step]
        try:
            _fill(self._slots[step % len(self._slots), : len(rows)], self._source, self._paging, rows)
        except UserError as error:
            return str(error)
        return None


@contextmanager
def _forked(dataset: _There, steps: int, workers: int) -> Generator[tuple[Any, "_Context"], None, None]:
    """A DataLoader's iterator over `dataset`, and its context; both are gone, processes included, when the block ends.

    Workers are killed, not asked: they own nothing, and one killed from outside may hold a lock that asking waits for.
    """
    context = _Context()
    processes = {"num_workers": workers, "prefetch_factor": _AHEAD, "multiprocessing_context": context}
    loader = _loader(dataset, steps, **processes, worker_init_fn=partial(_start, os.getpid()))
    iterator = None
    atexit.register(context.kill)  # before multiprocessing's own, which would send a SIGTERM and wait
    try:
        # Ctrl-C and a job's SIGTERM reach every process of a group. The parent decides what becomes of them, and may
        # first finish its step, which takes these workers: they start with both signals blocked, for good.
        with signals_wait():
            try:
                iterator = iter(loader)
            except OSError as error:
                raise UserError(
                    f"cannot start {workers} worker processes ({error.strerror}): use fewer (data.workers)"
                ) from error
        # torch would raise a dead worker's RuntimeError from a signal handler, at whatever the main thread is doing
        # then, and our own kill's too. Without it, its wait for a batch looks every five seconds who is alive.
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False  # type: ignore[attr-defined]
        yield iterator, context
    finally:
        context.kill()
        atexit.unregister(context.kill)
        if iterator is not None and context.is_own:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # closes queues; nobody is left to wait for


def _start(parent: int, _worker: int) -> None:
    gc.freeze()  # what the parent made is never collected here: a look at it would copy its pages
    # torch's watchdog takes whoever is the parent when it is made for the one to outlive: init, where ours was killed
    # before that, and a worker that never ends.
    worker.ManagerWatchdog = partial(_Watchdog, parent)  # type: ignore[misc, assignment]


class _Watchdog(worker.ManagerWatchdog):
    def __init__(self, parent: int) -> None:
        super().__init__()
        self.manager_pid = parent


class _Context(ForkContext):
    """Gives a DataLoader its processes and remembers them, and an event that nobody can take along into death."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: list[ForkProcess] = []
        self._parent = os.getpid()

    def Process(self, *arguments: Any, **options: Any) -> ForkProcess:  # type: ignore[override]
        process = _Worker(*arguments, **options)
        self._workers.append(process)
        return process

    def Event(self) -> "_Flag":  # type: ignore[override]
        return _Flag()

    @property
    def is_own(self) -> bool:
        """Whether this is the process that started them, and not one that somebody forked with a copy of this."""
        return os.getpid() == self._parent

    def raise_if_dead(self, doing: str, cause: Exception) -> None:
        """Raise a UserError if a worker has ended."""
        for process in self._workers:
            if (code := process.exitcode) is not None:
                end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                fix = _FIXES.get(code, "start again with data.workers = 0, which shows the error itself")
                raise UserError(f"a loader's worker process {end} {doing}:\n{fix}") from cause

    def kill(self) -> None:
        """End all workers and wait until they are gone."""
        if not self.is_own:
            return
        started = [process for process in self._workers if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join(10)  # one that hangs in a disk's driver cannot die: not waited for longer


class _Worker(ForkProcess):
    def start(self) -> None:
        with warnings.catch_warnings():
            # Python 3.12 warns of every fork beside threads; the head of this file says why this one is safe.
            warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)
            super().start()


class _Flag:
    """An event between forked processes without a lock: multiprocessing's is locked by everyone who looks at it, and
    a worker that is killed while it looks leaves it locked forever."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def is_set(self) -> bool:
        return self._byte[0] != 0

    def set(self) -> None:
        self._byte[0] = 1
