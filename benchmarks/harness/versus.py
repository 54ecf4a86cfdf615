"""Common parts of the pytest suites: ours and a rival by turns, if they compute the same, and the record of it."""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
import torch

from benchmarks.harness.peaks import Peak
from fastres.bench.timing import Ratio, compare, seconds, wait
from fastres.recipe import Recipe
from fastres.utils.machine import environment_facts

FIGURES: dict[str, dict[str, Any]] = {}
"""Records of all benchmarks of this session."""

Call = Callable[[], Any]
CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Of the suites that train and evaluate."""
_VERSIONS = ("fastres", "commit", "dirty", "python", "torch", "torchvision", "triton", "numba", "numpy", "cpu_model")


def nothing() -> None:
    """Nothing to do."""


@dataclass(frozen=True)
class Side:
    """Ours or a rival."""

    run: Call
    """A turn: what is timed."""
    units: float = 1.0
    """Units that a turn processes, as the benchmark counts them: images, bytes."""
    outcome: Call | None = None
    """Gives what the other side's is compared with, once, before anything is timed; by default a turn does."""
    before: Call = nothing
    """Untimed, before each turn."""
    after: Call = nothing
    """Untimed, after each turn."""
    peak: Callable[[], int | None] | None = None
    """Gives the last turn's peak memory in bytes, where the work is another process's."""

    def turn(self, device: torch.device | None = None) -> tuple[float, int | None]:
        """Seconds of a turn, and on `device`, where one is given, its peak memory."""
        self.before()
        peak = None if device is None else Peak(device)
        if peak is not None:
            peak.begin()
        took = seconds(self.run)
        most = None if peak is None else peak.end() if self.peak is None else self.peak()
        self.after()
        return took, most


@dataclass(frozen=True)
class Ceiling:
    """The most that the machine does of some work, measured by turns with the two sides."""

    name: str
    run: Call
    amount: float
    """Operations or bytes of a call."""


class Same(Protocol):
    """Demands of two outcomes that both sides compute the same; raises AssertionError where they do not."""

    def __call__(self, ours: Any, rival: Any) -> None: ...


def matrix_product(dtype: torch.dtype, side: int = 2048) -> Ceiling:
    """A product of two square matrices: what the machine's matrix units deliver."""
    left, right = (torch.randn(side, side).to(DEVICE, dtype) for _ in range(2))

    def product() -> torch.Tensor:
        result = left @ right
        wait(DEVICE)
        return result

    return Ceiling(f"{str(dtype).removeprefix('torch.')} matrix product", product, 2 * side**3)


def copying(bytes: int, times: int = 1) -> Ceiling:
    """A copy that reads and writes `bytes` in all, `times` over: each from and to another part of memory, beyond every
    cache where there are enough of them."""
    size = bytes // 2 // 4
    source, target = torch.zeros(times * size), torch.zeros(times * size)

    def copy() -> None:
        for start in range(0, times * size, size):
            target[start : start + size] = source[start : start + size]

    return Ceiling("copy in memory", copy, 2 * 4 * size * times)


def note(request: pytest.FixtureRequest, benchmark: Any, **figures: Any) -> None:
    """Put figures on record, in pytest-benchmark's own data and in the summary."""
    benchmark.extra_info.setdefault("versions", versions())
    benchmark.extra_info.update(figures)
    entry = FIGURES.setdefault(request.node.name.removeprefix("test_"), {"suite": request.node.path.stem})
    entry.update(figures)


@functools.cache
def versions() -> dict[str, Any]:
    """Facts besides the recipe that decide a figure."""
    facts = environment_facts()
    return {key: facts[key] for key in _VERSIONS}


