"""CUDA graphs: work that is recorded once and launched as a whole, without the host in between."""

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

WARM_UP = 2
"""Times that work runs kernel by kernel before it is captured: compilers, autotuning, workspaces and optimizer state
come into being then, none of which a capture may do."""


class CudaGraphCache:
    """Captured work by key, in one pool of memory.

    Work takes no arguments and returns tensors: it reads what the caller has written to tensors that stay where they
    are, and its results are overwritten by the next call of any key. It must neither wait for the device nor branch on
    its values. On a CPU, where there is an `obstacle`, or once a capture has failed, it simply runs, and
    `fallback_reason` says why.
    """

    def __init__(self, device: torch.device, obstacle: str | None = None) -> None:
        self.fallback_reason = obstacle if device.type == "cuda" else "CUDA graphs need a GPU"
        """Reason why work is not captured; None where it is."""
        self._warm: dict[Hashable, int] = {}
        self._kept: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._pool: Any = None

    @property
    def captured(self) -> int:
        """Number of graphs."""
        return len(self._kept)

    def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """Do `work`; calls of equal keys must do the same."""
        if key in self._kept:
            graph, result = self._kept[key]
            graph.replay()
            return result
        if self.fallback_reason is not None:
            return work()
        if self._warm.setdefault(key, 0) < WARM_UP:
            self._warm[key] += 1
            return work()
        stream = torch.cuda.current_stream()
        try:
            graph = torch.cuda.CUDAGraph()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            # Other threads, such as a loader's, may go on allocating.
            with gc_disabled(), torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:
            self.fallback_reason = f"capture failed: {str(error).splitlines()[0]}"
            torch.cuda.set_stream(stream)  # ending a broken capture raises, before the stream is given back
            torch.cuda.synchronize()
            return work()
        self._kept[key] = graph, result
        graph.replay()
        return result


class GraphedCallable:
    """`function` of tensors, as graphs of `graphs`: one for each combination of shapes."""

    def __init__(self, function: Callable[..., Tensor], graphs: CudaGraphCache) -> None:
        self._function, self._graphs = function, graphs
        self._inputs: dict[Hashable, list[Tensor]] = {}

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The function's value."""
        if self._graphs.fallback_reason is not None:
            return self._function(*arguments)
        key = (id(self), *((argument.shape, argument.stride(), argument.dtype) for argument in arguments))
        if key not in self._inputs:
            self._inputs[key] = [torch.empty_like(argument) for argument in arguments]
        inputs = self._inputs[key]
        for buffer, argument in zip(inputs, arguments, strict=True):
            buffer.copy_(argument)
        return self._graphs.run(key, lambda: self._function(*inputs)).clone()  # the next replay overwrites it


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Keep Python's collector off during a capture: destroying an earlier graph or event would break it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run the block on a stream of its own, because the default one cannot be captured; on a CPU this does nothing.

    Autograd runs a node's backward on the stream of its forward. A backward that is captured alone therefore needs its
    forward in here too: on another stream it would escape the capture and break it.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
