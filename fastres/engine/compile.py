"""Compiling a function with TorchInductor, or saying why it runs eagerly."""

import os
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastres.engine.cpp_compiler import CompilerFault, missing_compiler, said, usable_compiler
from fastres.utils.signals import signals_wait

if TYPE_CHECKING:
    from fastres.engine.compile_cache import Graph


def _switched_off() -> str | None:
    """What keeps torch.compile from compiling anything in this process: it would call the function, and say nothing."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "TORCHDYNAMO_DISABLE is 1"
    if torch._dynamo.config.disable:
        asked = os.environ.get("TORCH_COMPILE_DISABLE") == "1"
        return "TORCH_COMPILE_DISABLE is 1" if asked else "torch._dynamo.config.disable is set"
    if torch._dynamo.eval_frame._stance.stance == "force_eager":
        return "torch.compiler.set_stance('force_eager')"
    return None


class Compiled:
    """`function`, compiled as one graph for each combination of shapes it is called with.

    `dynamic=False`: automatic dynamic shapes would recompile the full batch's graph after a partial batch, and the
    new code rounds differently, so that an interrupted run would not end with the same bits. Where compilation fails,
    the function runs eagerly from then on and `fallback_reason` says why.

    On a CPU a function that names what it reads, `network` and by `about` all else, has its graphs kept between runs
    (see compile_cache.py). Where that is impossible they are compiled in each run, and `fallback_reason` says why.
    """

    def __init__(
        self, function: Callable[..., Any], *, enabled: bool, network: nn.Module | None = None, about: str = ""
    ) -> None:
        self._eager, self._network, self._about = function, network, about
        self.fallback_reason: str | None = "train.compile is false"
        if enabled:
            self.fallback_reason = _switched_off() or missing_compiler()
        self.active = self.fallback_reason is None
        """Whether calls run compiled code."""
        self._on_cpu = network is None or all(tensor.device.type == "cpu" for tensor in network.parameters())
        self._keeps = network is not None and self._on_cpu
        self._traced: Callable[..., Any] | None = None  # by torch.compile, which compiles each combination of shapes
        self._graphs: dict[Any, Graph | None] = {}  # by kind of call; None: torch.compile has it
        self._first: Graph | None = None

    @property
    def from_cache(self) -> bool:
        """Whether the graph of the first call had been compiled by an earlier run."""
        return self._first is not None and self._first.from_cache

    @property
    def cold_seconds(self) -> float | None:
        """Cold-start seconds stored with the first call's graph."""
        return None if self._first is None else self._first.cold_seconds

    def give_up(self, reason: str) -> None:
        """Run eagerly from now on, for `reason`."""
        self.fallback_reason, self.active = reason, False

    def remember(self, cold_seconds: float) -> None:
        """Keep with the graph of the first call how long the start took that compiled it, in seconds."""
        if self._first is not None:
            self._first.remember(cold_seconds)

    def __call__(self, *arguments: torch.Tensor, variant: Hashable = None) -> Any:
        """The function's value. `variant` stands for what else, besides the arguments' shapes, makes another graph."""
        if not self.active:
            return self._eager(*arguments)
        training = self._network is not None and self._network.training
        kinds = [(argument.shape, argument.stride(), argument.dtype) for argument in arguments]
        case = (variant, training, torch.is_grad_enabled(), *kinds)  # all that changes between two calls
        if case in self._graphs:
            graph = self._graphs[case]
            if graph is None:
                return self._plain()(*arguments)
            if graph.guards_hold(*arguments):
                return graph(*arguments)
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        try:
            # A process that trains several networks compiles the same line of code anew for each of them.
            limit = max(64, torch._dynamo.config.recompile_limit)
            with signals_wait(), torch._dynamo.config.patch(recompile_limit=limit):
                graph = self._kept(arguments)
                result = self._compiled_plainly(arguments) if graph is None else graph(*arguments)
            self._graphs[case] = graph
            return result
        except CompilerFault as error:
            self.give_up(f"the C++ compiler does not work: {error}")
        except (TorchDynamoException, InductorError) as error:
            self.give_up(f"compilation failed: {_short(error)}")
        return self._eager(*arguments)

    def _kept(self, arguments: tuple[torch.Tensor, ...]) -> "Graph | None":
        """The graph for `arguments` from compile_cache.py, or None with a `fallback_reason`."""
        if not self._keeps or self._network is None:
            return None
        from fastres.engine import compile_cache

        try:
            graph = compile_cache.get_or_compile(self._eager, arguments, self._network, self._about)
        except CompilerFault:
            raise
        except Exception as error:  # what serialising meets is torch's private business; a full disk is not fatal
            if _compiler_output(error) is not None:
                raise  # the compiler would say the same once more
            ours = isinstance(error, compile_cache.CacheUnavailable)
            reason = str(error) if ours else f"{type(error).__name__}: {_short(error)}"
            self.fallback_reason, self._keeps = f"not kept for the next start: {reason}", False
            return None
        self._first, self.fallback_reason = self._first or graph, self.fallback_reason or graph.fallback_reason
        return graph

    def _compiled_plainly(self, arguments: tuple[torch.Tensor, ...]) -> Any:
        """The function's value, by torch.compile, which compiles for `arguments` now."""
        if not self._on_cpu:
            return self._plain()(*arguments)
        from fastres.engine import compile_cache

        spare: Path | None = None
        with suppress(compile_cache.CacheUnavailable):
            spare = compile_cache.root()
        with usable_compiler(spare):
            return self._plain()(*arguments)

    def _plain(self) -> Callable[..., Any]:
        if self._traced is None:
            from fastres.engine import compile_cache

            compile_cache.configure_cache_dir()
            self._traced = torch.compile(self._eager, dynamic=False, fullgraph=True)
        return self._traced


def _compiler_output(error: Exception) -> str | None:
    """Output of the C++ compiler, where that is what failed."""
    output = getattr(getattr(error, "inner_exception", error), "output", None)
    return output if isinstance(output, str) else None


def _short(error: Exception) -> str:
    output = _compiler_output(error)
    if output is not None:
        return f"the C++ compiler said: {said(output)}"
    # "backend='inductor' raised:", then what happened, then pages of advice.
    return " ".join(str(error).split("\n")[:2])
