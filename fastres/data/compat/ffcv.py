"""Import FFCV without what its import does to the rest of the process, or say how to install it."""

import ctypes
import functools
import importlib.util
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastres.errors import UserError
from fastres.utils.variables import kept_variables

_SYSTEM = "apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev"
_INSTALL = "pip install 'fastres[ffcv]'"

changing = threading.RLock()
"""Held while something of FFCV's, or of the process's, is another than usual."""


@functools.cache
def import_ffcv() -> Any:
    """FFCV, imported so that nothing else in the process changes, and in 0.2 s beyond torch and Numba instead of 6.
    (One thread stays: loading OpenCV starts it.)

    Its import would set torch to one thread, start Numba's threads, and compile a typed dictionary whose two entries
    it looks up from Python only. The import of OpenCV that comes with it changes LD_LIBRARY_PATH for all children: its
    last entry is then empty, which means the folder they are started in. Raises UserError with the lines that install
    it, packages of the system first.
    """
    if importlib.util.find_spec("ffcv") is None:
        raise UserError(f"the FFCV loader needs FFCV: {_install_line()}")
    import numba
    import numba.typed
    import torch

    with changing, kept_variables():
        threads = torch.get_num_threads()
        try:
            with (
                replaced(numba, set_num_threads=lambda count: None),
                replaced(numba.typed, Dict=dict),
                _without_warnings(),
            ):
                import ffcv
                import ffcv.fields
                import ffcv.libffcv
                import ffcv.pipeline.compiler
                import ffcv.writer
            ffcv.pipeline.compiler.set_num_threads = numba.set_num_threads
        except (ImportError, OSError, AttributeError) as error:
            raise UserError(f"FFCV cannot be imported ({str(error)[:120]}):\n{_SYSTEM}, then {_INSTALL}") from error
        finally:
            torch.set_num_threads(threads)
    return ffcv


@contextmanager
def _without_warnings() -> Iterator[None]:
    """FFCV's modules import `distutils` and use parts of `ast` that are going away: nothing its user can change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Give `target` other attributes until the block ends."""
    before = {name: vars(target)[name] for name in attributes if name in vars(target)}
    try:
        for name, value in attributes.items():
            setattr(target, name, value)
        yield
    finally:
        for name in attributes:
            if name in before:
                setattr(target, name, before[name])
            else:
                delattr(target, name)


def _install_line() -> str:
    """What to run for FFCV, which is compiled when it is installed: packages of the system come first if any lack."""
    complete = (
        shutil.which("g++") is not None
        and shutil.which("pkg-config") is not None
        and subprocess.run(["pkg-config", "--exists", "opencv4", "libturbojpeg"], check=False).returncode == 0
    )
    return f"`{_INSTALL}`" if complete else f"first `{_SYSTEM}`,\nthen `{_INSTALL}`"


def turbojpeg() -> ctypes.CDLL:
    """FFCV's library, through which libturbojpeg's functions are found."""
    return import_ffcv().libffcv.lib
