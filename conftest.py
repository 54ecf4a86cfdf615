"""Options of the benchmarks, here because pytest asks for options before it looks into benchmarks/, and the choice of
what `pytest` without arguments runs: the tests, or with --benchmark-only the benchmarks. Threads of pytest's workers,
here because no module has imported torch yet."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers share the cores. What a test starts inherits the variable: a run in a process of its own has the
    # bits of one in this process only with as many threads.
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastres benchmarks")
    # With the =: pytest takes a file that stands alone for what to run, and its folder for the root.
    group.addoption("--save-results", type=Path, help="--save-results=FILE writes the figures to that JSON file")
    group.addoption("--full", action="store_true", help="run all benchmarks instead of those of ten minutes")
    group.addoption("--dry", action="store_true", help="run the benchmarks on tiny shapes: the figures mean nothing")
    group.addoption("--fail-on-regression", action="store_true", help="fail where a part of an epoch got slower")
    group.addoption("--baseline", help="commit to compare with: by default the last that differs from this checkout")
    group.addoption("--short", action="store_true", help="compare with the baseline for a third of the time at most")


def pytest_configure(config: pytest.Config) -> None:
    # `pytest benchmarks/bench_step.py`: a suite is found by its name, in whichever folder of benchmarks/ it is.
    for place, given in enumerate(config.args):
        path = Path(given.split("::")[0])
        if path.name.startswith("bench_") and not path.exists():
            for found in path.parent.glob(f"*/{path.name}"):
                config.args[place] = given.replace(str(path), str(found))
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.getoption("benchmark_only", False):
        config.args[:] = ["benchmarks"]
