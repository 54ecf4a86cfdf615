"""Folders and tars of image files: `train/<class>/*.jpg|jpeg|png` and `test/...`, or a flat heap of unlabelled images.

Two passes, so that memory stays bounded whatever the archive's size: the first reads names only and gives each image
its row in the store, the second decodes, on all cores, in the order in which the bytes arrive. A decoded store keeps
the pixels; an encoded one keeps where each file lies and what it must contain.
"""

import os
import threading
import unicodedata
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from fastres.data.store.decoded import PARTS, PixelSums, StoreFacts, Writer
from fastres.data.store.encoded import MAX_FILE, decode
from fastres.data.untrusted import archives
from fastres.errors import UserError
from fastres.utils.format import MOST_FAULTS, listed, plural
from fastres.utils.progress import progress, say
from fastres.utils.terminal import printable
from fastres.utils.untrusted import encodable, read_regular

_ENDINGS = (".jpg", ".jpeg", ".png")
_PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val"}
_LAYOUT = "expected train/<class>/*.jpg|jpeg|png and test/<class>/..., or unlabelled images in one flat folder"

_BATCH_IMAGES, _BATCH_BYTES = 64, 8 << 20  # one task of the pool: long enough to hide its cost, short enough in memory


@dataclass
class Layout:
    """Part and row of each file, with counts, labels and classes."""

    rows: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Name of a file → (part, row)."""
    counts: dict[str, int] = field(default_factory=dict)
    """Part → number of images."""
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    """Part → int64 labels; no entry for unlabelled images."""
    classes: tuple[str, ...] = ()
    ids: np.ndarray | None = None
    note: str = ""
    """Line about what is left out, how the validation folder was used, and classes of two folders."""


@dataclass(frozen=True)
class File:
    """An image file on its way to the store."""

    name: str
    where: Path | int
    """Its path in a folder, or the position of its contents in the unpacked tar."""
    size: int
    """Bytes; in a folder a guess until it is read."""
    data: bytes | None = None


Keep = Callable[[str, int, File, np.ndarray], None]
"""Takes (part, row, file with its contents, uint8 [size, size, 3]), from any thread."""


def build_from_images(path: Path, size: int, writer: Writer, *, quiet: bool) -> tuple[str, ...]:
    """Decode the folder or tar at `path` into `writer` as images of `size` × `size`; returns the classes.

    Without a folder `test`, a folder `val` or `valid` becomes the part test; beside one it is left out. Either is said
    on standard error unless `quiet`.

    Raises UserError for a layout without images or classes, for different classes in train and test, and for a file
    that is no image, is damaged, or is too large, naming it.
    """
    layout = _lay_out(path, quiet=quiet)
    files = {part: writer.images(part, count, size) for part, count in layout.counts.items()}
    try:
        _write_labels(layout, writer)
        _decode_all(path, layout, size, lambda part, row, _, pixels: files[part].write(row, pixels), quiet=quiet)
    finally:
        for file in files.values():
            file.__exit__()
    return layout.classes


def build_encoded(path: Path, size: int, writer: Writer, *, quiet: bool) -> tuple[str, ...]:
    """Note in `writer` where each image file of the folder or tar at `path` lies, and its checksum; every image is
    decoded once, which gives mean and standard deviation and shows that it can be. Returns the classes.

    Raises UserError as `build_from_images` does, and for a tar that is packed: its files cannot be read singly.
    """
    if path.is_file() and archives.is_packed(path):
        raise UserError(
            f"{path} is compressed, so its images cannot be read where they lie:\n"
            "unpack it and name the folder, or use the decoded store"
        )
    layout = _lay_out(path, quiet=quiet)
    _write_labels(layout, writer)
    columns: dict[str, dict[str, np.ndarray]] = {
        part: {"offsets": np.zeros(n, np.int64), "sizes": np.zeros(n, np.int64), "checksums": np.zeros(n, np.uint32)}
        for part, n in layout.counts.items()
    }
    sums, measured, lock = PixelSums(), next(part for part in PARTS if part in layout.counts), threading.Lock()

    def keep(part: str, row: int, file: File, pixels: np.ndarray) -> None:
        assert file.data is not None
        here = columns[part]
        here["offsets"][row] = 0 if isinstance(file.where, Path) else file.where
        here["sizes"][row], here["checksums"][row] = len(file.data), zlib.crc32(file.data)
        if part == measured:
            one = PixelSums.of(pixels)
            with lock:
                sums.add(one)

    _decode_all(path, layout, size, keep, quiet=quiet)
    for part, arrays in columns.items():
        ordered = sorted((row, os.fsencode(name)) for name, (where, row) in layout.rows.items() if where == part)
        arrays["names"] = np.frombuffer(b"".join(name for _, name in ordered), np.uint8)
        arrays["name_ends"] = np.cumsum([len(name) for _, name in ordered], dtype=np.int64)
        for what, values in arrays.items():
            writer.array(f"{part}_{what}", values)
    mean, std = sums.statistics()
    container: Literal["folder", "tar"] = "folder" if path.is_dir() else "tar"
    # As a URL, because JSON can hold no path that is not UTF-8.
    writer.facts = StoreFacts("encoded", container, path.as_uri(), mean, std)
    return layout.classes


def _lay_out(path: Path, *, quiet: bool) -> Layout:
    with progress(f"listing {path.name}", None, quiet=quiet) as advance:
        names = []
        for name in names_in_folder(path) if path.is_dir() else (member.name for member in archives.members(path)):
            advance(1)
            if is_image(name):
                names.append(name)
    layout = plan(names, str(path))
    if layout.note and not quiet:
        say(f"{path}: {layout.note}")
    return layout


def _write_labels(layout: Layout, writer: Writer) -> None:
    for part, labels in layout.labels.items():
        writer.array(f"{part}_labels", labels)
    if layout.ids is not None:
        writer.array("unlabelled_ids", layout.ids)


def plan(names: list[str], where: str) -> Layout:
    """Give each of the image files `names` its part and row; the same names in any order give the same layout.

    Classes are sorted by name, which for CIFAR-10 is their official order. Rows are sorted by (position of the file
    within its class, class), so that any first part of a store holds every class equally often.
    """
    if not names:
        raise UserError(f"{where} holds no images: {_LAYOUT}")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{where} holds {repeated[0]} twice: pack it again")
    paths = {name: PurePosixPath(name).parts for name in names}
    tops = {parts[0] for parts in paths.values()}
    if len(tops) == 1 and not tops & _PARTS.keys() and all(len(parts) > 1 for parts in paths.values()):
        paths = {name: parts[1:] for name, parts in paths.items()}
    if all(len(parts) == 1 for parts in paths.values()):
        return _plan_unlabelled(names)
    groups: dict[str, dict[str, list[str]]] = {}
    forms: dict[tuple[str, str], set[str]] = {}
    loose = []
    for name, parts in paths.items():
        if parts[0] not in _PARTS:
            continue
        if len(parts) < 3:
            loose.append(name)
            continue
        part, label = _PARTS[parts[0]], unicodedata.normalize("NFC", parts[1])  # macOS writes é as two characters
        groups.setdefault(part, {}).setdefault(label, []).append(name)
        forms.setdefault((part, label), set()).add(parts[1])
    if loose:
        lie = f"{listed(map(printable, loose[:MOST_FAULTS]), len(loose))} {'lies' if len(loose) == 1 else 'lie'}"
        raise UserError(f"{where}: {lie} in no class folder: {_LAYOUT}")
    merged = sorted({label for (_, label), names_of_it in forms.items() if len(names_of_it) > 1})
    said = [f"folders whose names are the same letters in two Unicode forms are one class: {', '.join(merged)}"]
    said *= bool(merged)
    if validation := groups.pop("val", None):
        used = "/ and ".join(sorted({parts[0] for parts in paths.values()} & {"val", "valid"}))
        said.append(f"{used}/ {'is left out: test/ is' if 'test' in groups else 'becomes'} the test set")
        groups.setdefault("test", validation)
    if not groups:
        raise UserError(f"{where} holds no train or test folder with images: {_LAYOUT}")
    if beside := [name for name, parts in paths.items() if parts[0] not in _PARTS]:
        count = plural(len(beside), "image beside train/ and test/ is", "images beside train/ and test/ are")
        said.append(f"{count} left out, such as {printable(beside[0])}")
    layout = _plan_labelled(groups, where)
    layout.note = "; ".join(said)
    return layout


def _plan_unlabelled(names: list[str]) -> Layout:
    stems = [PurePosixPath(name).stem for name in names]
    if len(set(stems)) < len(stems):  # a.jpg beside a.png
        stems = [PurePosixPath(name).name for name in names]
    order = sorted(range(len(names)), key=lambda index: stems[index])
    rows = {names[index]: ("unlabelled", row) for row, index in enumerate(order)}
    return Layout(rows, {"unlabelled": len(names)}, ids=np.array([encodable(stems[index]) for index in order]))


def _plan_labelled(groups: dict[str, dict[str, list[str]]], where: str) -> Layout:
    classes = sorted(next(iter(groups.values())))
    if "train" in groups and "test" in groups and groups["train"].keys() != groups["test"].keys():
        different = sorted(groups["train"].keys() ^ groups["test"].keys())
        faults = [
            f"{'test' if name in groups['train'] else 'train'} has no class folder '{printable(name)}' with images"
            for name in different[:MOST_FAULTS]
        ]
        raise UserError(f"{where}: {listed(faults, len(different))}: train and test need the same")
    layout = Layout(classes=tuple(classes))
    for part, members in groups.items():
        ordered = sorted(
            (position, label, name)
            for label, group in enumerate(classes)
            for position, name in enumerate(sorted(members[group]))
        )
        layout.rows.update({name: (part, row) for row, (_, _, name) in enumerate(ordered)})
        layout.labels[part] = np.array([label for _, label, _ in ordered], np.int64)
        layout.counts[part] = len(ordered)
    return layout


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return name.lower().endswith(_ENDINGS) and not PurePosixPath(name).name.startswith(".")


def names_in_part(path: Path, part: str) -> list[str]:
    """Names of the images of a part of the folder or tar at `path`, in the order of its store. Reads names only."""
    rows = _lay_out(path, quiet=True).rows
    return [name for _, name in sorted((row, name) for name, (where, row) in rows.items() if where == part)]


def names_in_folder(path: Path) -> Iterator[str]:
    """Paths of all files below `path`, relative to it. Raises UserError where a folder cannot be read."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; check its permissions") from error

    for folder, _, files in os.walk(path, onerror=fail):
        for name in files:
            yield (Path(folder) / name).relative_to(path).as_posix()


