"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for stores that lives as long as the tests: shapes10 is drawn once, the user's own are not touched."""
    root = tmp_path_factory.mktemp("data")
    before = os.environ.get("FASTRES_DATA")
    os.environ["FASTRES_DATA"] = str(root)
    yield root
    if before is None:
        del os.environ["FASTRES_DATA"]
    else:
        os.environ["FASTRES_DATA"] = before


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for operations: on tiny tensors a second one only waits for the first, for milliseconds where another
    process keeps its core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """CIFAR-10 as JPEG files in a tar, laid out as train/<class>/ and test/<class>/."""
    path = os.environ.get("FASTRES_TEST_DATA")
    if path is None:
        pytest.skip("FASTRES_TEST_DATA is not set to an archive of CIFAR-10 as JPEG files")
    return Path(path)
