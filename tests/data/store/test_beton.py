"""The beton store: FFCV's file with the store's very samples, and never one that is not."""

import errno
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastres.data import Dataset
from fastres.data.compat import ffcv
from fastres.data.sources import shapes10
from fastres.data.store import beton
from fastres.data.store.beton import Betons, beton_folder, open_beton, prepare, verify
from fastres.errors import UserError

needs_ffcv = pytest.mark.usefixtures("needs_ffcv")
TRAIN, TEST = 60, 20


def write_images(root: Path) -> Path:
    """Drawings: JPEG files of the right size but for every fourth, which is a PNG, larger, grey or padded."""
    for part, count in (("train", TRAIN), ("test", TEST)):
        images, _ = shapes10.draw(count, part=part)
        for index, pixels in enumerate(images):
            path = root / part / f"class {index % 3}" / f"{index:03}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image, odd = Image.fromarray(pixels), index % 16
            if odd == 3:
                image.save(path.with_suffix(".png"))
            elif odd == 7:
                image.resize((50, 40)).save(path)
            elif odd == 11:
                image.convert("L").save(path, progressive=True)
            elif odd == 15:
                image.save(path, comment=b"x" * 4000)
            else:
                image.save(path, quality=85, subsampling=("4:2:0", "4:2:2", "4:4:4")[index % 3])
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("drawings"))


