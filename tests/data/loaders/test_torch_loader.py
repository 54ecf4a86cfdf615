"""The torch loader: whatever dies, changes or is left early, it raises or delivers right pixels, and leaves nothing."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastres.data import EncodedImages, open_dataset
from fastres.data.loaders.torch import TorchLoader
from fastres.data.order import epoch_rows
from fastres.errors import UserError

COUNT = 97
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
LABELS = np.arange(COUNT) % 10


pytestmark = pytest.mark.usefixtures("alarm")
SLOW_KILLS = (pytest.mark.slow, pytest.mark.kills)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    path = tmp_path_factory.mktemp("mapped") / "images.npy"
    np.save(path, IMAGES)
    return np.load(path, mmap_mode="r")


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., bytes], write_folder: Callable) -> Path:
    """30 images in two classes, each of a grey of its own."""
    files = {
        f"{part}/{name}/{index:02}.png": picture((8 * index + 4 * label,) * 3)
        for part in ("train", "test")
        for label, name in enumerate(("ant", "bee"))
        for index in range(15)
    }
    return write_folder(tmp_path / "in", files)


@pytest.fixture
def encoded(folder: Path) -> EncodedImages:
    dataset = open_dataset(str(folder), store="encoded", image_size=8, root=folder.parent / "root", quiet=True)
    assert dataset.train is not None
    return dataset.train.images


def over(pixels: object, workers: int, size: int = 4, **options: object) -> TorchLoader:
    count = len(pixels)  # type: ignore[arg-type]
    return TorchLoader(pixels, LABELS[:count], np.arange(count), size, workers=workers, **options)  # type: ignore[arg-type]


def children() -> list[int]:
    """Pids of this process's children, ended but not waited for included."""
    pids = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            pids += [int(pid) for pid in (task / "children").read_text().split()]
    return pids


def held() -> tuple[int, int, int, int]:
    """How many children, file handles, threads and mappings of shared memory this process has."""
    gc.collect()
    deadline = time.monotonic() + 5
    while any(thread.name == "QueueFeederThread" for thread in threading.enumerate()):  # told to end, not waited for
        assert time.monotonic() < deadline, "a queue's thread does not end"
        time.sleep(0.001)
    shared = Path("/proc/self/maps").read_text().count("/dev/zero (deleted)")
    handles = len(list(Path("/proc/self/fd").iterdir()))
    return len(children()), handles, threading.active_count(), shared


@pytest.fixture
def leaves_nothing(shared_memory_stays: None) -> Iterator[None]:
    with over(IMAGES, 1) as loader:  # what is made once: torch's handler, multiprocessing's finalizers
        list(loader.batches())
    before = held()
    yield
    assert held() == before


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_is_delivered(mapped: np.ndarray, data: st.DataObject) -> None:
    subset = np.array(data.draw(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=60)))
    size, workers = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 2))
    ranks, seed = data.draw(st.integers(1, 3)), data.draw(st.none() | st.integers(0, 9))
    rank, drop_last = data.draw(st.integers(0, ranks - 1)), data.draw(st.booleans())
    loader = TorchLoader(
        mapped, LABELS, subset, size, seed=seed, rank=rank, ranks=ranks, drop_last=drop_last, workers=workers
    )
    with loader:
        first = data.draw(st.integers(0, len(loader)))
        batches = list(loader.batches(3, first))  # all held: what was yielded must stay as it is
    expected = epoch_rows(subset, seed, 3, rank, ranks)
    assert len(batches) == len(loader) - first
    for step, batch in enumerate(batches, first):
        rows = expected[step * size : (step + 1) * size]
        assert batch.source.dtype == torch.uint8 and batch.source.shape == (len(rows), 8, 8, 3)
        assert np.array_equal(batch.source.numpy(), IMAGES[rows])
        assert batch.indices.tolist() == rows.tolist() and batch.labels.tolist() == LABELS[rows].tolist()
    assert len({batch.source.data_ptr() for batch in batches}) == len(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_encoded_images(encoded: EncodedImages, workers: int, leaves_nothing: None) -> None:
    with over(encoded[3:27], workers, seed=1) as loader:
        for batch in loader.batches(2):
            assert np.array_equal(batch.source.numpy(), encoded[batch.indices.numpy() + 3])


def test_an_epoch_changes_no_random_state(mapped: np.ndarray) -> None:
    """A DataLoader draws a seed from torch's generator, after which dropout would draw other numbers."""
    before = torch.get_rng_state()
    for workers in (0, 1):
        with over(mapped, workers) as loader:
            list(loader.batches())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("how", ["close", "leave", "close the iterator", "forget", "raise", "end"])
def test_every_way_to_leave(how: str, workers: int, mapped: np.ndarray, leaves_nothing: None) -> None:
    loader = over(mapped, workers)
    iterator = loader.batches()
    next(iterator)
    assert len(children()) == workers
    if how == "close":
        loader.close()
        loader.close()
        assert list(iterator) == []
    elif how == "leave":
        with loader:
            pass
    elif how == "close the iterator":
        iterator.close()  # type: ignore[attr-defined]
    elif how == "raise":
        with pytest.raises(RuntimeError, match="consumer"), loader:
            raise RuntimeError("the consumer fails")
    elif how == "end":
        list(iterator)
    del iterator
    assert children() == []


def test_more_workers_than_batches(mapped: np.ndarray, leaves_nothing: None) -> None:
    with over(mapped, 2, size=90, drop_last=True) as loader:
        next(iterator := loader.batches())
        assert len(children()) == 1
        assert list(iterator) == [] and list(loader.batches(0, 1)) == []


def test_two_loaders_at_once(mapped: np.ndarray, leaves_nothing: None) -> None:
    with over(mapped, 2, seed=1) as train, over(mapped, 1) as validation:
        pairs = zip(train.batches(), validation.batches(), strict=True)
        for step, (one, other) in enumerate(pairs):
            assert np.array_equal(one.source.numpy(), IMAGES[one.indices.numpy()])
            assert other.indices[0] == 4 * step and np.array_equal(other.source.numpy(), IMAGES[other.indices.numpy()])


def stop_one(pixels: object, number: int = signal.SIGKILL) -> None:
    """Kill a worker of a loader in mid-epoch; the consumer learns of it when it asks, and never in between."""
    with over(pixels, 2, size=1) as loader:
        iterator = loader.batches()
        next(iterator)
        os.kill(children()[0], number)
        for _ in range(20):
            time.sleep(0.01)  # torch's handler would raise here
        seen = 1
        with pytest.raises(UserError) as caught:
            for _ in iterator:
                seen += 1
        message = str(caught.value)
        # The batch that is missing is the next one, and its only image is named.
        assert (
            f"a loader's worker process was ended by {signal.Signals(number).name} while it read images {seen}"
            in message
        )
        assert "data.workers" in message or "verify" in message
        assert children() == [] and list(iterator) == []


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(each, marks=SLOW_KILLS) for each in (signal.SIGBUS, signal.SIGSEGV))],
)
@pytest.mark.serial
def test_a_worker_is_killed(number: int, mapped: np.ndarray, leaves_nothing: None) -> None:
    stop_one(mapped, number)


