"""The DALI loader: Pillow's pixels from every kind of file, and an error with a name, or right pixels, whatever is
damaged, deleted or left early."""

import contextlib
import faulthandler
import gc
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dali_files import KINDS, SIDE, Files, everything, over, packed, photo

from fastres.data import Dataset, open_dataset
from fastres.data.loaders import dali as module
from fastres.data.loaders.dali import DaliLoader, _same_in_dali
from fastres.data.order import epoch_rows
from fastres.data.store.encoded import decode
from fastres.errors import UserError

installed = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not installed, reason="DALI is not installed: pip install 'fastres[dali]'")

COUNT = 150


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing here may hang. DALI waits in C++, where no signal handler of Python's runs: the process is ended."""
    faulthandler.dump_traceback_later(900 if request.node.get_closest_marker("slow") else 120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for index in range(COUNT):
        path = root / "train" / f"class{index % 2}" / f"{index:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed(photo(index), "JPEG"))
    return root


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> tuple[Path, Dataset]:
    """A copy of the folder that may be spoilt, prepared."""
    copy = tmp_path / "photos"
    for path in folder.rglob("*.jpg"):
        (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    return copy, open_dataset(str(copy), store="encoded", root=tmp_path / "root", quiet=True)


@pytest.fixture(scope="module")
def encoded(folder: Path) -> Dataset:
    return open_dataset(str(folder), store="encoded", quiet=True)


@pytest.fixture(scope="module")
def decoded(folder: Path) -> Dataset:
    return open_dataset(str(folder), quiet=True)


# Pixels


@needs_dali
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_has_the_pixels_of_pillow(name: str) -> None:
    data, by_dali = KINDS[name]
    assert _same_in_dali(data, SIDE, SIDE) == by_dali
    with over(Files([data])) as loader:
        assert np.array_equal(everything(loader)[0], decode(data, SIDE))


@needs_dali
def test_all_kinds_in_one_batch() -> None:
    """Also after a batch that DALI refuses: one PNG file has a wrong checksum, which Pillow does not mind."""
    files = [data for data, _ in KINDS.values()] * 10
    random.Random(0).shuffle(files)
    with over(Files(files), 32) as loader:
        for epoch in range(2):
            assert np.array_equal(everything(loader, epoch), np.stack([decode(data, SIDE) for data in files]))


@needs_dali
def test_real_images_decode_to_the_same_bits(real_images: Path) -> None:
    files = []
    with tarfile.open(real_images) as tar:
        for member in tar:
            if member.isfile() and len(files) < 2000:
                contents = tar.extractfile(member)
                assert contents is not None
                files.append(contents.read())
    assert all(_same_in_dali(data, SIDE, SIDE) for data in files)
    with over(Files(files), 512) as loader:
        assert np.array_equal(everything(loader), np.stack([decode(data, SIDE) for data in files]))


def test_the_resizing_that_is_left_to_pillow() -> None:
    """The reason: DALI's bicubic filter, antialiased, over the same box, gives other pixels. Should this fail because
    the two have become equal, DALI can resize."""
    if not installed:
        pytest.skip("DALI is not installed: pip install 'fastres[dali]'")
    dali = module.import_dali()
    size = (64, 50)
    files = [packed(photo(seed, size), "PNG") for seed in range(32)]
    pipeline = dali.Pipeline(batch_size=32, num_threads=2, device_id=None)
    with pipeline:
        data = dali.fn.external_source(source=lambda: [np.frombuffer(file, np.uint8) for file in files])
        pipeline.set_outputs(
            dali.fn.resize(
                dali.fn.decoders.image(data, device="cpu"),
                size=[SIDE, SIDE],
                interp_type=dali.types.INTERP_CUBIC,
                antialias=True,
                roi_start=[0.0, 7.0],
                roi_end=[50.0, 57.0],
            )
        )
    pipeline.build()
    theirs = np.asarray(pipeline.run()[0].as_tensor()).astype(int)
    difference = np.abs(theirs - np.stack([decode(file, SIDE) for file in files]))
    # Measured over photographs and noise of eight sizes: at most 10, on average 0.05 to 0.4.
    assert 0 < difference.max() <= 10
    assert 0 < difference.mean() < 0.5


# What every loader promises is tested in test_same_batches.py; here is what DALI makes hard.


@needs_dali
@pytest.mark.parametrize("store", ["encoded", "decoded"])
def test_batches_stay_as_they_are(store: str, encoded: Dataset, decoded: Dataset) -> None:
    """Over two epochs of one pipeline and beyond the loader's end; and what a consumer writes into one is its own."""
    part, pixels = (encoded if store == "encoded" else decoded).train, decoded.train
    assert part is not None and pixels is not None
    loader = over(part.images, 8, seed=3)
    batches = [batch for epoch in range(2) for batch in loader.batches(epoch)]
    assert len({batch.source.data_ptr() for batch in batches}) == len(batches)
    kept = [batch.source.clone() for batch in batches[1::2]]
    for batch in batches[::2]:
        batch.source.fill_(0)
    loader.close()
    del loader
    gc.collect()
    assert all(torch.equal(batch.source, copy) for batch, copy in zip(batches[1::2], kept, strict=True))
    for batch in batches[1::2]:
        assert np.array_equal(batch.source.numpy(), pixels.images[batch.indices.numpy()])


@needs_dali
def test_what_is_skipped_or_far_ahead_is_not_read() -> None:
    files = Files([packed(photo(seed), "JPEG") for seed in range(100)])
    with over(files, 5) as loader:
        batches = loader.batches(0, 10)
        next(batches)
        time.sleep(0.2)  # time to read too far
        prefetch = 5 * (1 + module._QUEUE + module._READ_AHEAD + 1)
        assert set(files.seen) <= set(range(50, 50 + prefetch))


@needs_dali
def test_a_pipeline_serves_one_epoch_after_another_unless_one_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = DaliLoader._built
    monkeypatch.setattr(DaliLoader, "_built", lambda self, data_module: built.append(1) or build(self, data_module))
    files = Files([packed(photo(seed), "JPEG") for seed in range(40)])
    expected = files.decode(range(40))
    with over(files, 4) as loader:
        for epoch in range(3):
            assert np.array_equal(everything(loader, epoch), expected)
        assert len(built) == 1
        for count in range(4):
            batches = loader.batches(0)
            for _ in range(count):
                next(batches)
            batches.close()
            assert np.array_equal(everything(loader), expected)
        first, second = loader.batches(0), loader.batches(0)
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one.source, other.source)
        assert list(loader.batches(0, len(loader))) == []


@needs_dali
def test_no_image_is_no_error() -> None:
    with DaliLoader(np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0), np.zeros(0), 4) as loader:
        assert list(loader.batches(0)) == []


