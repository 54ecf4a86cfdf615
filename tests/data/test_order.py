"""Orders and splits are pure functions with the properties they promise."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastres.data.loaders import ResidentLoader, on_device
from fastres.data.order import epoch_order, split
from fastres.errors import UserError
from fastres.recipe import DataConfig


@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 10_000), count=st.integers(1, 500))
def test_an_order_is_a_permutation_that_repeats(seed: int, epoch: int, count: int) -> None:
    order = epoch_order(seed, epoch, count)
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, epoch_order(seed, epoch, count))


def test_orders_differ_by_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(count=st.integers(2, 300), share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_a_holdout_divides_without_overlap(count: int, share: float, seed: int) -> None:
    data = DataConfig(split="holdout", validation_share=share)
    if not 0 < round(count * share) < count:
        with pytest.raises(UserError, match="leaves a part empty"):
            split(data, count, seed)
        return
    train, validation = split(data, count, seed)
    assert len(validation) == round(count * share)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(count))


def test_the_reports_split_leaks_as_its_code_did() -> None:
    train, validation = split(DataConfig(split="report", validation_share=0.2), 50_000, 0)
    assert np.array_equal(validation, np.arange(10_000))
    assert len(train) == 40_000
    shared = len(np.intersect1d(train, validation))
    # 80% of 10,000 expected; five standard deviations of the hypergeometric draw are 5·√(10,000·0.8·0.2·0.8) = 179.
    assert abs(shared - 8_000) < 179


def test_no_split_trains_on_everything() -> None:
    train, validation = split(DataConfig(split="none"), 10, 0)
    assert np.array_equal(train, np.arange(10))
    assert len(validation) == 0


@given(count=st.integers(1, 60), batch=st.integers(1, 20), drop_last=st.booleans(), data=st.data())
def test_the_resident_loader_delivers_the_order_from_any_step(
    count: int, batch: int, drop_last: bool, data: st.DataObject
) -> None:
    images = np.arange(80, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    labels, subset = np.arange(80, dtype=np.int64) * 2, np.arange(80 - count, 80)
    with ResidentLoader(on_device(images), labels, subset, batch, seed=5, drop_last=drop_last) as loader:
        expected = subset[epoch_order(5, 3, count)]
        whole = count // batch * batch if drop_last else count
        first = data.draw(st.integers(0, len(loader)))
        batches = list(loader.batches(3, first))
        assert len(batches) == len(loader) - first
        rows = torch.cat([batch.rows for batch in batches]).numpy() if batches else np.array([], dtype=np.int64)
        assert np.array_equal(rows, expected[:whole][first * batch :])
        for item in batches:
            assert torch.equal(item.labels, item.indices * 2)
            assert torch.equal(item.source[item.rows, 0, 0, 0].long(), item.indices)


def test_without_a_seed_the_order_is_the_sets() -> None:
    loader = ResidentLoader(on_device(np.zeros((9, 1, 1, 3), np.uint8)), np.zeros(9, np.int64), np.array([2, 4, 8]), 2)
    assert [batch.rows.tolist() for batch in loader.batches()] == [[2, 4], [8]]


def test_a_thousand_loaders_left_early_leave_nothing() -> None:
    """File handles, threads and iterators are those from before; nothing of the 3 MB of images was copied."""
    images, labels = np.zeros((1000, 32, 32, 3), np.uint8), np.zeros(1000, np.int64)

    def leave(way: int) -> None:
        loader = ResidentLoader(on_device(images), labels, np.arange(1000), 16, seed=way)
        iterator = loader.batches()
        next(iterator)
        if way % 2:
            loader.close()
            assert next(iterator, None) is None

    def held() -> tuple[int, int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), pages * os.sysconf("SC_PAGE_SIZE")

    for way in range(100):
        leave(way)
    handles, threads, resident = held()
    for way in range(1000):
        leave(way)
    after = held()
    assert after[:2] == (handles, threads)
    # One loader's positions and labels are 24 KB: a thousand that stayed would be 24 MB.
    assert after[2] - resident < 2_000_000
