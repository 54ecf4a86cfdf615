"""What is read off the machine."""

import pytest

from fastres.runs.environment import environment
from fastres.utils.machine import computes_bf16


@pytest.mark.parametrize(
    ("isa", "expected"),
    [(["avx2"], False), (["avx2", "avx512f"], False), (["avx512_bf16"], True), (["amx_bf16"], True), (["bf16"], True)],
)
def test_whether_a_cpu_computes_bf16(isa: list[str], expected: bool) -> None:
    assert computes_bf16(isa) == expected


def test_unknown_instruction_sets_warn_nobody() -> None:
    assert computes_bf16([])
    assert isinstance(computes_bf16(environment().isa), bool)
