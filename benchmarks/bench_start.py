"""Starting: what somebody waits for before anything happens."""

import subprocess
import sys
from typing import Any

import pytest

from benchmarks.harness import note


@pytest.mark.parametrize("arguments", [["-m", "fastres", "--help"], ["-c", "import fastres"]], ids=["help", "import"])
def test_start(arguments: list[str], benchmark: Any, request: pytest.FixtureRequest) -> None:
    command = [sys.executable, *arguments]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=10, warmup_rounds=1)
    note(request, benchmark, median_seconds=benchmark.stats.stats.median, slowest_seconds=benchmark.stats.stats.max)
    # Half a second is the promise for --help; importing is a part of it.
    assert benchmark.stats.stats.median < 0.5
