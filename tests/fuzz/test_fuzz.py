"""Files from outside, mutated at random, of seven kinds: each is read with the values that it may have, or refused in
one or two lines; nothing hangs, nothing takes more than 2 GiB, and nothing in them runs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forks import Forks
from tests.fuzz.betons import Betons
from tests.fuzz.children import Kind, fuzz
from tests.fuzz.graphs import Graphs, GraphsInSample
from tests.fuzz.images import Images
from tests.fuzz.pickles import Pickles
from tests.fuzz.recipes import Recipes
from tests.fuzz.run_directories import RunDirectories
from tests.fuzz.stores import Stores

KINDS: tuple[type[Kind], ...] = (Recipes, Pickles, Images, Stores, Betons, RunDirectories, Graphs)
SAMPLE, ALL = 60, 5000


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    modules = [f"tests.fuzz.{kind.__module__.rpartition('.')[2]}" for kind in KINDS]
    with Forks(modules) as forks:
        yield forks


@pytest.mark.parametrize(
    "count", [SAMPLE, pytest.param(ALL, marks=(pytest.mark.slow, pytest.mark.fuzz))], ids=["sample", "all"]
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "-"))
def test_damage_is_read_or_told(
    kind: type[Kind],
    count: int,
    forks: Forks,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    if kind is Betons:
        request.getfixturevalue("needs_ffcv")
    if kind is Graphs and count == SAMPLE:
        kind = GraphsInSample
    counts = fuzz(forks, kind(tmp_path / "files"), count)
    record_property("log", str(counts))
    assert not counts.faults, f"{counts}\n{counts.told()}"
    # A fuzzer whose inputs are all read damages nothing, and one whose inputs are all refused reads nothing.
    assert 0.02 * count < counts.ends["read"] < 0.9 * count, counts
