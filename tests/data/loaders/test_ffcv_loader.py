"""The FFCV loader, and each trouble of FFCV's own that its users must not meet."""

import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastres.data import Dataset, open_dataset
from fastres.data.loaders import Loader, ResidentLoader, on_device
from fastres.data.loaders.ffcv import BetonPixels
from fastres.data.sources import shapes10
from fastres.data.store.beton import open_beton, prepare
from fastres.errors import UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed: pip install 'fastres[ffcv]'"
)
TRAIN, TEST = 150, 10


@contextmanager
def watchdog(seconds: int = 60) -> Iterator[None]:
    """What hangs longer is an error."""

    def bark(*_: object) -> None:
        raise TimeoutError(f"it hangs: {seconds} s are over")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def nothing_hangs(request: pytest.FixtureRequest) -> Iterator[None]:
    with watchdog(500 if request.node.get_closest_marker("slow") else 60):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings as JPEG files."""
    root = tmp_path_factory.mktemp("drawings")
    for part, count in (("train", TRAIN), ("test", TEST)):
        for index, pixels in enumerate(shapes10.draw(count, part=part)[0]):
            path = root / part / f"class {index % 5}" / f"{index:03}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=80)
    return root


@pytest.fixture(scope="module")
def decoded(folder: Path) -> Dataset:
    dataset = open_dataset(str(folder), quiet=True)
    prepare(dataset, quiet=True)
    return dataset


@pytest.fixture(scope="module")
def encoded(folder: Path) -> Dataset:
    dataset = open_dataset(str(folder), store="encoded", quiet=True)
    prepare(dataset, quiet=True)
    return dataset


@pytest.fixture(params=["raw", "jpeg"])
def dataset(request: pytest.FixtureRequest, decoded: Dataset, encoded: Dataset, tmp_path: Path) -> Dataset:
    """A copy that may come to harm."""
    chosen = decoded if request.param == "raw" else encoded
    for path in (chosen.path, chosen.path.with_name(f"{chosen.path.name}-beton")):
        shutil.copytree(path, tmp_path / path.name)
    return replace(chosen, path=tmp_path / chosen.path.name)


def make(dataset: Dataset, batch_size: int = 16, subset: np.ndarray | None = None, **options: object) -> Loader:
    from fastres.data.loaders.ffcv import FfcvLoader

    part = open_beton(dataset).parts["train"]
    assert dataset.train is not None and dataset.train.labels is not None
    rows = np.arange(TRAIN) if subset is None else subset
    return FfcvLoader(part, dataset.train.labels, rows, batch_size, **{"seed": 3, **options})


def resident(dataset: Dataset, batch_size: int = 16, subset: np.ndarray | None = None, **options: object) -> Loader:
    assert dataset.train is not None and dataset.train.labels is not None
    rows = np.arange(TRAIN) if subset is None else subset
    source = on_device(dataset.train.images[np.arange(TRAIN)])
    return ResidentLoader(source, dataset.train.labels, rows, batch_size, **{"seed": 3, **options})


def threads() -> int:
    """The kernel's count: a thread that was joined takes a moment to leave it."""
    count = len(list(Path("/proc/self/task").iterdir()))
    for _ in range(50):
        time.sleep(0.001)
        count = min(count, len(list(Path("/proc/self/task").iterdir())))
    return count


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"drop_last": True},
        {"seed": None},
        {"workers": 0},
        {"workers": 5},
        {"rank": 2, "ranks": 4},
        {"subset": np.arange(140, 3, -7)},
        {"batch_size": 1000},
    ],
    ids=str,
)
def test_batches_are_the_resident_loaders(dataset: Dataset, options: dict[str, object]) -> None:
    expected_options = {name: value for name, value in options.items() if name != "workers"}
    with make(dataset, **options) as loader, resident(dataset, **expected_options) as other:  # type: ignore[arg-type]
        assert len(loader) == len(other)
        for epoch, first in ((0, 0), (1, 0), (7, len(loader) // 2)):
            found, expected = list(loader.batches(epoch, first)), list(other.batches(epoch, first))
            assert len(found) == len(expected) == len(loader) - first
            for one, two in zip(found, expected, strict=True):
                assert torch.equal(one.indices, two.indices) and torch.equal(one.labels, two.labels)
                assert torch.equal(one.source[one.rows], two.source[two.rows])


def test_one_seed_gives_one_result_with_any_number_of_workers(dataset: Dataset) -> None:
    """FFCV's issues 392, 164 and 89."""
    results = []
    for workers in (1, 2, 4, 2):
        with make(dataset, 7, workers=workers) as loader:
            results.append([batch.source.sum().item() for epoch in range(3) for batch in loader.batches(epoch)])
    assert all(result == results[0] for result in results)


def test_ranks_share_an_epoch_of_a_subset(dataset: Dataset) -> None:
    """FFCV's issue 90: with `indices`, several ranks got the wrong order."""
    subset = np.arange(0, TRAIN, 2)
    loaders = [make(dataset, 6, subset, rank=rank, ranks=4) for rank in range(4)]
    steps = list(zip(*(loader.batches(2) for loader in loaders), strict=True))
    together = np.concatenate([torch.stack([batch.indices for batch in step], 1).reshape(-1).numpy() for step in steps])
    with resident(dataset, 24, subset) as other:
        expected = np.concatenate([batch.indices.numpy() for batch in other.batches(2)])[: len(together)]
    assert len(together) == 72 and np.array_equal(together, expected)
    for loader in loaders:
        loader.close()


def test_batches_already_yielded_stay(dataset: Dataset) -> None:
    with make(dataset, 4) as loader:
        kept = list(loader.batches())
        copies = [batch.source.clone() for batch in kept]
        list(loader.batches(1))
        assert all(torch.equal(batch.source, copy) for batch, copy in zip(kept, copies, strict=True))
        assert len({batch.source.data_ptr() for batch in kept}) == len(kept)


def test_leaving_early_joins_the_threads(dataset: Dataset) -> None:
    """FFCV's issues 345, 393 and 206."""
    before = threads()
    with make(dataset, 4, workers=3) as loader:
        iterator = loader.batches()
        next(iterator)
        assert threads() > before
        iterator.close()  # type: ignore[attr-defined]
        assert threads() == before
        next(loader.batches(1))
    assert threads() == before
    with pytest.raises(ValueError, match="the loader is closed"):
        loader.batches()


def test_an_exception_reaches_the_consumer(dataset: Dataset) -> None:
    with make(dataset, 10, workers=2) as loader:
        images, before, calls = loader._images, threads(), []  # type: ignore[attr-defined]

        class Failing:
            def read(self, rows: np.ndarray, *, pinned: bool) -> torch.Tensor:
                calls.append(rows)
                if len(calls) == 5:
                    raise RuntimeError("the fifth batch")
                return images.read(rows, pinned=pinned)

        loader._images = Failing()  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="the fifth batch"):
            list(loader.batches())
        assert threads() == before


def flip(path: Path, place: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ bit]))


