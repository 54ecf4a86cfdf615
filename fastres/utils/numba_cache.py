"""Numba's compiler with its cache on disk."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastres.utils.progress import say


def cached_njit(**options: Any) -> Any:
    """Numba's decorator, with `options`, for code that lets other threads run and is kept on disk, compiled: beside its
    file or, where that folder is read-only, in Numba's cache folder."""
    from numba import njit

    _stay_out_of_the_working_folder()
    return njit(cache=True, nogil=True, **options)


@functools.cache
def _stay_out_of_the_working_folder() -> None:
    """Without a home folder Numba would make `~/.cache` where the process happens to stand, and run what it finds
    there: it gets a folder of this process's own."""
    import numba

    config: Any = numba.config
    homeless = not os.environ.get("XDG_CACHE_HOME") and os.path.expanduser("~").startswith("~")  # noqa: PTH111
    if config.CACHE_DIR or not homeless or os.access(Path(__file__).parents[1], os.W_OK):
        return
    config.CACHE_DIR = tempfile.mkdtemp(prefix="fastres-numba-")
    atexit.register(shutil.rmtree, config.CACHE_DIR, ignore_errors=True)
    say("there is no home folder to keep compiled code in: NUMBA_CACHE_DIR, set to one, saves 14 s of each start")
