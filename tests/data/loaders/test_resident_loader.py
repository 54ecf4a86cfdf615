"""The memory that resident batches lie in."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastres.data.loaders import ResidentLoader, on_device


@pytest.fixture
def store(tmp_path: Path) -> np.ndarray:
    """uint8 [40, 8, 8, 3], a read-only map."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.mark.parametrize("part", [slice(None), slice(3, 30), slice(1, 39, 2), slice(None, 0)])
def test_a_read_only_map_becomes_a_private_one(store: np.ndarray, part: slice) -> None:
    """Of any part of it, and without reading it."""
    before, images = np.array(store), store[part]
    source = on_device(images)
    assert torch.equal(source, torch.from_numpy(before[part]))
    source.fill_(7)
    assert np.array_equal(store, before) and torch.equal(on_device(images), torch.from_numpy(before[part]))
    assert (source == 7).all()


def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    """A set that is larger than the machine's memory can be mapped: no page of it is reserved."""
    path = tmp_path / "sparse.npy"
    size = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (32 * 32 * 3)
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, 32, 32, 3), np.uint8)) | {"shape": (size, 32, 32, 3)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + size * 32 * 32 * 3)
    source = on_device(np.load(path, mmap_mode="r"))
    source[-1] = 5
    assert len(source) == size and source[-2:].float().mean() == 2.5


def test_other_arrays(tmp_path: Path, store: np.ndarray) -> None:
    """A writable one is used as it is; of a read-only one without its file there is a copy."""
    own = np.array(store)
    on_device(own)[0] = 1
    assert (own[0] == 1).all()
    frozen = np.array(store)
    frozen.flags.writeable = False
    (tmp_path / "images.npy").unlink()
    for images in (frozen, store):
        on_device(images)[0] = 9
        assert (images[0] != 9).any()


def test_a_closed_loader_lets_go_of_the_map(store: np.ndarray, tmp_path: Path) -> None:
    loader = ResidentLoader(on_device(store), np.zeros(40, np.int64), np.arange(40), 8)
    path = str(tmp_path / "images.npy")
    assert Path("/proc/self/maps").read_text().count(path) == 2
    loader.close()
    assert Path("/proc/self/maps").read_text().count(path) == 1
