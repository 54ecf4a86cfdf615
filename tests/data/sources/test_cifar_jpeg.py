"""The whole of CIFAR-10 as JPEG files in a tar.xz, where FASTRES_TEST_DATA names it."""

import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastres.data import open_dataset

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of the first images in the archive: 20 of each class for training and 10 for testing."""
    given = os.environ.get("FASTRES_TEST_DATA")
    if not given:
        pytest.skip("FASTRES_TEST_DATA is not set to the path of cifar10-jpeg.tar.xz")
    path = tmp_path_factory.mktemp("subset") / "subset.tar"
    taken: Counter[tuple[str, str]] = Counter()
    with tarfile.open(given, "r:xz") as source, tarfile.open(path, "w") as target:
        for member in source:
            if member.isfile():
                part, label, _ = member.name.split("/")
                if taken[part, label] < {"train": 20, "test": 10}[part]:
                    taken[part, label] += 1
                    target.addfile(member, source.extractfile(member))
    return path


def test_counts_and_classes(subset: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(subset), root=tmp_path, quiet=True)
    assert dataset.classes == CLASSES
    assert dataset.train is not None and dataset.test is not None
    assert dataset.train.images.shape == (200, 32, 32, 3) and dataset.test.images.shape == (100, 32, 32, 3)
    assert dataset.train.labels is not None and dataset.test.labels is not None
    assert dataset.train.labels.tolist() == list(range(10)) * 20
    assert dataset.test.labels.tolist() == list(range(10)) * 10
    # CIFAR-10's published mean, (0.4914, 0.4822, 0.4465): 200 images, whose own means scatter by 0.12, are within 0.04.
    np.testing.assert_allclose(dataset.mean, (0.4914, 0.4822, 0.4465), atol=0.04)
    # Published standard deviation over pixels, (0.2470, 0.2435, 0.2616).
    np.testing.assert_allclose(dataset.std, (0.2470, 0.2435, 0.2616), atol=0.03)


def test_a_truncated_archive(tmp_path: Path) -> None:
    given = os.environ.get("FASTRES_TEST_DATA")
    if not given:
        pytest.skip("FASTRES_TEST_DATA is not set to the path of cifar10-jpeg.tar.xz")
    from fastres.errors import UserError

    path = tmp_path / "cut.tar.xz"
    with Path(given).open("rb") as file:
        path.write_bytes(file.read(1 << 20))
    with pytest.raises(UserError, match=r"cut\.tar\.xz is truncated or damaged"):
        open_dataset(str(path), root=tmp_path, quiet=True)