@pytest.fixture
def dataset(decoded: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the decoded one that may come to harm."""
    shutil.copytree(decoded.path, tmp_path / "store")
    return replace(decoded, path=tmp_path / "store")


@pytest.fixture
def files(encoded: Dataset, tmp_path: Path) -> Dataset:
    shutil.copytree(encoded.path, tmp_path / "files-encoded")
    return replace(encoded, path=tmp_path / "files-encoded")


def contents(store: Betons, part: str, row: int) -> bytes:
    sample = store.parts[part]
    return sample.path.read_bytes()[sample.starts[row] : sample.starts[row] + sample.sizes[row]]


@needs_ffcv
def test_pixels_go_in_as_they_are(dataset: Dataset) -> None:
    store = prepare(dataset, quiet=True)
    assert store.folder == beton_folder(dataset) and sorted(store.parts) == ["test", "train"]
    for name, part in store.parts.items():
        images = getattr(dataset, name).images
        assert part.sums is None and not part.encoded.any()
        assert all(contents(store, name, row) == images[row].tobytes() for row in range(len(images)))
    assert verify(dataset) == []


@needs_ffcv
def test_a_jpeg_goes_in_byte_for_byte_where_it_is_the_stores_image(files: Dataset) -> None:
    store = prepare(files, quiet=True)
    train, images = store.parts["train"], files.train.images  # type: ignore[union-attr]
    for row in range(TRAIN):
        number = int(re.findall(r"(\d+)\.", images.name(row))[0])
        assert train.encoded[row] == (number % 16 not in (3, 7, 15)), images.name(row)
        expected = images.read(row) if train.encoded[row] else images[row].tobytes()
        assert contents(store, "train", row) == expected
    assert verify(files) == []


@needs_ffcv
def test_what_is_there_is_opened_and_not_written_anew(dataset: Dataset) -> None:
    first = prepare(dataset, quiet=True)
    before = (first.folder / "train.beton").stat()
    again = prepare(dataset, quiet=True)
    assert (again.folder / "train.beton").stat() == before
    assert open_beton(dataset).manifest == first.manifest


@needs_ffcv
def test_what_another_process_made_meanwhile_is_left_as_it_is(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    building, made = beton.building, []

    def late(path: Path, **options: bool) -> object:
        monkeypatch.setattr(beton, "building", building)
        made.append((prepare(dataset, quiet=True).folder / "train.beton").stat())
        return building(path, **options)

    monkeypatch.setattr(beton, "building", late)
    assert (prepare(dataset, quiet=True).folder / "train.beton").stat() == made[0]


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def damage_index(folder: Path) -> None:
    content = bytearray((folder / "train.beton").read_bytes())
    content[2200] ^= 1  # of the first samples' places
    (folder / "train.beton").write_bytes(content)


def damage_header(folder: Path) -> None:
    content = bytearray((folder / "train.beton").read_bytes())
    content[15] = 255  # samples beyond number
    (folder / "train.beton").write_bytes(content)


def remove_part(folder: Path) -> None:
    (folder / "test.beton").unlink()


def lengthen(folder: Path) -> None:
    with (folder / "train.beton").open("ab") as file:
        file.write(b"\0" * 24)


def change_fingerprint(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 16}))


DAMAGES = (damage_manifest, damage_index, damage_header, remove_part, lengthen, change_fingerprint)


@needs_ffcv
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_beton_is_refused_and_made_anew(dataset: Dataset, damage: object) -> None:
    store = prepare(dataset, quiet=True)
    damage(store.folder)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"is of no use \(.*\): run `fastres data prepare .* --format beton`") as caught:
        open_beton(dataset)
    assert "\n" not in str(caught.value)
    assert verify(dataset) == [str(caught.value)]
    prepare(dataset, quiet=True)
    assert verify(dataset) == []


@needs_ffcv
def test_checksums_that_were_changed_are_refused(files: Dataset) -> None:
    path = prepare(files, quiet=True).folder / "train_sums.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train_sums\.npy was changed"):
        open_beton(files)


@needs_ffcv
def test_without_a_beton_the_command_is_named(decoded: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no beton: run `fastres data prepare .* --format beton`"):
        open_beton(replace(decoded, path=tmp_path / "nothing"))


@needs_ffcv
@pytest.mark.parametrize("cuts", [5, pytest.param(100, marks=(pytest.mark.slow, pytest.mark.fuzz))])
def test_a_beton_cut_anywhere_is_refused(dataset: Dataset, cuts: int) -> None:
    path = prepare(dataset, quiet=True).folder / "train.beton"
    size = path.stat().st_size
    # From the end, so that one file serves all; the ends of the index and the last byte among them.
    places = {0, 1, size - 1, *np.random.default_rng(0).integers(0, size, cuts).tolist()}
    for length in sorted(places, reverse=True):
        os.truncate(path, length)
        with pytest.raises(UserError, match=rf"train\.beton has {length} bytes instead of {size}\): run `fastres data"):
            open_beton(dataset)


@needs_ffcv
def test_a_flipped_pixel_is_found_by_verify(dataset: Dataset) -> None:
    store = prepare(dataset, quiet=True)
    path, place = store.folder / "train.beton", int(store.parts["train"].starts[5])
    content = bytearray(path.read_bytes())
    content[place] ^= 128
    path.write_bytes(content)
    assert verify(dataset) == [f"{path} was changed: its sha256 is not the manifest's"]


@needs_ffcv
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_writing_that_ends_early_leaves_nothing(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    allocator = ffcv.import_ffcv().memory_allocator.MemoryAllocator
    before = set(Path("/proc/self/fd").iterdir())

    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(allocator, "flush_page", fail)
    with pytest.raises((KeyboardInterrupt, UserError), match=None if isinstance(error, KeyboardInterrupt) else "full"):
        prepare(dataset, quiet=True)
    left = [path.name for path in dataset.path.parent.iterdir() if not path.name.endswith(".lock")]
    assert left == ["store"]
    assert set(Path("/proc/self/fd").iterdir()) == before


@needs_ffcv
def test_writing_starts_no_process_and_shares_no_memory(dataset: Dataset, shared_memory_stays: None) -> None:
    threads = threading.active_count()
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    prepare(dataset, quiet=True)
    assert multiprocessing.active_children() == [] and threading.active_count() == threads
    assert Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text() == children


@needs_ffcv
def test_progress_is_ours(dataset: Dataset, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(dataset)
    said = capfd.readouterr()
    assert re.fullmatch(rf"writing store-beton: {TRAIN + TEST} of {TRAIN + TEST}, done in [\d.]+ s\n", said.err)
    assert said.out == ""


IMPORT = """
import os, numba, torch
torch.set_num_threads(2)
threads = len(os.listdir("/proc/self/task"))
before = dict(os.environ), numba.typed.Dict, numba.set_num_threads
from fastres.data.compat.ffcv import import_ffcv
ffcv = import_ffcv()
assert torch.get_num_threads() == 2
assert (dict(os.environ), numba.typed.Dict, numba.set_num_threads) == before
assert ffcv.pipeline.compiler.set_num_threads is numba.set_num_threads
assert len(os.listdir("/proc/self/task")) <= threads + 1  # OpenCV's
"""


@needs_ffcv
def test_importing_ffcv_changes_nothing_else() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], check=True, timeout=120)


STOCK = """
import sys, numpy as np
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
batches = list(Loader(sys.argv[1], batch_size=int(sys.argv[3]), num_workers=1, order=OrderOption.SEQUENTIAL))
(images, labels), = batches
np.savez(sys.argv[2], images=images.numpy(), labels=labels.numpy())
"""


@needs_ffcv
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "files"])
def test_stock_ffcv_reads_it(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    path = prepare(dataset, quiet=True).folder / "train.beton"
    command = [sys.executable, "-c", STOCK, str(path), str(tmp_path / "read.npz"), str(TRAIN)]
    subprocess.run(command, check=True, timeout=300)
    assert dataset.train is not None
    with np.load(tmp_path / "read.npz") as read:
        assert read["labels"].reshape(-1).tolist() == dataset.train.labels.tolist()  # type: ignore[union-attr]
        difference = np.abs(read["images"].astype(int) - dataset.train.images[np.arange(TRAIN)])
    # Raw samples are equal; FFCV decodes JPEG files with a fast transform, which is off by up to 5 of 255 here and on
    # 10,000 photographs. One more for another version of its library.
    assert difference.max() <= (0 if kind == "dataset" else 6)


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        (
            False,
            r"first `apt-get install g\+\+ pkg-config libopencv-dev libturbojpeg0-dev`,\nthen `pip",
        ),
        (True, r"FFCV: `pip install 'fastres\[ffcv\]'`$"),
    ],
)
def test_without_ffcv_the_lines_that_install_it_are_named(
    decoded: Dataset, monkeypatch: pytest.MonkeyPatch, programs: bool, expected: str
) -> None:
    ffcv.import_ffcv.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: name if programs else None)
    monkeypatch.setattr(subprocess, "run", lambda *command, **_: subprocess.CompletedProcess(command, 0))
    for function in (beton.open_beton, beton.prepare):
        with pytest.raises(UserError, match=expected):
            function(decoded)
