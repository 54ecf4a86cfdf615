"""CIFAR-10 and CIFAR-100 as their author packs them for Python, and pickles of images without labels.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import errno
import hashlib
import io
import shutil
import socket
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fastres.data.sources.named import SETS, NamedSet
from fastres.data.store.decoded import Writer
from fastres.data.untrusted import archives, unpickle
from fastres.errors import UserError, disk_errors_are_the_users
from fastres.utils.progress import progress, say
from fastres.utils.untrusted import encodable, open_regular

SIDE = 32


@dataclass(frozen=True)
class Kind:
    """One of the two data sets. The md5 sums are torchvision's."""

    name: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    class_names: str
    classes: int


KINDS = {
    "cifar10": Kind(
        name="cifar10",
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels="labels",
        class_names="label_names",
        classes=10,
    ),
    "cifar100": Kind(
        name="cifar100",
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        labels="fine_labels",
        class_names="fine_label_names",
        classes=100,
    ),
}


def kind_of_folder(path: Path) -> Kind | None:
    """Which of the two lies unpacked in the folder `path`; None for any other folder.

    Raises UserError for a folder of an official name that lacks the files which tell, unless it has folders for images.
    """
    for kind in KINDS.values():
        missing = [name for name in (kind.meta, kind.test) if not (path / name).is_file()]
        if not missing:
            return kind
        if path.name == kind.folder and not ((path / "train").is_dir() or (path / "test").is_dir()):
            raise UserError(f"{path} lacks the file {missing[0]} of {kind.name}: fetch it again")
    return None


def kind_of_archive(path: Path) -> Kind | None:
    """Which of the two is packed in the tar at `path`, from its first file; None for any other archive."""
    first = next((PurePosixPath(member.name) for member in archives.members(path)), PurePosixPath())
    for kind in KINDS.values():
        if first.parent.name == kind.folder or (first.name in (kind.meta, *kind.train) and len(first.parts) <= 2):
            return kind
    return None


def check_md5(path: Path, kind: Kind | None = None) -> None:
    """Compare the md5 of `path`, an archive or folder, with the official one, if it carries an official name.

    Raises UserError where they differ.
    """
    for known in KINDS.values():
        if path.name == known.archive:
            _compare(path, _official(known).tgz_md5)
        elif path.name == known.folder and kind is not None:
            official = _official(known)
            meta = (official.meta["filename"], official.meta["md5"])
            for name, md5 in (*official.train_list, *official.test_list, meta):
                _compare(path / name, md5)


def _official(kind: Kind) -> Any:
    from fastres.data.compat.torchvision import import_torchvision

    return getattr(import_torchvision().datasets, {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}[kind.name])


def _compare(path: Path, md5: str) -> None:
    try:
        with open_regular(path) as file:
            actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; fetch it again") from error
    if actual != md5:
        raise UserError(f"{path} is damaged: its md5 is {actual}, not {md5}.\nDelete it and fetch it again.")


def find_or_download(kind: Kind, downloads: Path, *, quiet: bool) -> Path:
    """The archive or folder of `kind` below `downloads`, fetched first if there is neither.

    Raises UserError with the three ways out where the network does not answer.
    """
    for path in (downloads / kind.archive, downloads / kind.folder):
        if path.exists():
            return path
    official = _official(kind)
    if not quiet:
        say(f"downloading {official.url} to {downloads}")
    with disk_errors_are_the_users(downloads):
        downloads.mkdir(parents=True, exist_ok=True)
        for leftover in downloads.glob(f".{kind.archive}-*.part"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            # In a folder of its own: in one that others can write into, a link could have the name of any file.
            with TemporaryDirectory(prefix=f".{kind.archive}-", suffix=".part", dir=downloads) as unfinished:
                _download(official.url, Path(unfinished) / kind.archive, official.tgz_md5, quiet)
                (Path(unfinished) / kind.archive).replace(downloads / kind.archive)
        except RuntimeError as error:  # torchvision's word for a wrong md5
            what = f"what {official.url} sent has a wrong md5: try again"
            raise UserError(f"{what}, {_ways_out(kind, downloads)}") from error
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR):
                raise  # the disk's, not the network's: the manager above words it
            why = getattr(error, "reason", error)
            raise UserError(f"cannot download {kind.name} ({why}): {_ways_out(kind, downloads)}") from error
    return downloads / kind.archive


def _download(url: str, path: Path, md5: str, quiet: bool) -> None:
    from torchvision.datasets.utils import download_url

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torchvision sets none, and would wait forever on a network that drops packets
    try:
        with redirect_stderr(io.StringIO()) if quiet else nullcontext():
            download_url(url, str(path.parent), path.name, md5)
    finally:
        socket.setdefaulttimeout(patience)


def _ways_out(kind: Kind, downloads: Path) -> str:
    return (
        f"put {kind.archive} into {downloads} by hand,\n"
        f"or point data.source at a local file or folder, or use data.source = 'shapes10', which needs no download"
    )