# What is wrong is said, in its place


@needs_dali
@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "delete", "folder"])
def test_a_file_that_changes_after_preparation(own: tuple[Path, Dataset], damage: str) -> None:
    """In mid-epoch, at a step that is not yet read: what comes before is delivered, then it is an error with the name;
    and again at the next try. Put back, the file is read again by the same loader."""
    path, dataset = own
    assert dataset.train is not None
    pixels = dataset.train.images
    row = 100
    file = path / pixels.name(row)
    before = file.read_bytes()
    with over(pixels, 4) as loader:
        batches = loader.batches(0)
        next(batches)
        if damage == "flip":
            file.write_bytes(before[:400] + bytes([before[400] ^ 4]) + before[401:])
        elif damage == "cut":
            file.write_bytes(before[:-20])
        elif damage == "swap":
            file.write_bytes((path / pixels.name(row - 1)).read_bytes())
        else:
            file.unlink()
            if damage == "folder":
                file.mkdir()
        with pytest.raises(UserError, match=file.name):
            for step, batch in enumerate(batches, 1):
                last = step
                assert np.array_equal(batch.source.numpy(), pixels.decode(batch.indices.numpy()))
        assert last == row // 4 - 1
        with pytest.raises(UserError, match=file.name):
            everything(loader)
        if damage == "folder":
            file.rmdir()
        file.write_bytes(before)
        assert np.array_equal(everything(loader), pixels.decode(range(COUNT)))


