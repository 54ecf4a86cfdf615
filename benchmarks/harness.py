"""Timing against a rival, and the ceilings of the machine at hand."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

FIGURES: dict[str, dict[str, Any]] = {}
"""What each benchmark of this session put on record."""


def note(request: pytest.FixtureRequest, benchmark: Any, **figures: Any) -> None:
    """Put figures on record, in pytest-benchmark's own data and in the summary."""
    benchmark.extra_info.update(figures)
    FIGURES.setdefault(request.node.name.removeprefix("test_"), {}).update(figures)


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


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def compare(ours: list[float], rivals: list[float]) -> Ratio:
    """The ratio of paired rounds; the median is untouched by a few rounds that something else disturbed."""
    pairs = sorted(rival / own for own, rival in zip(ours, rivals, strict=True))
    low, median, high = statistics.quantiles(pairs, n=4)
    return Ratio(median, low, high, statistics.median(ours), statistics.median(rivals))


class MatrixProduct:
    """A product of two square bf16 matrices, as a yardstick of what the machine's matrix units deliver."""

    def __init__(self, side: int = 2048) -> None:
        self.left = torch.randn(side, side).bfloat16()
        self.right = torch.randn(side, side).bfloat16()
        self.operations = 2 * side**3

    def __call__(self) -> object:
        return self.left @ self.right
