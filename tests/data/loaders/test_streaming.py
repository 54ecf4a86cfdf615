"""A store of 2 GB streams through every loader that streams, in less than 1 GB of memory."""

from pathlib import Path

import pytest

from benchmarks.suites.streaming import limited_group, run, synthetic_store
from fastres.data.loaders import choose

GB = 1_000_000_000
SECONDS = 900
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_store(tmp_path_factory.mktemp("streaming"), 2 * GB)


@pytest.mark.parametrize("kind", ["ffcv", "dali", "torch"])
def test_two_gigabytes_in_less_than_one(kind: str, store: Path) -> None:
    """Anonymous memory, of all processes together, without a limit; then all memory, page cache included, with one."""
    if not choose.installed(kind):
        pytest.skip(f"{kind} is not installed: pip install 'fastres[{kind}]'")
    if kind == "ffcv":
        from fastres.data.store import beton
        from fastres.data.store.decoded import open_store

        beton.prepare(open_store(store, "synthetic"), quiet=True)
    free = run(store, kind, epochs=2)
    print(free)
    assert free["images"] == 2 * GB // 3072
    assert free["wrong"] == 0
    assert free["peak_anonymous_bytes"] < GB
    try:
        with limited_group(GB):
            pass
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    limited = run(store, kind, epochs=2, limit=GB)
    slowdown = [
        whole / less for whole, less in zip(free["images_per_second"], limited["images_per_second"], strict=True)
    ]
    print(limited, "with the limit, epochs take {:.2f} and {:.2f} times as long".format(*slowdown))
    assert limited["images"] == free["images"]
    assert limited["wrong"] == 0
