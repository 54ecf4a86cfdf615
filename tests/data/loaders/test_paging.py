"""A mapped file larger than memory: the kernel is told what is read next, and what is read is the same."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastres.data import open_dataset
from fastres.data.loaders import choose, paging
from fastres.data.loaders.paging import Paging


@pytest.fixture
def images(tmp_path: Path) -> np.memmap:
    """uint8 [50, 32, 32, 3]: 37 pages and a half, behind a header of 128 bytes."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8))
    return np.load(tmp_path / "images.npy", mmap_mode="r")


def test_a_file_that_fits_is_left_alone(images: np.memmap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "usable_memory", lambda: 2 * images.nbytes)
    assert not Paging(images).active
    assert not Paging(np.zeros((50, 32, 32, 3), np.uint8)).active  # nor what is in memory already
    monkeypatch.setattr(paging, "usable_memory", lambda: 2 * images.nbytes - 1)
    assert Paging(images).active


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 39), max_size=30), skipped=st.integers(0, 10))
def test_announced_are_the_pages_of_the_rows(
    images: np.memmap, monkeypatch: pytest.MonkeyPatch, rows: list[int], skipped: int
) -> None:
    """Also of a view that begins in the middle of the file."""
    monkeypatch.setattr(paging, "usable_memory", lambda: 1)
    told: list[tuple[int, int]] = []

    class Recorded(Paging):
        def __init__(self, array: np.ndarray) -> None:
            super().__init__(array)
            assert self._map is not None
            actual, self._map = self._map, None
            self._map = type(  # type: ignore[assignment]
                "Recording",
                (),
                {"madvise": lambda _, advice, at, size: (told.append((at, size)), actual.madvise(advice, at, size))},
            )()

    Recorded(images[skipped:]).announce_rows(np.array(rows, dtype=np.int64))
    assert len(told) == len(rows)
    for row, (start, length) in zip(rows, told, strict=True):
        begin = 128 + (skipped + row) * 3072
        assert start % mmap.PAGESIZE == 0
        assert start <= begin < start + mmap.PAGESIZE
        assert start + length == begin + 3072


@pytest.mark.parametrize("kind", ["ffcv", "dali", "torch"])
def test_batches_are_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not choose.installed(kind):
        pytest.skip(f"{kind} is not installed: pip install 'fastres[{kind}]'")
    dataset = open_dataset("shapes10", quiet=True)
    assert dataset.train is not None
    expected = np.array(dataset.train.images)
    monkeypatch.setattr(paging, "usable_memory", lambda: 1)
    with choose.make_loader(dataset, loader=kind, batch_size=512, seed=0) as loader:
        for batch in loader.batches():
            assert np.array_equal(batch.source[batch.rows].numpy(), expected[batch.indices.numpy()])
