"""Variants of one computation, tried and timed by turns: what failed, and figures for JSON of the others."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastres.bench.timing import Timing, compare

Made = TypeVar("Made")


def tried(makers: Mapping[str, Callable[[], Made]]) -> tuple[dict[str, Made], dict[str, str]]:
    """What each of `makers` gave, and why the others failed: a rival may do so in any way."""
    made: dict[str, Made] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except Exception as error:  # the others are measured all the same
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return made, failed


def figures(timings: Mapping[str, Timing]) -> dict[str, dict[str, Any]]:
    """Microseconds a call of each variant, and how many times as fast `ours` is."""
    found = {}
    for name, timing in timings.items():
        found[name] = timing.facts()
        if name != "ours" and "ours" in timings:
            ratio = compare(timings["ours"].samples, timing.samples)
            found[name]["ours_is_times_as_fast"] = ratio.median
            found[name]["ours_is_times_as_fast_quartiles"] = [ratio.low, ratio.high]
    return found
