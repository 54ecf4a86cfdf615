"""Environment variables that are other ones for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_variables(*names: str) -> Iterator[None]:
    """Give the environment variables `names`, or all without any, their present values back when the block ends."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in names or {*before, *os.environ}:
            if name not in before:
                os.environ.pop(name, None)
            elif os.environ.get(name) != before[name]:
                os.environ[name] = before[name]
