"""Which form of the BatchNorm kernels, with which tiles, for which shape; and when symmetric products pay.

A plan follows from shape, type and number of multiprocessors alone, never from a measurement made while a program
runs: the same run has the same bits. `rule` is arithmetic about registers and bandwidth. `routing.json`, which
`benchmarks/gpu/suite.py` writes from measurements, overrides it for the shapes that it names and those near them.
"""

import functools
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("routing.json")

COLUMNS = (16, 32, 64)
"""Columns of a tile. 64 columns of bf16 are a line of 128 bytes, 16 the smallest piece that memory moves, 32 bytes."""

RESIDENT_WARPS = {4096: 4, 8192: 8, 16384: 16, 32768: 16}
"""Elements of a resident tile, and the warps that hold it: 32 elements a thread, or 64."""

RESIDENT_ELEMENTS = {(1, 2): 32768, (2, 2): 16384, (3, 2): 8192, (1, 4): 16384, (2, 4): 8192, (3, 4): 4096}
"""The largest tile for a number of tensors that stay in registers and their bytes an element: more would spill. silu
and gelu need registers of their own, and so do the masks where C is no multiple of 16: each halves what fits."""

WARPS_PER_MULTIPROCESSOR = 16
"""Of the kernels that sum, in two passes: enough loads in flight, and few splits to merge at the end."""

TWO_PASS_TILES = {
    "forward": (((8192, 8), (4096, 4)), ((4096, 4), (2048, 4))),
    "backward": (((4096, 8), (2048, 4)), ((2048, 4), (4096, 8))),
}
"""Elements and warps of the tiles of the first and of the second kernel; the first pair is the rule's."""

MERGE_SPLITS = {"resident": 32, "two_pass": 64}
"""Splits that a program merges at a time: each turn waits for the second-level cache, but in the resident form the tile
occupies most registers meanwhile."""

OPTIONS = {"enable_fp_fusion": True}
"""For the compiler. It may fuse multiplications with additions: where bits must agree, the kernels spell it out."""


@dataclass(frozen=True)
class Tile:
    """A program's piece of the [M, C] matrix."""

    rows: int
    columns: int
    warps: int


@dataclass(frozen=True)
class Problem:
    """Properties of a call that its plan depends on."""

    direction: str
    """"forward" or "backward"."""
    second: str
    """Second operand, which is added: "none", "add" or "dual"."""
    itemsize: int
    """Bytes of an activation."""
    rows: int
    """M = N·H·W."""
    channels: int
    multiprocessors: int
    activation: str = "relu"

    @property
    def tensors(self) -> int:
        """Tensors that the resident form keeps."""
        if self.direction == "forward":
            return 1 if self.second == "none" else 2
        return 3 if self.second == "dual" else 2


@dataclass(frozen=True)
class Choice:
    """A form and its tiles, before a shape has been cut into splits."""

    form: str
    """"resident" or "two_pass"."""
    sums: Tile
    """Of the first kernel; of the only one, where it is resident."""
    output: Tile
    """Of the second kernel."""


@dataclass(frozen=True)
class Plan:
    """A choice for a shape: `splits` programs share the rows of a channel, `rows_per_split` each, the last one less."""

    form: str
    sums: Tile
    output: Tile
    splits: int
    rows_per_split: int


def plan(problem: Problem, training: bool = True) -> Plan:
    """The plan for a problem. Only the batch's statistics need a sum over all rows before the first output; without
    `training` it is never the resident form.
    """
    possible = candidates(problem)
    for choice in (measured(problem), rule(problem), _two_passes(problem)):
        if choice in possible and (training or choice.form == "two_pass"):
            cut = split(choice, problem)
            if cut is not None:
                return cut
    raise AssertionError("two passes fit every shape")