def test_a_corrupt_jpeg_is_an_error_that_names_the_sample(encoded: Dataset, tmp_path: Path) -> None:
    dataset = copy_of(encoded, tmp_path)
    with make(dataset, 10, seed=None) as loader:
        part, before = loader.pixels, threads()  # type: ignore[attr-defined]
        flip(part.path, int(part.starts[57] + part.sizes[57] - 40))  # in the picture's data, which decodes in silence
        seen = []
        message = (
            r"sample 57 of .*train\.beton was changed: its checksum is another:\ndelete .* and make it anew by `fast"
        )
        with pytest.raises(UserError, match=message):
            seen += [batch.indices for batch in loader.batches()]
        assert threads() == before
        assert [batch.indices[0].item() for batch in loader.batches(0, 6)] == list(range(60, TRAIN, 10))


def copy_of(dataset: Dataset, place: Path) -> Dataset:
    for path in (dataset.path, dataset.path.with_name(f"{dataset.path.name}-beton")):
        shutil.copytree(path, place / path.name)
    return replace(dataset, path=place / dataset.path.name)


@pytest.mark.parametrize("flips", [20, pytest.param(1000, marks=(pytest.mark.slow, pytest.mark.fuzz))])
def test_no_flipped_bit_gives_other_pixels(encoded: Dataset, tmp_path: Path, flips: int) -> None:
    dataset = copy_of(encoded, tmp_path)
    random = np.random.default_rng(1)
    with make(dataset, seed=None) as loader:
        part, images = loader.pixels, loader._images  # type: ignore[attr-defined]
        for row in random.integers(0, TRAIN, flips).tolist():
            place = int(part.starts[row] + random.integers(part.sizes[row]))
            bit = 1 << int(random.integers(8))
            flip(part.path, place, bit)
            with pytest.raises(UserError, match=rf"sample {row} of "):
                images.read(np.array([3, row]) if row != 3 else np.array([row]))
            flip(part.path, place, bit)
        assert len(list(loader.batches())) == len(loader)


def test_jpeg_files_decode_to_pillows_pixels(real_images: Path, tmp_path: Path) -> None:
    """Bit for bit, on photographs: a bound of 0. FFCV's own is off by up to 5 of 255, as ffcv_decode.py says."""
    from fastres.data.loaders.ffcv import FfcvLoader

    taken = 0
    with tarfile.open(real_images, "r|*") as archive, tarfile.open(tmp_path / "some.tar", "w") as some:
        for member in archive:
            if member.isfile() and taken < 1000:
                part = "test" if taken % 100 == 0 else "train"
                member.name = f"{part}/{Path(member.name).parent.name}/{taken}.jpg"
                some.addfile(member, archive.extractfile(member))
                taken += 1
    dataset = open_dataset(str(tmp_path / "some.tar"), store="encoded", root=tmp_path, quiet=True)
    part = prepare(dataset, quiet=True).parts["train"]
    assert part.encoded.all()  # a file goes in as it is only where the two agree
    assert dataset.train is not None and dataset.train.labels is not None
    with FfcvLoader(part, dataset.train.labels, np.arange(len(part)), 128) as loader:
        for batch in loader.batches():
            assert np.array_equal(batch.source.numpy(), dataset.train.images[batch.indices.numpy()])


