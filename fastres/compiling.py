"""Compiling a function with TorchInductor, or saying why it runs eagerly."""

import os
import shutil
from collections.abc import Callable, Hashable
from typing import Any

import torch

from fastres.interrupt import signals_wait


def missing_compiler() -> str | None:
    """What TorchInductor lacks on this machine, with the line that installs it; None when nothing."""
    if any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name):
        return None
    return "no C++ compiler found: `apt-get install g++ python3-dev`"


class Compiled:
    """`function`, compiled as one graph for each combination of shapes it is called with.

    `dynamic=False`: automatic dynamic shapes would recompile the full batch's graph after a partial batch, and the
    new code rounds differently, so that an interrupted run would not end with the same bits. Where compilation fails,
    the function runs eagerly from then on and `note` says why.
    """

    def __init__(self, function: Callable[..., Any], *, enabled: bool) -> None:
        self._eager = function
        self.note: str | None = "train.compile is false"
        if enabled:
            # A process that trains several networks compiles this same line of code anew for each of them.
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            self.note = missing_compiler()
        self._compiled = torch.compile(function, dynamic=False, fullgraph=True) if self.note is None else None
        self._known: set[Hashable] = set()  # what is compiled

    @property
    def active(self) -> bool:
        """Whether calls run compiled code."""
        return self._compiled is not None

    def __call__(self, *arguments: torch.Tensor, variant: Hashable = None) -> Any:
        """The function's value. `variant` stands for what else, besides shapes, makes another graph of it."""
        if self._compiled is None:
            return self._eager(*arguments)
        kind = variant, *(argument.shape for argument in arguments)
        if kind in self._known:
            return self._compiled(*arguments)
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        try:
            with signals_wait():
                result = self._compiled(*arguments)
            self._known.add(kind)
            return result
        except (TorchDynamoException, InductorError) as error:
            # "backend='inductor' raised:", then what happened, then pages of advice.
            self.note, self._compiled = f"compilation failed: {' '.join(str(error).split(chr(10))[:2])}", None
        return self._eager(*arguments)