def split(choice: Choice, problem: Problem) -> Plan | None:
    """Cut a problem into splits; None where the form does not fit."""
    columns = math.ceil(problem.channels / choice.sums.columns)
    if choice.form == "resident":
        if problem.rows <= choice.sums.rows:
            return Plan("resident", choice.sums, choice.output, 1, problem.rows)
        splits = problem.multiprocessors // columns  # all programs must run at once
        if splits < 2:
            return None
        rows = math.ceil(problem.rows / splits)
        if rows > choice.sums.rows:
            return None
    else:
        programs = WARPS_PER_MULTIPROCESSOR // choice.sums.warps * problem.multiprocessors
        splits = max(1, programs // columns)
        # Whole tiles, so that only the last split has a ragged one.
        rows = math.ceil(math.ceil(problem.rows / splits) / choice.sums.rows) * choice.sums.rows
    return Plan(choice.form, choice.sums, choice.output, math.ceil(problem.rows / rows), rows)


def rule(problem: Problem) -> Choice:
    """The form that reads least: resident where the tensors fit into the registers, with as few programs to merge as
    possible, else two passes.
    """
    fitting = [
        (cut.splits > 1, choice.sums.rows * choice.sums.columns, cut.splits, choice)
        for choice in candidates(problem)
        if choice.form == "resident" and (cut := split(choice, problem))
    ]
    if fitting:
        return min(fitting, key=lambda entry: entry[:3])[3]
    return _two_passes(problem)


def _two_passes(problem: Problem) -> Choice:
    return next(choice for choice in candidates(problem) if choice.form == "two_pass")


def candidates(problem: Problem) -> list[Choice]:
    """Every choice there is for a problem's direction, second operand and activation, whatever its shape; for two
    passes the one whose tiles suit its channels comes first. What is measured, and what is compiled ahead of time.
    """
    choices = []
    crowding = (problem.activation in ("silu", "gelu")) + (problem.channels % 16 != 0)
    most = RESIDENT_ELEMENTS[problem.tensors, problem.itemsize] >> crowding
    for elements, warps in RESIDENT_WARPS.items():
        if elements <= most:
            tiles = [Tile(elements // columns, columns, warps) for columns in COLUMNS]
            choices += [Choice("resident", tile, tile) for tile in tiles]
    widths = sorted(COLUMNS, key=lambda columns: (columns < min(problem.channels, COLUMNS[-1]), columns))
    for columns, (first, second) in itertools.product(widths, TWO_PASS_TILES[problem.direction]):
        sums, output = (Tile(elements // columns, columns, warps) for elements, warps in (first, second))
        choices.append(Choice("two_pass", sums, output))
    return choices


def measured(problem: Problem) -> Choice | None:
    """The table's choice for the nearest measured shape, at most half an octave away in rows and in channels."""
    entries = _table().get((problem.direction, problem.second, problem.itemsize), [])
    nearest = min(entries, key=lambda entry: _octaves(problem, entry), default=None)
    if nearest is None or _octaves(problem, nearest) > 0.5:
        return None
    return Choice(nearest["form"], Tile(*nearest["sums"]), Tile(*nearest["output"]))


def _octaves(problem: Problem, entry: dict[str, Any]) -> float:
    return max(abs(math.log2(problem.rows / entry["rows"])), abs(math.log2(problem.channels / entry["channels"])))


def symmetric_pays(rows: int) -> bool:
    """Whether symmetric.py's product of matrices with so many rows was measured to take less time than a whole one."""
    least = _file().get("symmetric_rows")
    return least is not None and rows >= least


def use_table(path: Path) -> None:
    """Choose by another table from now on, such as one that has just been measured."""
    global TABLE
    TABLE = path
    _file.cache_clear()
    _table.cache_clear()


@functools.cache
def _file() -> dict[str, Any]:
    """`routing.json`: entries, see `_table`; `symmetric_rows`, the least number of rows from which symmetric.py wins,
    None while nobody has measured it; `measured_on`, the GPU."""
    content: dict[str, Any] = json.loads(TABLE.read_text())
    return content


@functools.cache
def _table() -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """`routing.json` by direction, second and itemsize. An entry has these three, rows, channels, form, and the tiles
    sums and output as [rows, columns, warps].
    """
    grouped: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for entry in _file()["entries"]:
        grouped.setdefault((entry["direction"], entry["second"], entry["itemsize"]), []).append(entry)
    return grouped