def test_a_file_deleted_in_mid_epoch_is_read_to_its_end(dataset: Dataset) -> None:
    with make(dataset, 10) as loader, resident(dataset, 10) as other:
        iterator = loader.batches()
        next(iterator)
        shutil.rmtree(loader.pixels.path.parent)  # type: ignore[attr-defined]
        expected = list(other.batches())[1:]
        for one, two in zip(iterator, expected, strict=True):
            assert torch.equal(one.source, two.source[two.rows])


def test_a_file_cut_in_mid_epoch_is_an_error(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two batches: within one, the kernel ends the process, as for every mapped file that is cut."""
    done: list[int] = []
    actual = BetonPixels.read

    def counted(self: BetonPixels, rows: np.ndarray, **options: bool) -> torch.Tensor:
        images = actual(self, rows, **options)
        done.append(len(rows))
        return images

    monkeypatch.setattr(BetonPixels, "read", counted)
    with make(dataset, 1, workers=1) as loader:
        iterator = loader.batches()
        next(iterator)
        deadline = time.monotonic() + 30
        while len(done) < 3 and time.monotonic() < deadline:  # the one delivered, and the two that are read ahead
            time.sleep(0.01)
        os.truncate(loader.pixels.path, 4096)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=r"train\.beton was cut short while it was read"):
            list(iterator)


def test_rows_outside_are_an_error(dataset: Dataset) -> None:
    with make(dataset) as loader:
        for row in (TRAIN, -1, 2**62):
            with pytest.raises(IndexError, match=f"there is no sample {row} in"):
                loader._images.read(np.array([0, row]))  # type: ignore[attr-defined]


def test_loaders_of_one_beton_share_its_file(dataset: Dataset) -> None:
    from fastres.data.loaders.ffcv import FfcvLoader

    part = open_beton(dataset).parts["train"]
    labels = dataset.train.labels  # type: ignore[union-attr]
    gc.collect()
    before = handles()
    loaders = [FfcvLoader(part, labels, np.arange(TRAIN), 16, seed=seed) for seed in range(3)]
    assert handles() == before + 1
    iterators = [loader.batches() for loader in loaders]
    for step in zip(*iterators, strict=True):
        assert len({tuple(batch.indices.tolist()) for batch in step}) == 3
    for loader in loaders:
        loader.close()
    assert handles() == before


def test_ffcvs_threads_and_torchs_stay_as_they_were(dataset: Dataset) -> None:
    from fastres.data.compat.ffcv import import_ffcv

    compiler = import_ffcv().pipeline.compiler.Compiler

    def state() -> tuple[object, ...]:
        drawn = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]  # noqa: NPY002
        return torch.get_num_threads(), compiler.is_enabled, compiler.num_threads, compiler.set_num_threads, drawn

    before = state()
    with make(dataset) as loader:
        list(loader.batches())
    assert state() == before


CONSTRUCT = """
import sys, numpy as np
from pathlib import Path
from fastres.data.store.beton import open_beton
from fastres.data.loaders.ffcv import FfcvLoader
from fastres.data.store.decoded import open_store
dataset = open_store(Path(sys.argv[1]), "drawings")
loader = FfcvLoader(open_beton(dataset).parts["train"], dataset.train.labels, np.arange(150), 16, seed=0, workers=4)
print(len(list(loader.batches())))
"""


def test_construction_returns_in_a_fresh_process(dataset: Dataset) -> None:
    """FFCV's issue 113: a constructor that never returns. Left open, the loader does not keep the process alive."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CONSTRUCT, str(dataset.path)], capture_output=True, text=True, timeout=55
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "10\n", "")


def rss() -> int:
    """Anonymous memory of this process in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_twenty_loaders_left_early_leave_nothing(dataset: Dataset) -> None:
    def once() -> None:
        with make(dataset, 2, workers=3) as loader:
            next(loader.batches())
            next(loader.batches(1, 3))

    for _ in range(5):  # the allocator's pools fill
        once()
    gc.collect()
    before = handles(), threads(), threading.active_count()
    memory = rss()
    for _ in range(20):
        once()
        assert (handles(), threads(), threading.active_count()) == before
    gc.collect()
    # FFCV's own decoder keeps 10 KB of each thread that ever decoded: 1.2 MB of these 120. Measured: up to 20 KB.
    assert rss() - memory < 400_000