def build_from_cifar(path: Path, kind: Kind, writer: Writer, *, quiet: bool) -> tuple[str, ...]:
    """Read the archive or folder at `path` into `writer`; returns the class names. Images keep the files' order."""
    wanted = {*kind.train, kind.test, kind.meta}
    batches: dict[str, dict[str, Any]] = {}
    with progress(f"reading {path.name}", len(wanted), quiet=quiet) as advance:
        for name, data in _files(path, wanted):
            batches[name] = data
            advance(1)
    missing = sorted(wanted - batches.keys())
    if missing:
        raise UserError(f"{path} lacks {missing[0]}: fetch it again")
    classes = _class_names(batches[kind.meta].get(kind.class_names), kind, path)
    for part, names in (("train", kind.train), ("test", (kind.test,))):
        images = [rows_to_images(batches[name].get("data"), f"{path}: {name}") for name in names]
        labels = [_labels(batches[name].get(kind.labels), kind, f"{path}: {name}") for name in names]
        if [len(rows) for rows in images] != [len(rows) for rows in labels]:
            raise UserError(f"{path}: images and labels differ in number: fetch it again")
        with writer.images(part, sum(map(len, images)), SIDE) as file:
            row = 0
            for rows in images:
                file.write(row, rows)
                row += len(rows)
        writer.array(f"{part}_labels", np.concatenate(labels))
    return classes


def _files(path: Path, wanted: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.is_dir():
        for name in sorted(wanted):
            yield name, unpickle.load_file(path / name)
        return
    for member in archives.members(path):
        name = PurePosixPath(member.name).name
        if name in wanted:
            yield name, unpickle.load(member.read(unpickle.MAX_BYTES), f"{path}: {member.name}")


def _class_names(names: Any, kind: Kind, path: Path) -> tuple[str, ...]:
    if type(names) is not list or len(names) != kind.classes or any(type(name) not in (bytes, str) for name in names):
        raise UserError(f"{path}: {kind.meta} does not name {kind.classes} classes: fetch it again")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)


def _labels(values: Any, kind: Kind, where: str) -> np.ndarray:
    listed = isinstance(values, list) and all(type(value) is int and 0 <= value < kind.classes for value in values)
    whole = isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu"
    if not listed and not (whole and values.size and values.min() >= 0 and values.max() < kind.classes):
        raise UserError(f"{where} has no labels from 0 to {kind.classes - 1}: fetch it again")
    return np.asarray(values, np.int64)


def rows_to_images(rows: Any, where: str) -> np.ndarray:
    """uint8 [N, 3072] (channel, row, column), [N, 3, H, H] or [N, H, H, 3], as [N, H, H, 3]; else UserError."""
    if isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and len(rows):
        if rows.ndim == 2 and rows.shape[1] == 3 * SIDE * SIDE:
            return rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        if rows.ndim == 4 and rows.shape[3] == 3 and rows.shape[1] == rows.shape[2] >= 4:
            return rows
        if rows.ndim == 4 and rows.shape[1] == 3 and rows.shape[2] == rows.shape[3] >= 4:
            return rows.transpose(0, 2, 3, 1)
    if isinstance(rows, np.ndarray) and rows.ndim and not len(rows):
        raise UserError(f"{where} holds no images: give a file that does")
    actual = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else "no array"
    raise UserError(f"{where}: 'data' is {actual}; it must be uint8 of shape [N, 3072], [N, 3, H, H] or [N, H, H, 3]")


def build_from_pickle(path: Path, size: int, writer: Writer, *, quiet: bool) -> tuple[str, ...]:
    """Read a pickled dict with `data` and, optionally, `ids` into the part `unlabelled`; returns no classes."""
    with progress(f"reading {path.name}", 1, quiet=quiet) as advance:
        content = unpickle.load_file(path)
        advance(1)
    if content.keys() & {"labels", "fine_labels"}:
        raise UserError(f"{path} is one file of CIFAR: name its folder {path.parent} as the source")
    images = rows_to_images(content.get("data"), str(path))
    if (side := images.shape[1]) != size:
        told = f"{path} holds images of {side} pixels, not the {size} asked for"
        raise UserError(f"{told}: make it again with images of {size}")
    with writer.images("unlabelled", len(images), size) as file:
        file.write(0, images)
    writer.array("unlabelled_ids", _ids(content.get("ids"), len(images), str(path)))
    return ()


def _ids(values: Any, count: int, where: str) -> np.ndarray:
    if values is None:
        return np.arange(count, dtype=np.int64)
    if isinstance(values, np.ndarray) and values.shape == (count,) and values.dtype.kind in "iuSU":
        values = values.tolist()
    if type(values) in (list, tuple) and len(values) == count:
        if all(type(value) is int and abs(value) < 2**63 for value in values):
            return np.array(values, np.int64)
        if all(type(value) in (bytes, str) and len(value) <= 1000 for value in values):
            texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
            return np.array([encodable(text) for text in texts])
    raise UserError(f"{where}: 'ids' must be {count} whole numbers or short texts, one an image")


def _fetch(kind: Kind, downloads: Path, writer: Writer, quiet: bool) -> tuple[str, ...]:
    path = find_or_download(kind, downloads, quiet=quiet)
    check_md5(path, kind)
    return build_from_cifar(path, kind, writer, quiet=quiet)


SETS.update({name: NamedSet(kind.classes, 50_000, 10_000, partial(_fetch, kind)) for name, kind in KINDS.items()})
