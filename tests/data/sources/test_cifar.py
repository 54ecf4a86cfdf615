"""CIFAR archives and folders, md5 sums, downloads, and pickles without labels."""

import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastres.data import open_dataset
from fastres.data.sources import cifar as cifar_source
from fastres.data.sources.cifar import KINDS
from fastres.errors import UserError

CLASSES = {"cifar10": 10, "cifar100": 100}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("packed", [False, True])
def test_archives_and_folders(
    tmp_path: Path, name: str, packed: bool, cifar: Callable, write_tar: Callable, write_folder: Callable
) -> None:
    files, images, labels = cifar(CLASSES[name])
    if packed:
        folder = KINDS[name].folder
        path = write_tar(tmp_path / "mine.tar.gz", {f"{folder}/{member}": data for member, data in files.items()})
    else:
        path = write_folder(tmp_path / "mine", files)
    dataset = open_dataset(str(path), root=tmp_path / "root", quiet=True)
    assert dataset.classes == tuple(f"class {number}" for number in range(CLASSES[name]))
    assert dataset.train is not None and dataset.test is not None
    assert np.array_equal(dataset.train.images, images[:-20])
    assert np.array_equal(dataset.test.images, images[-20:])
    assert dataset.train.labels is not None and dataset.test.labels is not None
    assert dataset.train.labels.tolist() == labels[:-20].tolist()
    assert dataset.test.labels.tolist() == labels[-20:].tolist()
    assert dataset.train.labels.dtype == np.int64


def test_a_wrong_md5_is_refused(tmp_path: Path, cifar: Callable, write_tar: Callable, write_folder: Callable) -> None:
    files, _, _ = cifar(10)
    members = {f"cifar-10-batches-py/{member}": data for member, data in files.items()}
    archive = write_tar(tmp_path / "cifar-10-python.tar.gz", members)
    folder = write_folder(tmp_path / "cifar-10-batches-py", files)
    for path in (archive, folder):
        with pytest.raises(
            UserError, match=r"its md5 is [0-9a-f]{32}, not [0-9a-f]{32}.\nDelete it and fetch it again"
        ):
            open_dataset(str(path), root=tmp_path / "root", quiet=True)
    (tmp_path / "root/downloads").mkdir()
    archive.rename(tmp_path / "root/downloads" / archive.name)
    with pytest.raises(UserError, match=r"downloads/cifar-10-python\.tar\.gz is damaged: its md5"):
        open_dataset("cifar10", root=tmp_path / "root", quiet=True)
    assert not [*(tmp_path / "root/stores").glob("[!.]*"), *(tmp_path / "root/stores").glob(".*.tmp")]


def test_offline_names_three_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every request goes to a port of this machine where nobody listens: as good as no network.
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for scheme in ("http", "https"):
            monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(UserError, match="cannot download cifar100") as error:
            open_dataset("cifar100", root=tmp_path, quiet=True)
    text = str(error.value)
    assert f"put cifar-100-python.tar.gz into {tmp_path / 'downloads'} by hand" in text
    assert "local file or folder" in text and "shapes10" in text
    assert len(text.splitlines()) == 2
    assert not list((tmp_path / "downloads").iterdir())
    assert not [*(tmp_path / "stores").glob("[!.]*"), *(tmp_path / "stores").glob(".*.tmp")]


