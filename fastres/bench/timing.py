"""Timing variants of one computation in turn, on a GPU or on the CPU; no pytest.

A variant is a list of functions that do the same work on different buffers, one after another. All variants are
measured in one process, a round of each in alternating order, so that a change of the machine's clocks or load meets
all of them; what counts is the ratio, paired round by round.

On a GPU each variant is captured in a CUDA graph and its replays are timed with events: launching from Python costs
tens of microseconds, a kernel on a small tensor two. A spinning kernel in front of each timed region lets the host
queue the whole region first. A variant that cannot be captured is launched call by call, and its timing records that.
"""

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastres.engine.cuda_graph import gc_disabled

Call = Callable[[], object]

_SPIN_CYCLES = 1_000_000
"""About half a millisecond at 2 GHz: longer than the host needs to queue two events and some replays."""


@dataclass(frozen=True)
class Effort:
    """Duration of the measurement."""

    rounds: int
    """Samples of each variant."""
    target_seconds: float
    """A sample lasts at least so long: the work is repeated until it does."""
    settle_seconds: float
    """Least time to warm up. It ends when three rounds agree within 2%, or after ten times as long."""
    most_calls: int = 128
    """Calls in a captured graph, unless there are more buffer sets than that."""
    capture: bool = True
    """Whether to capture at all. Without, calls run from Python as they are: for what captures itself, and for what is
    to be measured with the host's part."""


STEPS = Effort(rounds=9, target_seconds=0.15, settle_seconds=0.3, capture=False)
"""For whole training steps: samples so long that the host cannot have queued them before they begin."""
# 2 ms: the few microseconds at a sample's two ends are then below 1%.
GPU = Effort(rounds=15, target_seconds=2e-3, settle_seconds=0.05)
DRY = Effort(rounds=3, target_seconds=0.0, settle_seconds=0.0, most_calls=2)
"""To run the code, not to measure."""


@dataclass(frozen=True)
class Ratio:
    """Rival's seconds over ours, paired round by round."""

    median: float
    low: float
    """First quartile of the pairs."""
    high: float
    """Third quartile."""
    seconds: float
    """Median of ours."""
    rival_seconds: float
    """Median of the rival's."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call of a variant, on the device."""

    samples: list[float] = field(repr=False)
    """One of each round, in seconds a call."""
    method: str
    """`graph`: replays of a CUDA graph; `launches`: CUDA events around calls from Python, which include the host's time
    where that is longer; `wall`: a host clock around calls on the CPU."""
    note: str = ""
    """Why the method is `launches`."""

    @property
    def seconds(self) -> float:
        """Median."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile, in seconds."""
        low, _, high = statistics.quantiles(self.samples, n=4)
        return low, high

    def facts(self) -> dict[str, Any]:
        """For JSON, in microseconds."""
        quartiles = [end * 1e6 for end in self.quartiles]
        facts = {"microseconds": self.seconds * 1e6, "quartiles_microseconds": quartiles, "method": self.method}
        return facts | ({"note": self.note} if self.note else {})


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Call) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def compare(ours: Sequence[float], rivals: Sequence[float]) -> Ratio:
    """The ratio of paired rounds; the median is untouched by a few rounds that something else disturbed. One pair alone
    is median and quartiles."""
    pairs = sorted(rival / own for own, rival in zip(ours, rivals, strict=True))
    low, median, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    return Ratio(median, low, high, statistics.median(ours), statistics.median(rivals))


def measure(
    variants: Mapping[str, Sequence[Call]], device: torch.device, effort: Effort, *, launched: Collection[str] = ()
) -> dict[str, Timing]:
    """Time all variants in turn; each value lists the calls of one variant, a call for each set of buffers.

    With one set the caches are hot; with sets of three times the L2's size together (`sets_for_cold_cache`) each call
    finds its inputs in memory. Results of calls stay alive until the last set is done, so that each set writes to
    memory of its own. On a GPU it must run within `side_stream`, and variants in `launched` are not captured. Raises
    what a variant raises at its first calls.
    """
    for calls in variants.values():
        for _ in range(math.ceil(3 / len(calls))):  # compile, tune, fill allocators: three calls at least
            for call in calls:
                call()
    efforts = {name: replace(effort, capture=effort.capture and name not in launched) for name in variants}
    runners = {name: _runner(calls, device, efforts[name]) for name, calls in variants.items()}
    _settle(list(runners.values()), effort)
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for index in range(effort.rounds):
        # Every second round goes backwards: no variant always runs behind the same other one.
        for name in list(runners) if index % 2 == 0 else reversed(runners):
            samples[name].append(runners[name].sample())
    return {name: Timing(samples[name], runner.method, runner.note) for name, runner in runners.items()}


