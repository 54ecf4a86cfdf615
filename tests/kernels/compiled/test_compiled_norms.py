"""The BatchNorm kernels as Triton compiles them, executed: every form against fp64, in any order of blocks."""

from typing import Any

import pytest
import torch
from covering import covering
from norm_cases import ACTIVATIONS, DTYPES, FORMS, SECONDS, Case, assert_same, by_kernels, compare, draw
from ptx.machine import Order
from ptx.session import TOTAL, running

from fastres.kernels.batch_norm import launch

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "form": FORMS,
    "second": SECONDS,
    "activation": tuple(ACTIVATIONS),
    "dtype": DTYPES,
    "training": (True, False),
    "fork": (False, True),
    "shape": (
        (3, 20, 5, 7),  # ragged rows and channels
        (2, 65, 2, 5),  # one channel too many
        (2, 32, 4, 8),  # whole tiles
    ),
}
ORDERS = (None, Order(1), Order(2, warps=True))


def cases(strength: int) -> list[Case]:
    return [Case(**choice) for choice in covering(OPTIONS, strength)]


def execute(case: Case, **options: Any) -> dict[str, torch.Tensor]:
    """The case's results, by kernels that the machine executes; the counters are as they were found."""
    with running(**options) as session:
        found = by_kernels(case, draw(case, device=CPU))
    assert len(session.executed) >= 2
    for use in ("ticket", "barrier"):
        ring = launch._RINGS.get((CPU, use))
        left = set() if ring is None else set(ring.ring.unique().tolist())
        assert left <= ({0} if use == "ticket" else {0, -(2**31)}), use
    return found


@pytest.mark.parametrize("case", cases(2), ids=str)
def test_options(case: Case) -> None:
    """Any two options in all combinations."""
    compare(case, draw(case, device=CPU), execute(case))


@pytest.mark.parametrize(
    "case",
    [
        Case("dual", "relu", "resident/5", torch.bfloat16, fork=True),
        Case("add", "relu", "two_pass", torch.bfloat16, fork=True),
    ],
    ids=str,
)
def test_the_same_bits_in_any_order(case: Case) -> None:
    """Blocks that wait for each other at a barrier, and blocks of which the last one merges."""
    first, *others = (execute(case, order=order) for order in ORDERS)
    compare(case, draw(case, device=CPU), first)
    for other in others:
        assert_same(first, other)


def test_compute_capability_8() -> None:
    """Without stmatrix and the reductions of sm_90."""
    case = Case("dual", "silu", "resident/2", torch.float16)
    compare(case, draw(case, device=CPU), execute(case, capability=80))


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("capability", [90, 80])
def test_every_form(capability: int, record_property: Any) -> None:
    """Any three options in all combinations, in step and in random orders: one criterion, the same bits."""
    before = TOTAL.copy()
    chosen = cases(3)
    for number, case in enumerate(chosen):
        found = execute(case, capability=capability)
        compare(case, draw(case, device=CPU), found)
        order = Order(number, warps=number % 2 == 1)
        assert_same(found, execute(case, capability=capability, order=order))
    done = TOTAL - before
    record_property(
        "log",
        f"BatchNorm, sm_{capability}: {len(chosen)} cases, {done['kernels']} kernels, {done['launches']} launches",
    )
