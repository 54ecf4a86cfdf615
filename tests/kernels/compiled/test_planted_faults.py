"""Faults planted into compiled code are found: missing masks and barriers, wrong strides, barriers that open early."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from norm_cases import Case, assert_same, by_kernels, draw
from ptx.driver import Launch
from ptx.machine import Order
from ptx.parse import PtxError
from ptx.session import running

from fastres.kernels.batch_norm import launch

CPU = torch.device("cpu")
TWO_PASS = Case("add", "relu", "two_pass", torch.bfloat16)
RESIDENT = Case("dual", "relu", "resident/5", torch.bfloat16)
ORDERS = (None, Order(1), Order(2), Order(3, warps=True), Order(4, warps=True))

Edit = Callable[[str], Iterator[str]]
"""All texts that one kind of fault makes of a kernel's."""


def at_each(pattern: str, replacement: str) -> Edit:
    """A fault at each place that matches."""

    def edits(text: str) -> Iterator[str]:
        for match in re.finditer(pattern, text):
            yield text[: match.start()] + match.expand(replacement) + text[match.end() :]

    return edits


FAULTS: dict[str, Edit] = {
    "missing mask": at_each(r"@%p\d+ ((?:ld|st)\.global\.)", r"\1"),
    "wrong stride": at_each(r"(m(?:ul|ad)\.wide\.[su]32\s+%rd\d+, %r\d+), (?:2|4)\b", r"\1, 8"),
    "missing barrier": at_each(r"\tbar\.sync \t0;(?:\s*\tbar\.sync \t0;)*", ""),
    "barrier opens early": at_each(r"-2147483647\b", "-2147483646"),
    "nobody waits": at_each(r"(\.acquire\.b32(?s:.)*?)@%p\d+ bra \t\$\w+;", r"\1"),
    "merged early": at_each(r"(add\.s32 \t%r\d+, %r\d+), -1;((?:(?!add)(?s:.))*?setp\.ne\.b32)", r"\1, -2;\2"),
}


def planted(case: Case, kernel: str, text: str) -> str | None:
    """What the machine says of a case whose kernel has another text; None where it finds nothing."""

    def edit(launch: Launch) -> str:
        return text if launch.kernel == kernel else launch.ptx

    inputs = draw(case, device=CPU)
    with running():
        expected = by_kernels(case, inputs)
    try:
        for order in ORDERS:
            with running(edit=edit, order=order):
                found = by_kernels(case, inputs)
            assert_same(found, expected)
            for use, allowed in (("ticket", {0}), ("barrier", {0, -(2**31)})):
                ring = launch._RINGS.get((CPU, use))
                assert ring is None or set(ring.ring.unique().tolist()) <= allowed, "counters"
    except (PtxError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for use in ("ticket", "barrier"):
            launch._RINGS.pop((CPU, use), None)
    return None


def texts(case: Case) -> dict[str, str]:
    """The code of each kernel of a case."""
    with running() as session:
        by_kernels(case, draw(case, device=CPU))
    return {each.launch.kernel: each.launch.ptx for each in session.executed}


@pytest.mark.parametrize(
    ("fault", "case", "kernel", "place", "says"),
    [
        ("missing mask", TWO_PASS, "apply_kernel", -1, "out of bounds"),
        ("wrong stride", TWO_PASS, "gradient_kernel", 0, "out of bounds"),
        ("missing barrier", TWO_PASS, "statistics_kernel", 0, "without a barrier"),
        ("barrier opens early", RESIDENT, "resident_forward_kernel", 0, "nobody wrote|never ends"),
        ("nobody waits", RESIDENT, "resident_backward_kernel", 0, "nobody wrote"),
        ("merged early", TWO_PASS, "reduce_kernel", 0, "nobody wrote|counters"),
    ],
)
def test_each_kind(fault: str, case: Case, kernel: str, place: int, says: str) -> None:
    text = list(FAULTS[fault](texts(case)[kernel]))[place]
    found = planted(case, kernel, text)
    assert found is not None and re.search(says, found), found


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("fault", FAULTS)
def test_every_place(fault: str, record_property: Any) -> None:
    """At every place, in every kernel. Not all are faults: a column too many is the next row's first, which the store's
    mask leaves out; what several threads write alike needs no mask; some addresses are of splits that these shapes
    lack; Triton sets more barriers than these need."""
    total, missed = 0, []
    for case in (TWO_PASS, RESIDENT):
        for kernel, original in texts(case).items():
            for number, text in enumerate(FAULTS[fault](original)):
                total += 1
                if planted(case, kernel, text) is None:
                    missed.append(f"{kernel} {number}")
    record_property("log", f"{fault}: {total - len(missed)} of {total} planted faults found; not found: {missed}")
    assert total > 0 and len(missed) <= total // 4
