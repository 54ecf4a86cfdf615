"""Whether an epoch got slower since another commit, and by which part: the regression gate (gate.py).

    pytest benchmarks/bench_regression.py --benchmark-only --fail-on-regression [--baseline COMMIT] [--short]

The ratio to plain PyTorch and the figures stored for machines of this class are shown for information: they move with
the machine's load and with torch, and decide nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate import baselines, gate
from benchmarks.harness.versus import note
from benchmarks.suites.bench_step import paper_configuration
from fastres.recipe import Recipe


@pytest.fixture(scope="module")
def baseline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The commit to compare with, and its files."""
    try:
        commit = gate.baseline_of(request.config.getoption("--baseline"))
        return commit, gate.check_out(commit, tmp_path_factory.mktemp("baseline") / commit)
    except gate.GateError as error:
        if request.config.getoption("--baseline"):
            pytest.fail(f"--baseline: {error}", pytrace=False)
        pytest.skip(f"there is no baseline to compare with: {error}")


@pytest.fixture(scope="module")
def sides(baseline: tuple[str, Path], request: pytest.FixtureRequest) -> Iterator[gate.Gate]:
    """Both sides, compiled."""
    rule = gate.SHORT if request.config.getoption("--short") else gate.Rule()
    try:
        with gate.opened(baseline[1], Recipe.load(gate.RECIPE, gate.SETTINGS), rule=rule) as opened:
            yield opened
    except gate.GateError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.mark.full
@pytest.mark.parametrize("part", gate.PARTS)
def test_against_the_baseline(
    part: str, sides: gate.Gate, baseline: tuple[str, Path], benchmark: Any, request: pytest.FixtureRequest
) -> None:
    found: list[gate.Finding] = []
    benchmark.pedantic(lambda: found.append(sides.compare(part)), rounds=1)
    finding = found[0]
    note(
        request,
        benchmark,
        baseline=baseline[0][:12],
        verdict=("slower" if finding.slower else "not slower") + ("" if finding.decided else " (undecided)"),
        time_against_baseline=finding.ratio,
        interval=[finding.low, finding.high],
        fours=finding.fours,
        threads=sides.sides[1].threads,
        images_per_second=finding.images / finding.seconds,
        **baselines.beside(part, finding.images / finding.seconds),
    )
    if part == "step":
        rival = paper_configuration(Recipe.load(gate.RECIPE, gate.SETTINGS), finding.images).run
        note(request, benchmark, plain_pytorch_over_ours=gate.against_rival(sides.sides[1], rival))
    if request.config.getoption("--fail-on-regression"):
        assert not finding.slower, f"{finding.text}; the limit is {sides.rule.limit - 1:+.0%}"