def sets_for_cold_cache(bytes_per_call: int, cache_bytes: int) -> int:
    """Sets of buffers whose traffic is three times the cache, so that a round through them finds nothing cached. At
    most 512: a graph of more nodes takes longer to build than to run."""
    return min(512, max(1, math.ceil(3 * cache_bytes / bytes_per_call)))


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Most device memory that one call holds beyond what was allocated before, its result included; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return peak


def kernel_names(call: Call, device: torch.device) -> list[str] | None:
    """Names of the kernels that one call launches, in the profiler's order; None on a CPU.

    Triton's are plain identifiers, those of PyTorch and cuDNN are C++ signatures.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        call()
        torch.cuda.synchronize(device)
    on_device = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    return [event.name for event in profile.events() if event.device_type == on_device]


class _Runner:
    """A variant made ready: `sample` runs it often enough and returns seconds a call. This one, on the CPU."""

    method = "wall"
    note = ""
    copies = 1
    """Rounds through the sets in one `go`."""
    goes = 1
    """Times that a sample runs `go`."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls

    def go(self) -> None:
        """Go through all sets, keeping the results to the end of each round."""
        for _ in range(self.copies):
            results = [call() for call in self.calls]
            del results

    def elapsed(self) -> float:
        """Seconds of all goes."""
        began = time.perf_counter()
        for _ in range(self.goes):
            self.go()
        return time.perf_counter() - began

    def sample(self) -> float:
        return self.elapsed() / (self.goes * self.copies * len(self.calls))

    def lengthen(self, target_seconds: float) -> None:
        """Choose `goes` so that a sample lasts the target."""
        once = min(self.elapsed() for _ in range(3))
        self.goes = max(1, math.ceil(target_seconds / max(once, 1e-7)))


class _Launches(_Runner):
    """On a GPU, called from Python."""

    method = "launches"

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        super().__init__(calls)
        self.device = device

    def elapsed(self) -> float:
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(_SPIN_CYCLES)
        began.record()
        for _ in range(self.goes):
            self.go()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3


class _Graph(_Launches):
    """On a GPU, captured once and replayed."""

    method = "graph"

    def __init__(self, calls: Sequence[Call], device: torch.device, copies: int) -> None:
        super().__init__(calls, device)
        self.copies = copies
        # Not torch.cuda.graph: it empties the allocator's cache before each capture, and there are thousands.
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        with gc_disabled():
            self.graph.capture_begin()
            try:
                super().go()
            finally:
                self.graph.capture_end()

    def go(self) -> None:
        self.graph.replay()


def _runner(calls: Sequence[Call], device: torch.device, effort: Effort) -> _Runner:
    runner = _Runner(calls)
    if device.type == "cuda" and not effort.capture:
        runner = _Launches(calls, device)
    elif device.type == "cuda":
        launches = _Launches(calls, device)
        # Longer than the device needs where the host is slower: then the graph is short and is replayed more often.
        once = min(launches.elapsed() for _ in range(2))
        wanted = math.ceil(effort.target_seconds / max(once, 1e-7))
        copies = max(1, min(wanted, effort.most_calls // len(calls)))
        try:
            runner = _Graph(calls, device, copies)
        except RuntimeError as error:  # something in it cannot be captured
            torch.cuda.synchronize(device)
            cause = error.__context__ or error  # ending a broken capture raises once more
            launches.note = f"not captured: {str(cause)[:200]}"
            runner = launches
    runner.lengthen(effort.target_seconds)
    return runner


def _settle(runners: Sequence[_Runner], effort: Effort) -> None:
    """Run rounds until the clocks have settled."""
    began = time.perf_counter()
    last: list[float] = []
    while (spent := time.perf_counter() - began) < 10 * effort.settle_seconds:
        last = [*last[-2:], sum(runner.sample() for runner in runners)]
        if spent > effort.settle_seconds and len(last) == 3 and max(last) < 1.02 * min(last):
            return
