"""What is read off the machine."""

import os

import pytest

from fastres.runs.environment import environment
from fastres.utils.machine import computes_bf16, contention


@pytest.mark.parametrize(
    ("isa", "expected"),
    [(["avx2"], False), (["avx2", "avx512f"], False), (["avx512_bf16"], True), (["amx_bf16"], True), (["bf16"], True)],
)
def test_whether_a_cpu_computes_bf16(isa: list[str], expected: bool) -> None:
    assert computes_bf16(isa) == expected


def test_unknown_instruction_sets_warn_nobody() -> None:
    assert computes_bf16([])
    assert isinstance(computes_bf16(environment().isa), bool)


def test_a_load_above_the_cores_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.25, 9.0, 9.0))
    assert contention() == "this machine is busy (load 3.2 on 2 cores): rates below are not its own"
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 9.0, 9.0))
    assert contention() is None