def _files(path: Path, layout: Layout) -> Iterator[File]:
    if path.is_dir():  # a file is read by the thread that decodes it; 16 KB is a guess: bounds batches
        yield from (File(name, path / name, 1 << 14) for name in layout.rows)
        return
    missing = len(layout.rows)
    for member in archives.members(path):
        if member.name in layout.rows:
            missing -= 1
            yield File(member.name, member.offset, member.size, member.read(MAX_FILE))
    if missing:
        raise UserError(f"{path} changed while it was read: start again")


def contents(file: File) -> bytes:
    """The file's bytes, read from the disk unless it has them. Raises UserError where it cannot be read."""
    if file.data is not None:
        return file.data
    assert isinstance(file.where, Path)
    return read_regular(file.where, MAX_FILE, "shrink or remove it")


def fault(file: File, error: UserError) -> str:
    """A line for what is wrong with `file`, which names it."""
    named = isinstance(file.where, Path) and str(file.where) in str(error)
    return printable(str(error) if named else f"{file.name} {error}")


def _decode_all(path: Path, layout: Layout, size: int, keep: Keep, *, quiet: bool) -> None:
    """Threads, not processes: Pillow decodes and resizes outside the GIL, and rows need no copying between them.

    Raises UserError that names the files which cannot be used, up to ten of them.
    """
    faults: list[str] = []
    count = 0

    def run(batch: list[File]) -> tuple[int, list[str]]:
        faulty = []
        for file in batch:
            try:
                data = contents(file)
                pixels = decode(data, size)
            except UserError as error:
                faulty.append(fault(file, error))
            else:
                keep(*layout.rows[file.name], replace(file, data=data), pixels)
        return len(batch), faulty

    def collect(batch: Future[tuple[int, list[str]]]) -> None:
        nonlocal count
        done, faulty = batch.result()
        count += len(faulty)
        faults.extend(faulty[: MOST_FAULTS - len(faults)])
        advance(done)

    workers = os.cpu_count() or 1
    pending: deque[Future[tuple[int, list[str]]]] = deque()
    with (
        progress(f"decoding {path.name}", len(layout.rows), quiet=quiet) as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            for batch in in_batches(_files(path, layout)):
                pending.append(pool.submit(run, batch))
                if len(pending) > 2 * workers:
                    collect(pending.popleft())
            while pending:
                collect(pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
    if count == 1:
        raise UserError(faults[0] if str(path) in faults[0] else f"{path}: {faults[0]}")
    if count:
        raise UserError(f"{path}: {count:,} of {len(layout.rows):,} images cannot be used:\n{listed(faults, count)}")


def in_batches(files: Iterable[File]) -> Iterator[list[File]]:
    """Lists of files that are worth a task of a thread, and not too large for memory."""
    batch: list[File] = []
    weight = 0
    for file in files:
        batch.append(file)
        weight += file.size
        if len(batch) == _BATCH_IMAGES or weight >= _BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch
