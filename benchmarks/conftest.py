"""The `versus` fixture, and the summary that ends a benchmark run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import FIGURES, note
from fastres.bench.timing import Ratio, compare, seconds
from fastres.files import write_json
from fastres.machine import facts_to_publish


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save-results", type=Path, help="write the figures of all benchmarks to this JSON file")
    parser.addoption("--fail-on-regression", action="store_true", help="fail where a part of an epoch got slower")
    parser.addoption("--baseline", help="commit to compare with: by default the last that differs from this checkout")
    parser.addoption("--short", action="store_true", help="compare with the baseline for a third of the time at most")


@pytest.fixture
def versus(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., Ratio]:
    """Time ours and a rival in turn: versus(ours, rival, rounds=…, **figures) -> Ratio."""

    def run(ours: Callable[[], object], rival: Callable[[], object], *, rounds: int, **figures: Any) -> Ratio:
        rivals: list[float] = []
        for function in (ours, rival):
            function()  # compile and warm up
        benchmark.pedantic(ours, setup=lambda: rivals.append(seconds(rival)), rounds=rounds, iterations=1)
        ratio = compare(benchmark.stats.stats.data, rivals)
        note(request, benchmark, ratio=ratio.median, ratio_quartiles=[ratio.low, ratio.high], **figures)
        note(request, benchmark, median_seconds=ratio.seconds, rival_median_seconds=ratio.rival_seconds)
        return ratio

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not FIGURES:
        return
    terminalreporter.section("figures")
    for name, figures in FIGURES.items():
        terminalreporter.write_line(name)
        for key, value in figures.items():
            terminalreporter.write_line(f"    {key:<28} {_text(value)}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--save-results")
    if path is not None and FIGURES:
        machine = facts_to_publish()
        write_json(path, {"machine": machine, "figures": FIGURES})


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
