"""Keeping the memory that a training step frees for the next step, and the collector of cyclic garbage from a start."""

import ctypes
import gc
import time

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to give nothing back to the kernel; returns whether it could be told.

    A step allocates and frees gigabytes of activations. By default glibc returns large blocks at once, and the kernel
    hands them out again page by page, zeroed: in a step of the report's network on two cores 40,000 page faults at
    batch 128 (0.07 s of system time in 0.33 s), 75,000 at batch 256 (0.56 s instead of 0.47 s). Afterwards there are
    none. The price: a process keeps its peak memory until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: nothing to tell
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


class StartupTimer:
    """When a run began, and Python's collector of cyclic garbage held back until its first step is `done`.

    Importing torch, its compiler and Numba makes a million objects that stay. The collector looks through them again
    and again and finds nothing: 0.8 s of 4 to the first step of a run whose step is kept compiled.
    """

    def __init__(self) -> None:
        self.seconds = time.perf_counter()
        """Of time.perf_counter()."""
        self._collects = gc.isenabled()
        gc.disable()

    def done(self) -> None:
        """Let the collector go on, if it did before; once."""
        if self._collects:
            gc.enable()
        self._collects = False

    def __enter__(self) -> "StartupTimer":
        return self

    def __exit__(self, *_: object) -> None:
        self.done()