@needs_dali
@pytest.mark.parametrize(
    "bad", [b"", b"hello", b"\xff\xd8", packed(photo(0), "JPEG")[:300], packed(photo(0), "PNG")[:90]]
)
def test_a_file_that_nobody_can_decode(bad: bytes) -> None:
    """An error that names it, in its turn; shown to DALI's parsers, such files end the process."""
    files = [packed(photo(seed), "JPEG") for seed in range(40)]
    files[21] = bad
    with over(Files(files), 8) as loader:
        batches = loader.batches(0)
        assert [next(batches).indices[0].item() for _ in range(2)] == [0, 8]
        with pytest.raises(UserError, match="image 21 is "):
            next(batches)


@needs_dali
@pytest.mark.parametrize("missing", [2, 20, 200])
def test_a_jpeg_without_its_end(missing: int) -> None:
    """DALI's decoder finds it, with other batches under way, and says neither where nor which."""
    files = [packed(photo(seed), "JPEG") for seed in range(80)]
    files[43] = files[43][:-missing]
    five_batches_and_an_error(Files(files), 8, "image 43 is a damaged image")


def five_batches_and_an_error(files: Files, size: int, error: str) -> None:
    """What comes before the error, in batches of `size`, is delivered and right."""
    with over(files, size) as loader:
        batches = loader.batches(0)
        for first in range(0, 5 * size, size):
            assert np.array_equal(next(batches).source.numpy(), loader.pixels.decode(range(first, first + size)))
        with pytest.raises(UserError, match=error):
            next(batches)


@needs_dali
def test_an_error_of_reading_survives_one_of_decoding() -> None:
    """The reader is ahead, and has met its error, when DALI refuses an earlier batch that Pillow takes."""

    class Gone(Files):
        def read(self, row: int) -> bytes:
            if row == 20:
                raise UserError("image 20 is gone")
            return super().read(row)

    files = [packed(photo(seed), "JPEG") for seed in range(40)]
    files[13] = KINDS["PNG with a wrong checksum"][0]
    five_batches_and_an_error(Gone(files), 4, "image 20 is gone")


@needs_dali
def test_what_dali_cannot_do_with_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("Critical error in pipeline:\nout of patience")

    monkeypatch.setattr(module._Pipeline, "next", fail)
    with over(np.zeros((8, 4, 4, 3), np.uint8), 4) as loader, pytest.raises(UserError, match="out of patience"):
        everything(loader)


def test_without_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    module.import_dali.cache_clear()
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"pip install 'fastres\[dali\]'"):
        over(np.zeros((8, 4, 4, 3), np.uint8))
    module.import_dali.cache_clear()


# Nothing stays behind


def threads() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


def handles() -> set[str]:
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{path.name} {path.readlink()}")
    return found


def anonymous_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def leave_early(pixels: Any, way: str) -> None:
    """Open a loader and leave an iterator of it in one of the ways there are."""
    loader = over(pixels, 8, seed=1)
    batches = loader.batches(0)
    for _ in range(3):
        next(batches)
    if way == "close":
        loader.close()
    elif way == "iterator":
        batches.close()  # type: ignore[attr-defined]
    elif way == "error":
        with contextlib.suppress(ZeroDivisionError), loader:
            for _ in batches:
                raise ZeroDivisionError
    # else both are dropped