CHANGES: dict[str, tuple[str, object, str]] = {
    "no labels": ("labels", None, "has no labels from 0 to 9"),
    "a label too large": ("labels", [10] * 20, "has no labels from 0 to 9"),
    "too few labels": ("labels", [1] * 19, "images and labels differ in number"),
    "no data": ("data", None, "'data' is no array"),
    "floats": ("data", np.zeros((20, 3072), np.float32), r"'data' is float32 \[20, 3072\]"),
    "another width": ("data", np.zeros((20, 3000), np.uint8), r"'data' is uint8 \[20, 3000\]"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_wrong_contents(tmp_path: Path, what: str, cifar: Callable, write_folder: Callable) -> None:
    key, value, message = CHANGES[what]
    files, _, _ = cifar(10)
    content = pickle.loads(files["data_batch_2"], encoding="bytes")
    files["data_batch_2"] = pickle.dumps(content | {key.encode(): value}, 2)
    path = write_folder(tmp_path / "in", files)
    with pytest.raises(UserError, match=message):
        open_dataset(str(path), root=tmp_path / "root", quiet=True)


def test_a_missing_batch_and_a_wrong_size(tmp_path: Path, cifar: Callable, write_folder: Callable) -> None:
    files, _, _ = cifar(10)
    del files["data_batch_4"]
    path = write_folder(tmp_path / "in", files)
    with pytest.raises(UserError, match="data_batch_4"):
        open_dataset(str(path), root=tmp_path / "root", quiet=True)
    with pytest.raises(UserError, match=r"leave data\.image_size out"):
        open_dataset(str(path), image_size=64, root=tmp_path / "root", quiet=True)


@pytest.mark.parametrize("name", CLASSES)
def test_an_official_folder_says_which_file_is_missing(
    tmp_path: Path, name: str, cifar: Callable, write_folder: Callable, image_files: dict[str, bytes]
) -> None:
    kind = KINDS[name]
    files, _, _ = cifar(CLASSES[name])
    for missing in (kind.meta, kind.test):
        kept = {file: data for file, data in files.items() if file != missing}
        path = write_folder(tmp_path / missing / kind.folder, kept)
        with pytest.raises(UserError, match=rf"{kind.folder} lacks the file {missing} of {name}: fetch it again"):
            open_dataset(str(path), root=tmp_path / "root", quiet=True)
    # A folder of images may have that name.
    images = write_folder(tmp_path / "images" / kind.folder, image_files)
    assert open_dataset(str(images), root=tmp_path / "root", quiet=True).classes == ("ant", "bee")


@pytest.mark.parametrize("folder", ["mine", "cifar-10-batches-py"])  # with the official name, md5 sums come first
@pytest.mark.parametrize("target", ["a pipe", "/dev/zero", "/proc/self/status"])
def test_special_files_in_a_folder(
    tmp_path: Path, folder: str, target: str, cifar: Callable, write_folder: Callable
) -> None:
    files, _, _ = cifar(10)
    path = write_folder(tmp_path / folder, files)
    batch = path / "data_batch_1"
    batch.unlink()
    if target == "a pipe":
        os.mkfifo(batch)
    else:
        batch.symlink_to(target)
    if target.startswith("/proc"):
        message = "its md5 is" if folder != "mine" else "is longer than its size says"
    else:
        message = "is no regular file: remove it"
    with pytest.raises(UserError, match=f"data_batch_1 .*{message}"):
        open_dataset(str(path), root=tmp_path / "root", quiet=True)


def test_a_pipe_among_the_downloads(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    os.mkfifo(tmp_path / "downloads/cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is no regular file: remove it"):
        open_dataset("cifar10", root=tmp_path, quiet=True)


def test_a_download_goes_through_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that others can write into; and what a killed download left goes with the next."""
    downloads, victim = tmp_path / "downloads", tmp_path / "victim"
    downloads.mkdir()
    victim.write_text("precious")
    (downloads / ".cifar-10-python.tar.gz.part").symlink_to(victim)
    (downloads / ".cifar-10-python.tar.gz-killed.part").mkdir()

    def download(url: str, path: Path, md5: str, quiet: bool) -> None:
        path.write_bytes(b"an archive")

    monkeypatch.setattr(cifar_source, "_download", download)
    found = cifar_source.find_or_download(KINDS["cifar10"], downloads, quiet=True)
    assert found.read_bytes() == b"an archive"
    assert victim.read_text() == "precious"
    assert {path.name for path in downloads.iterdir()} == {".cifar-10-python.tar.gz.part", found.name}


IMAGES = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), np.uint8)
FORMS = {
    "flat": np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)).reshape(7, 3072),
    "channels first": IMAGES.transpose(0, 3, 1, 2),
    "channels last": IMAGES,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_without_labels(tmp_path: Path, form: str, protocol: int) -> None:
    path = tmp_path / "cifar_test_nolabels.pkl"
    path.write_bytes(pickle.dumps({b"data": FORMS[form], b"ids": np.arange(100, 107)}, protocol))
    dataset = open_dataset(str(path), root=tmp_path / "root", quiet=True)
    assert dataset.classes == () and dataset.train is None and dataset.test is None
    assert dataset.unlabelled is not None and dataset.unlabelled.ids is not None
    assert np.array_equal(dataset.unlabelled.images, IMAGES)
    assert dataset.unlabelled.ids.tolist() == list(range(100, 107))
    # fp64 sums of 7,168 values: rounding stays below 1e-12.
    np.testing.assert_allclose(dataset.mean, IMAGES.reshape(-1, 3).mean(axis=0) / 255, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ids", [None, list(range(7)), [f"img{i}" for i in range(7)], [b"a%d" % i for i in range(7)]])
def test_ids_of_a_pickle(tmp_path: Path, ids: list | None) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"data": IMAGES} | ({} if ids is None else {"ids": ids})))
    part = open_dataset(str(path), root=tmp_path / "root", quiet=True).unlabelled
    assert part is not None and part.ids is not None
    expected = [value.decode() if isinstance(value, bytes) else value for value in ids or range(7)]
    assert part.ids.tolist() == expected


def test_ids_that_utf8_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"data": IMAGES[:3], "ids": ["a", "caf\udce9", "\ud800"]}))
    part = open_dataset(str(path), root=tmp_path / "root", quiet=True).unlabelled
    assert part is not None and part.ids is not None
    assert part.ids.tolist() == ["a", "caf\\udce9", "\\ud800"]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"data": IMAGES, "ids": [1, 2]}, "'ids' must be 7 whole numbers"),
        ({"data": IMAGES, "ids": [1.5] * 7}, "'ids' must be 7 whole numbers"),
        ({"data": IMAGES[:0]}, "holds no images: give a file that does"),
        (
            {"data": IMAGES[:, :16, :16]},
            "holds images of 16 pixels, not the 32 asked for: make it again with images of 32$",
        ),
        ({"data": IMAGES[:, :16]}, r"'data' is uint8 \[7, 16, 32, 3\]"),
        ({"data": IMAGES, "labels": [0] * 7}, "is one file of CIFAR: name its folder"),
        ([1], "it holds no dict"),
    ],
)
def test_wrong_pickles(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        open_dataset(str(path), root=tmp_path / "root", quiet=True)
    assert not [*(tmp_path / "root/stores").glob("[!.]*"), *(tmp_path / "root/stores").glob(".*.tmp")]