class Versus:
    """Measures ours and a rival by turns: what the fixture `versus` gives.

    First the outcomes of both sides are compared: where `same` raises, nothing is timed and nothing recorded. Then each
    side warms up with one turn and has its peak memory measured in a second; then they take turns, one of the ceiling
    between them, and pairs of turns give the ratio.
    """

    def __init__(self, benchmark: Any, request: pytest.FixtureRequest, *, dry: bool, full: bool = False) -> None:
        self.benchmark, self.request, self.dry, self.full = benchmark, request, dry, full

    def __call__(
        self,
        ours: Side | Call,
        rival: Side | Call,
        *,
        same: Same,
        rounds: int,
        against: str,
        unit: str = "",
        ceiling: Ceiling | None = None,
        operations: float | None = None,
        bytes: float | None = None,
        recipe: Recipe | None = None,
        at_least: float | None = None,
        whole: bool = False,
        device: torch.device = CPU,
        **figures: Any,
    ) -> Ratio:
        """The rival's seconds over ours, of as many units, and the record of all that was measured.

        Args:
            ours, rival: the two, alone or as a `Side`.
            same: demands that their outcomes agree.
            rounds: turns of each; 2 in a dry run, 1 gives a ratio without quartiles.
            against: what the rival is, in a few words.
            unit: what `Side.units` counts; figures are then rates.
            ceiling: what the machine does at most.
            operations, bytes: of a turn of ours; a ceiling is of the one that is given.
            recipe: the one that decides the numbers; its hash is recorded.
            at_least: the ratio that is demanded, except in a dry run. It is checked when all is on record.
            whole: turns are whole trainings, too long to be repeated: no warm-up, and memory is the most of all turns.
            device: whose memory is measured.
        """
        sides = [side if isinstance(side, Side) else Side(side) for side in (ours, rival)]
        same(*((side.outcome or side.run)() for side in sides))
        peaks: list[list[int | None]] = [[], []]
        if not whole:
            for side, found in zip(sides, peaks, strict=True):
                side.turn()
                found.append(side.turn(device)[1])
            if ceiling is not None:
                ceiling.run()
        first, second = sides
        rivals: list[float] = []
        ceilings: list[float] = []
        peak = Peak(device)

        def others() -> None:
            took, most = second.turn(device if whole else None)
            peaks[1].append(most)
            rivals.append(took)
            if ceiling is not None:
                ceilings.append(min(seconds(ceiling.run) for _ in range(3)))
            first.before()
            if whole:
                peak.begin()

        def after() -> None:
            if whole:
                peaks[0].append(peak.end())
            first.after()

        rounds = min(rounds, 2) if self.dry else rounds
        self.benchmark.pedantic(first.run, setup=others, teardown=after, rounds=rounds, iterations=1)
        turns = self.benchmark.stats.stats.data
        own = [took / first.units for took in turns]
        ratio = compare(own, [took / second.units for took in rivals])
        record: dict[str, Any] = {
            "against": against,
            "unit": unit,
            "ratio": ratio.median,
            "ratio_quartiles": [ratio.low, ratio.high],
            "median_seconds": statistics.median(turns),
            "rival_median_seconds": statistics.median(rivals),
            "peak_bytes": _most(peaks[0]),
            "rival_peak_bytes": _most(peaks[1]),
        }
        if unit:
            record |= {f"{unit}_per_second": 1 / ratio.seconds, f"rival_{unit}_per_second": 1 / ratio.rival_seconds}
        record |= {key: value for key, value in (("operations", operations), ("bytes", bytes)) if value is not None}
        if recipe is not None:
            record["recipe_hash"] = recipe.hash()
        if ceiling is not None:
            work = operations if operations is not None else bytes
            assert work is not None, "a ceiling of nothing"
            # Work over seconds on both sides, so that the ratio of the rates is the share.
            share = compare([took / work for took in turns], [took / ceiling.amount for took in ceilings])
            record |= {
                "ceiling": ceiling.name,
                "ceiling_per_second": 1 / share.rival_seconds,
                "share_of_ceiling": share.median,
                "share_of_ceiling_quartiles": [share.low, share.high],
            }
        if self.dry:
            record["dry"] = True
        note(self.request, self.benchmark, **record, **figures)
        if at_least is not None and not self.dry:
            assert ratio.median > at_least, f"{ratio.median:.2f} times as fast as {against}: less than {at_least:g}"
        return ratio


def _most(found: Sequence[int | None]) -> int | None:
    return max((each for each in found if each is not None), default=None)
