"""The store: `.npy` files with a manifest, of images decoded and memory-mapped, or left encoded in their files.

A store is one folder, `<root>/stores/<name>-<size>-<key>/`, with `<part>_images.npy` for the parts train, test and
unlabelled, `<part>_labels.npy` or `<part>_ids.npy`, and `manifest.json`. Instead of `<part>_images.npy`, an encoded
store, `<name>-<size>-<key>-encoded`, has `<part>_sizes.npy` and what else encoded.py needs to find and check each file.
A store is built in a temporary folder next to it under a lock, synced and renamed, so that it is complete or absent at
any instant, whoever else prepares the same one.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from fastres._version import __version__
from fastres.data.store.arrays import map_array, read_array
from fastres.data.store.encoded import EncodedImages
from fastres.data.store.manifest import Channels, Manifest, StoredFile, read_manifest
from fastres.data.store.manifest import write_manifest as write_checked
from fastres.errors import UserError, disk_errors_are_the_users
from fastres.utils.files import sync
from fastres.utils.locks import lock, open_lock, try_lock
from fastres.utils.progress import say
from fastres.utils.untrusted import encodable

FORMAT = 1  # version of the layout; part of every key, so that another version never meets this one's stores
PARTS = ("train", "test", "unlabelled")


@dataclass(frozen=True)
class Part:
    """One part of a store."""

    images: Any
    """uint8 [N, H, W, 3]: a read-only memory map, or the `EncodedImages` of an encoded store."""
    labels: np.ndarray | None
    """int64 [N], or None for unlabelled images."""
    ids: np.ndarray | None
    """int64 or text [N], the names of unlabelled images; else None."""


@dataclass(frozen=True)
class Dataset:
    """An opened store."""

    path: Path
    """The store's folder."""
    source: str
    """The source as its user named it."""
    name: str
    """"cifar10", "cifar100", "shapes10", or the name of the file or folder."""
    classes: tuple[str, ...]
    """Class names in the order of labels; empty if nothing is labelled."""
    image_size: int
    """Side of the images in pixels."""
    train: Part | None
    test: Part | None
    unlabelled: Part | None
    mean: tuple[float, float, float]
    """Mean of each channel over the training images (or the only part), in units of 1 = white. Exact."""
    std: tuple[float, float, float]
    """Standard deviation of the same pixels (divided by N), in units of 1 = white."""
    manifest: Manifest

    @property
    def parts(self) -> dict[str, Part]:
        """The training and the test images, where there are any, by name."""
        return {name: part for name, part in (("train", self.train), ("test", self.test)) if part is not None}

    @property
    def encoded(self) -> bool:
        """Whether the images are still in their files."""
        return self.manifest.store == "encoded"


@dataclass(frozen=True)
class StoreFacts:
    """What only the source knows for the manifest; None is measured or left out."""

    store: Literal["decoded", "encoded"] = "decoded"
    container: Literal["folder", "tar"] | None = None
    location: str | None = None
    mean: Channels | None = None
    std: Channels | None = None


class Writer:
    """Writes the arrays of a store into its temporary folder.

    Arrays are written, never mapped: a full disk then is an error, where a mapped page would kill the process (SIGBUS).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.facts = StoreFacts()

    def images(self, part: str, count: int, size: int) -> "ImageRows":
        """Reserve uint8 [count, size, size, 3]. Raises OSError where the disk has no room for it."""
        return ImageRows(self._folder / f"{part}_images.npy", (count, size, size, 3))

    def array(self, name: str, values: np.ndarray) -> None:
        """Write a small array, such as `train_labels`."""
        with (self._folder / f"{name}.npy").open("wb") as file:
            _write_header(file, values.dtype, values.shape)
            file.write(np.ascontiguousarray(values).tobytes())  # ndarray.tofile loses the error number of a full disk


class ImageRows:
    """A reserved file of images, whose rows arrive in any order and from any thread."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self._bytes_a_row = shape[1] * shape[2] * shape[3]
        with path.open("xb") as file:
            _write_header(file, np.dtype(np.uint8), shape)
            self._start = file.tell()
        self._descriptor = os.open(path, os.O_WRONLY)
        try:
            os.posix_fallocate(self._descriptor, 0, self._start + shape[0] * self._bytes_a_row)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> "ImageRows":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, row: int, images: np.ndarray) -> None:
        """Write uint8 [n, H, W, 3] (or one [H, W, 3]) at `row`."""
        data = memoryview(np.ascontiguousarray(images).data).cast("B")
        offset = self._start + row * self._bytes_a_row
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written