@pytest.mark.serial
def test_a_worker_of_a_thread_is_killed(mapped: np.ndarray, leaves_nothing: None) -> None:
    """Where torch's signal handler, which watches over workers, never runs."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            stop_one(mapped)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert problems == []


@pytest.mark.serial
def test_a_killed_worker_of_encoded_images_is_told_with_names(encoded: EncodedImages) -> None:
    with (
        over(encoded, 1, size=10) as loader,
        pytest.raises(UserError, match=r"images \d+ \(train/(ant|bee)/\d+\.png\), "),
    ):
        for _ in loader.batches():
            for pid in children():
                os.kill(pid, signal.SIGKILL)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # the epoch may be over
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.kills
def test_workers_killed_at_any_moment(mapped: np.ndarray, leaves_nothing: None) -> None:
    """40 epochs, in each of which a worker dies at a random time: every batch that arrives is right, and the end is
    either the epoch's or the error."""
    random, ended = np.random.default_rng(0), 0
    for epoch in range(40):
        with over(mapped, 2, size=1, seed=0) as loader:
            iterator = loader.batches(epoch)
            next(iterator)
            killer = threading.Timer(random.uniform(0, 0.03), kill, (children()[int(random.integers(2))],))
            killer.start()
            try:
                for batch in iterator:
                    assert np.array_equal(batch.source.numpy(), IMAGES[batch.indices.numpy()])
            except UserError as error:
                ended += 1
                assert "was ended by SIGKILL" in str(error)
            killer.cancel()
            killer.join()
        assert children() == []
    assert ended > 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", ["flip", "cut", "delete", "other image", "pipe"])
def test_a_file_changes_in_mid_epoch(
    what: str, workers: int, folder: Path, encoded: EncodedImages, leaves_nothing: None
) -> None:
    victim = folder / "train/bee/14.png"  # the last row: not read ahead yet
    content, right = victim.read_bytes(), encoded[:].decode(range(30))
    with over(encoded, workers, size=2) as loader:
        iterator = loader.batches()
        batches = [next(iterator)]
        if what == "flip":
            victim.write_bytes(content[:-30] + bytes([content[-30] ^ 1]) + content[-29:])
        elif what == "cut":
            victim.write_bytes(content[:-1])
        elif what == "other image":
            victim.write_bytes((folder / "train/bee/13.png").read_bytes())
        else:
            victim.unlink()
            if what == "pipe":
                os.mkfifo(victim)
        with pytest.raises(UserError, match=r"train/bee/14\.png \(train image 29\)") as caught:
            batches.extend(iterator)
        assert "prepare it again" in str(caught.value) and "Traceback" not in str(caught.value)
    assert len(batches) == 14
    for batch in batches:
        assert np.array_equal(batch.source.numpy(), right[batch.indices.numpy()])


