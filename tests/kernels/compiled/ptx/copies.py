"""Asynchronous copies from global to shared memory (`cp.async`), which come when their thread waits for them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.memory import GlobalMemory, SharedMemory
from ptx.parse import PtxError


@dataclass
class _Copy:
    """What some threads have begun to copy."""

    threads: NDArray
    targets: NDArray
    words: NDArray
    """uint32 [threads, words a thread]."""
    groups: NDArray
    """Groups that a thread had committed before."""
    text: str

    def part(self, which: NDArray) -> "_Copy":
        return _Copy(self.threads[which], self.targets[which], self.words[which], self.groups[which], self.text)


class Copies:
    """All copies that nobody has waited for; until then their bytes in shared memory are unwritten ones."""

    def __init__(self, memory: GlobalMemory, shared: SharedMemory, block_threads: int, threads: int) -> None:
        self.memory, self.shared, self.block_threads = memory, shared, block_threads
        self.committed = np.zeros(threads, np.int64)
        self.pending: list[_Copy] = []

    def start(self, targets: NDArray, sources: NDArray, size: int, threads: NDArray, text: str, lengths: Any) -> None:
        """Begin to copy `size` bytes a thread; `lengths`: of which the rest is zeros, all or nothing."""
        targets = targets.astype(np.int64)
        self.shared.forget(targets, size, *self._owners(threads), text)
        words = np.zeros((len(targets), size // 4), np.uint32)
        length = np.broadcast_to(lengths, len(targets))
        reads = np.flatnonzero(length)
        if (length[reads] != size).any():
            raise PtxError("copies a part")
        if len(reads):
            words[reads] = np.stack(self.memory.load(sources[reads], 4, size // 4, threads[reads] // 32, text), 1)
        self.pending.append(_Copy(threads, targets, words, self.committed[threads], text))

    def commit(self, threads: Any) -> None:
        """What these threads have begun since their last commit is a group."""
        self.committed[threads] += 1

    def wait(self, threads: Any, most: int | None) -> None:
        """Until at most `most` of a thread's last groups are on their way; None: until nothing is."""
        waits = np.zeros(len(self.committed), np.bool_)
        waits[threads] = True
        rest = []
        for copy in self.pending:
            comes = waits[copy.threads]
            if most is not None:
                comes &= copy.groups < self.committed[copy.threads] - most
            if comes.any():
                here = copy.part(comes)
                self.shared.store(here.targets, list(here.words.T), 4, *self._owners(here.threads), here.text)
            if not comes.all():
                rest.append(copy.part(~comes))
        self.pending = rest

    def _owners(self, threads: NDArray) -> tuple[NDArray, NDArray]:
        """Blocks, and warps within them."""
        return threads // self.block_threads, threads % self.block_threads // 32