def _write_header(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


@contextmanager
def building(path: Path, *, quiet: bool, rebuild: bool) -> Iterator[Path | None]:
    """Yield a temporary folder that becomes the store `path` when the block ends; None if another process made it.

    One process builds at a time; a second one waits, and prints a line unless `quiet`. With `rebuild`, a store that
    does not open, or is of an older version, is replaced; one that stays need not be writable. Raises UserError where
    the disk is full or not writable; nothing is then left behind.
    """
    if path.exists() and not (rebuild and not _stays(path)):
        yield None
        return
    with disk_errors_are_the_users(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path, quiet):
            _remove_leftovers(path.parent)
            if path.exists() and not (rebuild and not _stays(path)):
                yield None
                return
            temporary = path.with_name(f".{path.name}.tmp")
            _remove(temporary)
            try:
                temporary.mkdir()
                yield temporary
                for each in (*temporary.iterdir(), temporary):
                    sync(each)
                _remove(path)
                temporary.rename(path)
                sync(path.parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


def _remove(path: Path) -> None:
    """Remove whatever stands at `path`, if anything does: a link is removed and not what it leads to, and a pipe, which
    shutil.rmtree would open, is not waited for."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path, quiet: bool) -> Iterator[None]:
    with open_lock(path.with_name(f".{path.name}.lock")) as held:
        if not try_lock(held):
            say(f"waiting: another process is preparing {path}", quiet=quiet)
            lock(held)
        yield


def _remove_leftovers(stores: Path) -> None:
    """Remove the temporary folders of processes that died: those whose lock nobody holds."""
    for folder in stores.glob(".*.tmp"):
        file = folder.with_name(folder.name.removesuffix(".tmp") + ".lock")
        with suppress(OSError, UserError), open_lock(file) as held:
            if try_lock(held):
                _remove(folder)


def _stays(path: Path) -> bool:
    """Whether the store is left as it is: it opens, and has a digest (none in older versions) or cannot be written."""
    try:
        manifest = open_store(path, "").manifest
    except UserError:
        return False
    return manifest.sha256 is not None or not os.access(path.parent, os.W_OK)


def write_manifest(
    folder: Path, *, name: str, source: str, classes: tuple[str, ...], image_size: int, facts: StoreFacts
) -> None:
    """Measure the arrays in `folder` and write its manifest, with the writer's `facts`."""
    files = {}
    for path in sorted(folder.glob("*.npy")):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        files[path.name] = StoredFile(shape=list(array.shape), dtype=array.dtype.str, bytes=size, sha256=digest)
    if facts.mean is None:
        measured = next(part for part in PARTS if f"{part}_images.npy" in files)
        mean, std = _measure(np.load(folder / f"{measured}_images.npy", mmap_mode="r", allow_pickle=False))
        facts = replace(facts, mean=mean, std=std)
    manifest = Manifest(
        format=FORMAT,
        fastres=__version__,
        name=encodable(name),
        source=encodable(source),
        classes=[encodable(label) for label in classes],
        image_size=image_size,
        fingerprint=hashlib.sha256("".join(file.sha256 for file in files.values()).encode()).hexdigest()[:16],
        files=files,
        **{key: value for key, value in vars(facts).items() if value is not None},
    )
    write_checked(folder, manifest)


@dataclass
class PixelSums:
    """Sums over pixels, by channel: integers, so that any order of adding gives the same statistics."""

    count: int = 0
    total: tuple[int, ...] = (0, 0, 0)
    squares: tuple[int, ...] = (0, 0, 0)

    @staticmethod
    def of(images: np.ndarray) -> "PixelSums":
        """Of uint8 [..., 3]."""
        pixels = images.reshape(-1, 3).astype(np.int64)
        total, squares = pixels.sum(axis=0), np.square(pixels).sum(axis=0)
        return PixelSums(len(pixels), tuple(total.tolist()), tuple(squares.tolist()))

    def add(self, other: "PixelSums") -> None:
        self.count += other.count
        self.total = tuple(map(sum, zip(self.total, other.total, strict=True)))
        self.squares = tuple(map(sum, zip(self.squares, other.squares, strict=True)))

    def statistics(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation of each channel in units of 1 = white, exact until the last division."""
        count, sums = self.count, list(zip(self.total, self.squares, strict=True))
        mean = [first / (255 * count) for first, _ in sums]
        std = [float(np.sqrt((count * second - first * first) / count**2)) / 255 for first, second in sums]
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _measure(images: np.ndarray) -> tuple[Channels, Channels]:
    sums = PixelSums()
    step = max(1, (1 << 22) // images[0].size)
    for start in range(0, len(images), step):
        sums.add(PixelSums.of(images[start : start + step]))
    return sums.statistics()


def open_store(path: Path, source: str) -> Dataset:
    """Open the store at `path` without reading its images; all else is compared with its digests.

    Raises UserError if it is damaged. A store of an older version, without a digest, is opened, and that is said.
    """
    try:
        manifest = read_manifest(path, Manifest)
        if manifest.format != FORMAT:
            raise ValueError(f"its format is {manifest.format}")
        parts = {name: part for name in PARTS if (part := _part(path, manifest, name)) is not None}
        if not parts:
            raise ValueError("it has no images")
    except Exception as error:  # a file of anything makes its readers raise anything
        detail = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise UserError(
            f"the prepared store {path} is damaged ({detail}):\ndelete it, or run `fastres data prepare` to rebuild it"
        ) from error
    if manifest.sha256 is None:
        _say_unchecked(path)
    return Dataset(
        path=path,
        source=source,
        name=manifest.name,
        classes=tuple(manifest.classes),
        image_size=manifest.image_size,
        train=parts.get("train"),
        test=parts.get("test"),
        unlabelled=parts.get("unlabelled"),
        mean=manifest.mean,
        std=manifest.std,
        manifest=manifest,
    )


@functools.cache  # a command opens its store a few times
def _say_unchecked(path: Path) -> None:
    say(
        f"{path} is of an older version of fastres: whether its manifest was changed cannot be told; "
        "`fastres data prepare` of its source makes it anew"
    )


def _part(path: Path, manifest: Manifest, name: str) -> Part | None:
    """The part `name` of the store at `path`; None where it has none. Raises ValueError where its arrays do not belong
    together, and as `arrays` does."""
    files, side = manifest.files, manifest.image_size
    images: Any
    if manifest.store == "encoded":
        if f"{name}_sizes.npy" not in files:
            return None
        images = EncodedImages(path, name)
    else:
        if f"{name}_images.npy" not in files:
            return None
        images = map_array(path / f"{name}_images.npy", files[f"{name}_images.npy"])
    others = (f"{name}_labels.npy", f"{name}_ids.npy")
    labels, ids = (read_array(path / other, files[other]) if other in files else None for other in others)
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3) or (labels is None) != (name == "unlabelled"):
        raise ValueError(f"{name} is incomplete")
    if any(other is not None and other.shape != images.shape[:1] for other in (labels, ids)):
        raise ValueError(f"{name} has arrays of different lengths")
    if labels is not None and (labels.dtype != np.int64 or not in_range(labels, len(manifest.classes))):
        raise ValueError(f"{name} has labels of other classes than the manifest names")
    if ids is not None and ids.dtype.kind not in "iU":
        raise ValueError(f"{name} has ids that are no names")
    return Part(images, labels, ids)


def in_range(values: np.ndarray, end: int) -> bool:
    """Whether all of `values`, integers, are from 0 to below `end`."""
    return not values.size or (int(values.min()) >= 0 and int(values.max()) < end)


def verify_store(path: Path) -> list[str]:
    """Read every byte of the store at `path` and list what differs from its manifest."""
    try:
        dataset = open_store(path, "")
        files = dataset.manifest.files
    except UserError as error:
        return [str(error)]
    problems = []
    for name, entry in files.items():
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                problems.append(f"{path / name} was changed: its sha256 is not the manifest's")
    if dataset.encoded and not problems:
        for part in (dataset.train, dataset.test, dataset.unlabelled):
            problems += [] if part is None else part.images.problems()
    return problems
