"""Plans: every row once, tiles that fit, the report's shapes by hand, the measured table over the rule."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastres.kernels.batch_norm import routing
from fastres.kernels.batch_norm.routing import Choice, Plan, Problem, Tile, candidates, plan, rule, split

H200 = 132  # multiprocessors


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Any]:
    """A function that writes the measured table; empty at first."""

    def write(*entries: dict[str, Any], symmetric_rows: int | None = None) -> None:
        path = tmp_path / "routing.json"
        path.write_text(json.dumps({"measured_on": "a test", "symmetric_rows": symmetric_rows, "entries": entries}))
        routing.use_table(path)

    before = routing.TABLE
    write()
    yield write
    routing.use_table(before)


def problem(batch: int, channels: int, side: int, **changes: Any) -> Problem:
    options = {"direction": "forward", "second": "none", "itemsize": 2, "multiprocessors": H200}
    return Problem(rows=batch * side * side, channels=channels, **{**options, **changes})


problems = st.builds(
    Problem,
    direction=st.sampled_from(["forward", "backward"]),
    second=st.sampled_from(["none", "add", "dual"]),
    itemsize=st.sampled_from([2, 4]),
    rows=st.one_of(st.integers(1, 300), st.integers(1, 50_000), st.integers(1, 2**31)),
    channels=st.one_of(st.integers(1, 70), st.integers(1, 4096)),
    multiprocessors=st.integers(1, 200),
    activation=st.sampled_from(["none", "relu", "silu", "gelu"]),
)


def assert_sound(found: Plan, problem: Problem) -> None:
    """Each row belongs to one split, no split is empty, and tiles and grid are what the form can do."""
    assert found.splits * found.rows_per_split >= problem.rows > (found.splits - 1) * found.rows_per_split
    columns = -(-problem.channels // found.sums.columns)
    for tile in (found.sums, found.output):
        elements = tile.rows * tile.columns
        assert elements.bit_count() == tile.columns.bit_count() == 1
        assert tile.columns % 8 == 0  # sign bits are stored by the byte
        assert elements % (32 * tile.warps) == 0
    if found.form == "resident":
        assert found.rows_per_split <= found.sums.rows
        largest = routing.RESIDENT_ELEMENTS[problem.tensors, problem.itemsize]
        assert found.sums.rows * found.sums.columns <= largest
        if found.splits > 1:  # all programs meet in a barrier: each has a multiprocessor of its own
            assert found.splits * columns <= problem.multiprocessors
    else:
        assert found.form == "two_pass"
        assert found.rows_per_split % found.sums.rows == 0
        # Splits of several tiles only where there are more tiles than programs at a time.
        assert found.splits * columns <= max(columns, 16 // found.sums.warps * problem.multiprocessors)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(problem=problems, training=st.booleans())
def test_plans_are_sound(problem: Problem, training: bool) -> None:
    found = plan(problem, training)
    assert_sound(found, problem)
    assert Choice(found.form, found.sums, found.output) in candidates(problem)  # what is compiled ahead of time
    if not training:
        assert found.form == "two_pass"
    assert found == plan(problem, training)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(problem=problems)
def test_every_candidate_that_fits_is_sound(problem: Problem) -> None:
    offered = candidates(problem)
    assert len(set(offered)) == len(offered)
    cuts = [cut for choice in offered if (cut := split(choice, problem))]
    assert {cut.form for cut in cuts} >= {"two_pass"}
    for cut in cuts:
        assert_sound(cut, problem)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(problem=problems)
def test_resident_with_one_split_where_it_fits(problem: Problem) -> None:
    """It needs neither barrier nor workspace and reads everything once."""
    tiles = [choice.sums.rows for choice in candidates(problem) if choice.form == "resident"]
    cut = split(rule(problem), problem)
    assert cut is not None
    assert (cut.form == "resident" and cut.splits == 1) == (problem.rows <= max(tiles, default=0))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # 524,288 rows: 2 programs of 8 warps a multiprocessor make 264 splits of 1,986 rows, 16 tiles of 128.
        (problem(512, 64, 32), Plan("two_pass", Tile(128, 64, 8), Tile(64, 64, 4), 256, 2048)),
        # 320 rows fit into 512 × 16.
        (problem(20, 512, 4), Plan("resident", Tile(512, 16, 8), Tile(512, 16, 8), 1, 320)),
        # 1,280 rows fit into 2,048 × 16, the largest tile for one bf16 tensor.
        (problem(20, 256, 8), Plan("resident", Tile(2048, 16, 16), Tile(2048, 16, 16), 1, 1280)),
        # With a residual the largest is 1,024 × 16: 16 columns of programs, 8 splits on 132 multiprocessors.
        (problem(20, 256, 8, second="add"), Plan("resident", Tile(256, 16, 4), Tile(256, 16, 4), 8, 160)),
        # 20,480 rows: 4 columns, 33 splits of 621 rows in 1,024 × 16; wider tiles are as large with more splits.
        (problem(20, 64, 32), Plan("resident", Tile(1024, 16, 16), Tile(1024, 16, 16), 33, 621)),
        # 8,192 rows of 512 channels: 32 columns, 4 splits, which fill 2,048 × 16 exactly.
        (problem(512, 512, 4), Plan("resident", Tile(2048, 16, 16), Tile(2048, 16, 16), 4, 2048)),
        # Two tensors of that do not fit: 8 columns of 64 channels leave 33 splits of 249 rows, 2 tiles of 128.
        (problem(512, 512, 4, second="add"), Plan("two_pass", Tile(128, 64, 8), Tile(64, 64, 4), 32, 256)),
        # Backward through two BatchNorms in fp32: three tensors, 256 × 16 at most, are too small for 20,480 rows.
        (
            problem(20, 64, 32, direction="backward", second="dual", itemsize=4),
            Plan("two_pass", Tile(64, 64, 8), Tile(32, 64, 4), 160, 128),
        ),
        # 3 channels take the narrowest tiles: 16 columns, 264 splits of 8 rows, which one tile of 512 rounds up.
        (problem(1000, 3, 32), Plan("two_pass", Tile(512, 16, 8), Tile(256, 16, 4), 250, 4096)),
    ],
    ids=lambda value: f"{value.rows}x{value.channels} {value.second}" if isinstance(value, Problem) else "",
)
@pytest.mark.usefixtures("table")
def test_plans_by_hand(given: Problem, expected: Plan) -> None:
    assert plan(given) == expected


def entry(rows: int, channels: int, form: str, sums: Tile, output: Tile, **changes: Any) -> dict[str, Any]:
    options = {"direction": "forward", "second": "none", "itemsize": 2, **changes}
    tiles = {"sums": [sums.rows, sums.columns, sums.warps], "output": [output.rows, output.columns, output.warps]}
    return {**options, "rows": rows, "channels": channels, "form": form, **tiles}


def test_table_overrides_the_rule_near_its_shapes(table: Any) -> None:
    two_pass = Tile(256, 32, 8), Tile(128, 32, 4)
    table(entry(320, 512, "two_pass", *two_pass))
    assert plan(problem(20, 512, 4)) == Plan("two_pass", *two_pass, 2, 256)
    # Half an octave, a factor of √2, is near: 28 images; a whole one is not: 40, or half the channels.
    assert plan(problem(28, 512, 4)).form == "two_pass"
    for other in (problem(40, 512, 4), problem(20, 256, 4), problem(10, 512, 4)):
        assert plan(other) == split(rule(other), other)
    # Nor is another direction, second operand or type.
    for changes in ({"direction": "backward"}, {"second": "add"}, {"itemsize": 4}):
        other = problem(20, 512, 4, **changes)
        assert plan(other).form == "resident"


def test_nearest_entry_wins(table: Any) -> None:
    wide, narrow = (Tile(128, 64, 8), Tile(64, 64, 4)), (Tile(512, 16, 8), Tile(256, 16, 4))
    table(
        entry(1000, 64, "two_pass", *narrow),
        entry(1400, 64, "two_pass", *wide),
        entry(1100, 90, "two_pass", *narrow),
    )
    assert plan(problem(1300, 64, 1)).sums == wide[0]
    assert plan(problem(1050, 64, 1)).sums == narrow[0]


def test_entry_that_does_not_fit_falls_back_to_the_rule(table: Any) -> None:
    """Measured where it fitted just so: 320 rows in 512; not for more rows than that on one multiprocessor."""
    tile = Tile(256, 16, 4)
    table(entry(256, 512, "resident", tile, tile))
    assert plan(problem(16, 512, 4)) == Plan("resident", tile, tile, 1, 256)
    larger = problem(20, 512, 4, multiprocessors=1)
    assert plan(larger) == split(rule(larger), larger)
    assert plan(larger).sums == Tile(512, 16, 8)


def test_resident_entry_is_not_taken_in_evaluation(table: Any) -> None:
    tile = Tile(512, 16, 8)
    table(entry(320, 512, "resident", tile, tile))
    assert plan(problem(20, 512, 4)).form == "resident"
    assert plan(problem(20, 512, 4), training=False).form == "two_pass"


def test_use_table(table: Any, tmp_path: Path) -> None:
    """A table that has just been measured counts from now on."""
    tiles = Tile(128, 64, 8), Tile(64, 64, 4)
    other = tmp_path / "measured.json"
    other.write_text(json.dumps({"measured_on": "", "entries": [entry(320, 512, "two_pass", *tiles)]}))
    assert plan(problem(20, 512, 4)).form == "resident"
    routing.use_table(other)
    assert plan(problem(20, 512, 4)).sums == tiles[0]


def test_entry_that_is_no_candidate_is_ignored(table: Any) -> None:
    """Nothing runs that was not compiled ahead of time, such as tiles of an older table."""
    table(entry(320, 512, "two_pass", Tile(64, 64, 2), Tile(64, 64, 2)))
    assert plan(problem(20, 512, 4)).form == "resident"


def test_symmetric_products_pay_from_the_measured_size_on(table: Any) -> None:
    assert not routing.symmetric_pays(10_000), "not while nobody has measured it"
    table(symmetric_rows=256)
    assert [routing.symmetric_pays(rows) for rows in (64, 255, 256, 512)] == [False, False, True, True]


def test_committed_table_offers_what_is_compiled_ahead_of_time() -> None:
    found = json.loads(routing.TABLE.read_text())
    assert found.keys() >= {"measured_on", "entries"}
    assert bool(found["measured_on"]) == bool(found["entries"] or found["symmetric_rows"])
    for row in found["entries"]:
        about = Problem(row["direction"], row["second"], row["itemsize"], row["rows"], row["channels"], H200)
        assert Choice(row["form"], Tile(*row["sums"]), Tile(*row["output"])) in candidates(about)
