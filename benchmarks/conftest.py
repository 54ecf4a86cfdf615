"""The suites' fixtures, what is skipped, and the tables that end a run. Options are in the root's conftest.py."""

import os
from typing import Any

import pytest

from benchmarks.harness.summary import tables
from benchmarks.harness.versus import FIGURES, Versus
from fastres.utils.files import write_json
from fastres.utils.machine import contention, facts_to_publish

BUSY = contention()
"""Asked before anything is measured, whose own threads are a load."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is not asked for; the gate is, by any option of its own."""
    gate = any(config.getoption(option) for option in ("--fail-on-regression", "--baseline", "--short"))
    for item in items:
        asked = config.getoption("--full") or (gate and item.path.stem == "bench_regression")
        if item.get_closest_marker("full") and not asked:
            item.add_marker(pytest.mark.skip(reason="not one of the ten minutes' subset: ask with --full"))


@pytest.fixture
def dry(request: pytest.FixtureRequest) -> bool:
    """Whether the code is to run on tiny shapes, to show that it does."""
    return bool(request.config.getoption("--dry"))


@pytest.fixture
def versus(benchmark: Any, request: pytest.FixtureRequest, dry: bool) -> Versus:
    """Measures ours and a rival by turns: see `Versus`."""
    return Versus(benchmark, request, dry=dry, full=bool(request.config.getoption("--full")))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of prepared data: $FASTRES_DATA where that is set, else one that goes away."""
    return os.environ.get("FASTRES_DATA") or str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def source() -> str:
    """The images: CIFAR-10 as JPEG files where FASTRES_TEST_DATA names an archive of them, else shapes10."""
    return os.environ.get("FASTRES_TEST_DATA") or "shapes10"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES:
        terminalreporter.section("figures")
        if BUSY:
            terminalreporter.write_line(BUSY)
        for line in tables(FIGURES):
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--save-results")
    if path is not None and FIGURES:
        machine = facts_to_publish()
        write_json(path, {"machine": machine, "figures": FIGURES} | ({"contention": BUSY} if BUSY else {}))