@needs_dali
@pytest.mark.parametrize("store", ["encoded", "decoded"])
def test_twenty_loaders_left_early(store: str, encoded: Dataset, decoded: Dataset) -> None:
    """Threads and handles are those from before, without help of the garbage collector. What DALI keeps for the whole
    process is there after the first loader."""
    part = (encoded if store == "encoded" else decoded).train
    assert part is not None
    ways = ("close", "iterator", "error", "dropped")
    for way in ways:
        leave_early(part.images, way)
    gc.collect()
    before, open_before, memory = threads(), handles(), anonymous_megabytes()
    running = threading.active_count()  # augmentation keeps a thread of its own
    gc.disable()
    try:
        for way in ways * 5:
            leave_early(part.images, way)
            # The kernel lists a thread for a moment after it was joined: on a busy machine, a long one.
            deadline = time.monotonic() + 10
            while not threads() <= before and time.monotonic() < deadline:
                time.sleep(0.01)
            assert threads() <= before, way
            assert handles() <= open_before, way
    finally:
        gc.enable()
    # One batch of these images is 25 KB and DALI's buffers for them 1 MB: twenty of those would be seen.
    assert anonymous_megabytes() - memory < 8
    assert threading.active_count() == running


SCRIPT = """
import sys, time
import numpy as np
from fastres.data.loaders.dali import DaliLoader
pixels = np.zeros((100_000, 32, 32, 3), np.uint8)
loader = DaliLoader(pixels, np.zeros(100_000), np.arange(100_000), 64, workers=2)
try:
    for epoch in range(1000):
        for step, batch in enumerate(loader.batches(epoch)):
            if epoch == 0 and step == 10:
                print("going", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if sys.argv[1] == "close":
        loader.close()
"""


@pytest.mark.serial
@needs_dali
@pytest.mark.parametrize("end", ["close", "exit"])
def test_ctrl_c(end: str) -> None:
    """Ends the loader within seconds, whether it is closed or the interpreter just exits."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, end], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "going\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert output == "interrupted\n"
    assert process.returncode == 0


@needs_dali
@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(5))
def test_damaged_files_that_pillow_takes(seed: int) -> None:
    """A thousand each time, with Pillow's pixels; in a process of its own, which DALI would end by a signal."""
    program = Path(__file__).with_name("dali_mutants.py")
    ended = subprocess.run([sys.executable, program, str(seed)], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]


@needs_dali
@pytest.mark.slow
@pytest.mark.fuzz
def test_a_file_damaged_at_random(own: tuple[Path, Dataset]) -> None:
    """A hundred times, bits or length: always an error with the name, and right pixels until then."""
    path, dataset = own
    assert dataset.train is not None
    pixels, draw = dataset.train.images, random.Random(0)
    expected = pixels.decode(range(COUNT))
    for epoch in range(100):
        row = draw.randrange(COUNT)
        file = path / pixels.name(row)
        before = file.read_bytes()
        at = draw.randrange(len(before))
        file.write_bytes(draw.choice([before[:at], before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :]]))
        order = epoch_rows(np.arange(COUNT), 5, epoch)
        with over(pixels, 16, seed=5) as loader, pytest.raises(UserError, match=file.name):
            for step, batch in enumerate(loader.batches(epoch)):
                assert np.array_equal(batch.source.numpy(), expected[order[16 * step : 16 * step + 16]])
        file.write_bytes(before)


@needs_dali
@pytest.mark.slow
def test_memory_stays_level_over_epochs_and_loaders(decoded: Dataset, encoded: Dataset) -> None:
    """Two hundred loaders, each for an epoch and a part of one."""
    assert encoded.train is not None and decoded.train is not None
    levels = []
    for count in range(200):
        with over((encoded if count % 2 else decoded).train.images, 16, seed=1) as loader:  # type: ignore[union-attr]
            everything(loader)
            next(iter(loader.batches(1)))
        levels.append(anonymous_megabytes())
    # Allocators settle within the first quarter; afterwards 150 loaders of about 1 MB each would be seen.
    assert max(levels[50:]) - levels[50] < 16


def test_the_hooks_into_the_process_are_ours_alone() -> None:
    """Importing changes no environment variable and no signal handler: in a process of its own."""
    if not installed:
        pytest.skip("DALI is not installed: pip install 'fastres[dali]'")
    script = (
        "import os, signal; from fastres.data.loaders.dali import import_dali\n"
        "before = dict(os.environ), signal.getsignal(signal.SIGINT)\n"
        "import_dali(); assert before == (dict(os.environ), signal.getsignal(signal.SIGINT))"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", script], env=os.environ).returncode == 0
