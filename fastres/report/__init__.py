"""Pages and figures."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def any_backend() -> Iterator[None]:
    """A block that imports matplotlib, which fails where MPLBACKEND names a backend that is not installed: figures are
    drawn into files and need none. A notebook sets it for every process, in whatever environment that runs."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
            if "matplotlib" in sys.modules:
                with suppress(ValueError):  # as matplotlib would have done, for the program's own figures
                    sys.modules["matplotlib"].rcParams["backend"] = backend
