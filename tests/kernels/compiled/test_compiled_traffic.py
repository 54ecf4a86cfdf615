"""Bytes that the compiled kernels move, against the table of kernels/README.md."""

import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from norm_cases import Case, draw
from ptx.session import Executed, running

from fastres.kernels.batch_norm import launch
from fastres.kernels.batch_norm.routing import Plan, Problem, candidates, split

PAGE = Path(__file__).parents[3] / "kernels" / "README.md"
DATA = {"x", "z", "second", "y", "bits", "dy", "dy2", "dx", "dz", "g_out"}
"""Arguments as large as an activation, and their bits; all others are a channel's, or partial sums."""
SHAPE = (8, 64, 16, 16)
MULTIPROCESSORS = 16
COLUMNS = {"none": 0, "add": 1, "dual": 2}


def table() -> dict[tuple[str, str], list[Fraction]]:
    """Of the page's table: multiples of T of the three columns, by direction and form."""
    rows = re.findall(r"^\| (forward|backward), (two passes|resident) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    found = {}
    for direction, form, cells in rows:
        numbers = [re.match(r"(\d+)(?: (\d+)/(\d+))?", cell.strip()) for cell in cells.split("|")]
        assert all(numbers)
        found[direction, "two_pass" if form == "two passes" else form] = [
            int(match[1]) + Fraction(int(match[2] or 0), int(match[3] or 1)) for match in numbers if match
        ]
    return found


def plan(direction: str, second: str, form: str) -> Plan:
    problem = Problem(direction, second, 2, SHAPE[0] * SHAPE[2] * SHAPE[3], SHAPE[1], MULTIPROCESSORS)
    fitting = (split(choice, problem) for choice in candidates(problem) if choice.form == form)
    return next(each for each in fitting if each)


def moved(executed: list[Executed], names: set[str] | None, kind: str = "traffic") -> int:
    """Bytes of some arguments; None: of all that are no data."""
    total: Counter[str] = Counter()
    for each in executed:
        for (_, name), size in getattr(each, kind).items():
            total[name] += size
    return sum(size for name, size in total.items() if (name not in DATA if names is None else name in names))


@pytest.mark.parametrize("form", ["two_pass", "resident"])
@pytest.mark.parametrize("second", COLUMNS)
def test_the_table_of_the_page(second: str, form: str, record_property: Any) -> None:
    """Exactly, and activations in whole sectors: rows and channels are whole tiles."""
    case = Case(second, "relu", form, torch.bfloat16, shape=SHAPE)
    x, other, x_norm, z_norm, dy, _ = draw(case, device=torch.device("cpu"))
    unit = x.numel() * x.itemsize
    with running(count_sectors=True) as forward:
        done = launch.forward(x, other, x_norm, z_norm, True, "relu", True, plan("forward", second, form))
    bits = done.bits if done.bits.numel() else None
    with running(count_sectors=True) as backward:
        launch.backward(
            dy, None, x, other, second, bits, done.statistics, x_norm, z_norm, True, "relu", True,
            other is not None, True, plan("backward", second, form),
        )  # fmt: skip
    for direction, session in (("forward", forward), ("backward", backward)):
        data = Fraction(moved(session.executed, DATA), unit)
        assert data == table()[direction, form][COLUMNS[second]], direction
        whole = DATA - {"bits"}
        assert moved(session.executed, whole, "sectors") == moved(session.executed, whole), "whole sectors"
        parameters, bits_sectors = (
            moved(session.executed, *which) / unit for which in ((None,), ({"bits"}, "sectors"))
        )
        record_property(
            "log",
            f"{direction}, {second}, {form}: {float(data):.4g} T of data, beside it {parameters:.2f} T of parameters "
            f"and partial sums, bits in sectors {bits_sectors:.4g} T, {len(session.executed)} kernels",
        )


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize(("second", "form", "more"), [
    ("none", "two_pass", 2), ("none", "resident", 1), ("add", "two_pass", 1), ("add", "resident", 1),
    ("dual", "two_pass", 2), ("dual", "resident", 1),
])  # fmt: skip
def test_two_gradients(second: str, form: str, more: int) -> None:
    """What the second reader's gradient adds, as the page says: once or twice T."""
    assert "+2 or +1 (resident); autograd's own sum costs 3 | +1 | +2 or +1 |" in PAGE.read_text()
    case = Case(second, "relu", form, torch.bfloat16, shape=SHAPE, fork=True)
    x, other, x_norm, z_norm, dy, dy2 = draw(case, device=torch.device("cpu"))
    with running():
        done = launch.forward(x, other, x_norm, z_norm, True, "relu", True, plan("forward", second, form))
    bits = done.bits if done.bits.numel() else None
    counts = []
    for extra in (None, dy2):
        with running() as session:
            launch.backward(
                dy, extra, x, other, second, bits, done.statistics, x_norm, z_norm, True, "relu", True,
                other is not None, True, plan("backward", second, form),
            )  # fmt: skip
        counts.append(moved(session.executed, DATA))
    assert counts[1] - counts[0] == more * x.numel() * x.itemsize
