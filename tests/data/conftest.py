"""Small sources that the data tests share."""

import io
import pickle
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastres.data import Dataset, open_dataset

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def decoded(folder: Path) -> Dataset:
    """The decoded store of a module's own `folder` of images."""
    return open_dataset(str(folder), quiet=True)


@pytest.fixture(scope="module")
def encoded(folder: Path) -> Dataset:
    """The encoded store of the same."""
    return open_dataset(str(folder), store="encoded", quiet=True)


@pytest.fixture
def shared_memory_stays() -> Iterator[None]:
    """A test leaves no name in /dev/shm; those of other processes come and go meanwhile."""
    folder = Path("/dev/shm")
    before, deadline = set(folder.iterdir()), None
    yield
    while left := set(folder.iterdir()) - before:
        deadline = deadline or time.monotonic() + 5
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Encode an image file of one colour, with a left half that is darker."""

    def make(colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
        pixels = np.full((size[1], size[0], 3), colour, np.uint8)
        pixels[:, : size[0] // 2] //= 2
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        return file.getvalue()

    return make


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """Write a tar; the name's ending chooses the packer. `extra` are members without contents."""

    def write(path: Path, files: Files, extra: list[tarfile.TarInfo] | None = None) -> Path:
        mode = {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for info in extra or []:
                tar.addfile(info)
        return path

    return write


@pytest.fixture
def image_files(picture: Callable[..., bytes]) -> Files:
    """Two classes, three training and two test images each, every one of another colour."""
    files = {}
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count):
                colour = (40 * index + 40, 200 * label, 255 if part == "test" else 0)
                files[f"{part}/{name}/{index}.png"] = picture(colour)
    return files


@pytest.fixture
def write_folder() -> Callable[[Path, Files], Path]:
    def write(path: Path, files: Files) -> Path:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path

    return write


def cifar_files(classes: int, count: int = 20) -> tuple[Files, np.ndarray, np.ndarray]:
    """Files like those of CIFAR-10 or CIFAR-100, with the images [N, 32, 32, 3] and labels they hold, test last."""
    batches = (
        [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    )
    key, names, meta = (
        ("labels", "label_names", "batches.meta") if classes == 10 else ("fine_labels", "fine_label_names", "meta")
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (len(batches) * count, 32, 32, 3), np.uint8)
    labels = random.integers(0, classes, len(batches) * count)
    files = {meta: pickle.dumps({names.encode(): [f"class {n}".encode() for n in range(classes)]}, 2)}
    for index, batch in enumerate(batches):
        rows = slice(index * count, (index + 1) * count)
        flat = np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2)).reshape(count, 3072)
        content = {b"data": flat, key.encode(): labels[rows].tolist(), b"coarse_labels": [0] * count}
        files[batch] = pickle.dumps(content, 2)
    return files, images, labels


@pytest.fixture
def cifar() -> Callable[..., tuple[Files, np.ndarray, np.ndarray]]:
    return cifar_files