class Broken(EncodedImages):
    """Stands for a fault of the machine's or of ours."""

    def __init__(self, fault: Exception) -> None:
        self.fault, self._size, self._rows = fault, 8, range(9)

    def name(self, row: int) -> str:
        return f"{row}.png"

    def decode(self, rows: object, out: np.ndarray | None = None) -> np.ndarray:
        raise self.fault


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors(workers: int, leaves_nothing: None) -> None:
    named = r"images 0 \(0\.png\), 1 \(1\.png\), 2 \(2\.png\) and 1 more"
    for fault, text in ((OSError(24, "Too many open files"), "Too many open files"), (MemoryError(), "MemoryError")):
        with over(Broken(fault), workers) as loader, pytest.raises(UserError, match=f"cannot read {named}: {text}"):
            next(loader.batches())
    # A fault of ours keeps its type, and a worker's says where it came from.
    with (
        over(Broken(ZeroDivisionError("ours")), workers) as loader,
        pytest.raises(ZeroDivisionError, match="ours") as caught,
    ):
        next(loader.batches())
    assert not workers or ("in decode" in str(caught.value) and "1 (1.png)" in caught.value.__notes__[0])


def test_no_memory_to_share(mapped: np.ndarray, leaves_nothing: None) -> None:
    with over(mapped, 1) as loader, pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastres.data.loaders.torch.shared", lambda pixels: None)
        loader.pixels = np.broadcast_to(np.zeros(1, np.uint8), (COUNT, 1 << 20, 1 << 20, 3))
        with pytest.raises(UserError, match=r"MiB of memory to share with workers"):
            next(loader.batches())


# torch's own iterator, left half-built, fails when it is collected; multiprocessing leaves four handles of such a fork.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_more_processes(mapped: np.ndarray) -> None:
    """At the second worker: the first one is ended."""
    forked, fork = 0, os.fork

    def fail() -> int:
        nonlocal forked
        forked += 1
        if forked == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    with pytest.MonkeyPatch.context() as patch, over(mapped, 2) as loader:
        patch.setattr(os, "fork", fail)
        with pytest.raises(UserError, match=r"cannot start 2 worker processes \(Resource .*\): use fewer"):
            next(loader.batches())
    assert forked == 2 and children() == []


def test_beside_the_threads_of_others(mapped: np.ndarray, leaves_nothing: None) -> None:
    """Workers are forked while threads of this process hold Python's, OpenMP's and the allocator's locks."""
    done = threading.Event()

    def busy() -> None:
        matrix = torch.ones(300, 300)
        while not done.is_set():
            matrix = matrix @ matrix / 300
            pickle.loads(pickle.dumps([bytes(1000)] * 100))
            __import__("PIL.Image")

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for epoch in range(5):
            with over(mapped, 2, seed=0) as loader:
                for batch in loader.batches(epoch):
                    assert np.array_equal(batch.source.numpy(), IMAGES[batch.indices.numpy()])
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_what_python_3_12_warns_of_every_fork_beside_threads(mapped: np.ndarray) -> None:
    """Here, where warnings are errors, on every version of Python."""
    fork = os.fork

    def warning() -> int:
        if pid := fork():
            text = "This process (pid=1) is multi-threaded, use of fork() may lead to deadlocks in the child."
            warnings.warn(text, DeprecationWarning, stacklevel=2)
        return pid

    with pytest.MonkeyPatch.context() as patch, over(mapped, 2) as loader:
        patch.setattr(os, "fork", warning)
        assert sum(1 for _ in loader.batches()) == len(loader)


def test_workers_copy_no_pages_of_the_store(tmp_path: Path) -> None:
    """A store of 100 MB, read whole by two workers: what a worker has for itself stays below 30 MB."""
    path = tmp_path / "images.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (33_000, 32, 32, 3)).flush()
    pixels = np.load(path, mmap_mode="r")
    private = 0
    with TorchLoader(pixels, np.zeros(33_000, np.int64), np.arange(33_000), 500, seed=0, workers=2) as loader:
        for step, _ in enumerate(loader.batches()):
            if step in (30, 60):
                for pid in children():
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    private = max(
                        private, *(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
                    )
    # Python's and torch's own start: 8 MB here; 16.5 MB is a worker's share of a batch of each of its steps, if kept.
    assert 0 < private < 30_000


def resident() -> int:
    """RssAnon in kB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0])


@pytest.mark.parametrize(
    ("workers", "count"),
    [(0, 300), (1, 20), pytest.param(0, 1000, marks=pytest.mark.slow), pytest.param(2, 1000, marks=pytest.mark.slow)],
)
def test_loaders_left_early(
    workers: int, count: int, mapped: np.ndarray, encoded: EncodedImages, shared_memory_stays: None
) -> None:
    """Opened, left after a batch or two, and closed: no growth of anything."""
    before, memory = None, 0
    for number in range(count + 20):
        if number == 20:
            before, memory = held(), resident()
        with over(encoded if number % 2 else mapped, workers, seed=number) as loader:
            iterator = loader.batches()
            for _ in range(1 + number % 3):
                next(iterator)
    assert held() == before
    # 4 kB each of 1,000 would be one page a loader. The allocator's own unevenness was 0.3 MB.
    assert resident() - memory < 4_000


def test_no_child_of_ours_is_left() -> None:
    assert multiprocessing.active_children() == []
