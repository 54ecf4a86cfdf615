"""Folders and tars of image files: `train/<class>/*.jpg|jpeg|png` and `test/...`, or a flat heap of unlabelled images.

Two passes, so that memory stays bounded whatever the archive's size: the first reads names only and gives each image
its row in the store, the second decodes, on all cores, in the order in which the bytes arrive.
"""

import io
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from fastres.data import archives
from fastres.data.outside import encodable, read_regular
from fastres.data.progress import progress, say
from fastres.data.store import ImageRows, Writer
from fastres.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE = 64 << 20  # bytes of one image file
MAX_PIXELS = 64_000_000  # width times height of one image: 256 MB decoded
_ENDINGS = (".jpg", ".jpeg", ".png")
_PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val"}
_LAYOUT = "expected train/<class>/*.jpg|jpeg|png and test/<class>/..., or unlabelled images in one flat folder"

_BATCH_IMAGES, _BATCH_BYTES = 64, 8 << 20  # one task of the pool: long enough to hide its cost, short enough in memory


@dataclass
class Layout:
    """Where each file goes."""

    rows: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Name of a file → (part, row)."""
    counts: dict[str, int] = field(default_factory=dict)
    """Part → number of images."""
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    """Part → int64 labels; no entry for unlabelled images."""
    classes: tuple[str, ...] = ()
    ids: np.ndarray | None = None
    note: str = ""
    """What became of the validation folder, if there is one."""


def build_from_images(path: Path, size: int, writer: Writer, *, quiet: bool) -> tuple[str, ...]:
    """Decode the folder or tar at `path` into `writer` as images of `size` × `size`; returns the classes.

    Without a folder `test`, a folder `val` or `valid` becomes the part test; beside one it is left out. Either is said
    on standard error unless `quiet`.

    Raises UserError for a layout without images or classes, for different classes in train and test, and for a file
    that is no image, is damaged, or is too large, naming it.
    """
    folder = path.is_dir()
    with progress(f"listing {path.name}", None, quiet=quiet) as advance:
        names = []
        for name in _names_in_folder(path) if folder else (member.name for member in archives.members(path)):
            advance(1)
            if name.lower().endswith(_ENDINGS) and not PurePosixPath(name).name.startswith("."):
                names.append(name)
    layout = plan(names, str(path))
    if layout.note and not quiet:
        say(f"{path}: {layout.note}")
    files = {part: writer.images(part, count, size) for part, count in layout.counts.items()}
    try:
        for part, labels in layout.labels.items():
            writer.array(f"{part}_labels", labels)
        if layout.ids is not None:
            writer.array("unlabelled_ids", layout.ids)
        with progress(f"decoding {path.name}", len(layout.rows), quiet=quiet) as advance:
            contents = _contents_of_folder(path, names) if folder else _contents_of_archive(path, layout)
            _decode_all(contents, layout, files, size, str(path), advance)
    finally:
        for file in files.values():
            file.__exit__()
    return layout.classes


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
    for name, parts in paths.items():
        if parts[0] not in _PARTS:
            continue
        if len(parts) < 3:
            raise UserError(f"{where}: {name} lies in no class folder: {_LAYOUT}")
        groups.setdefault(_PARTS[parts[0]], {}).setdefault(parts[1], []).append(name)
    note = ""
    if validation := groups.pop("val", None):
        used = "/ and ".join(sorted({parts[0] for parts in paths.values()} & {"val", "valid"}))
        note = f"{used}/ is left out: test/ is the test set" if "test" in groups else f"{used}/ becomes the test set"
        groups.setdefault("test", validation)
    if not groups:
        raise UserError(f"{where} holds no train or test folder with images: {_LAYOUT}")
    layout = _plan_labelled(groups, where)
    layout.note = note
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
        different = sorted(groups["train"].keys() ^ groups["test"].keys())[0]
        lacking = "test" if different in groups["train"] else "train"
        raise UserError(
            f"{where}: {lacking} has no class folder '{different}' with images: train and test need the same"
        )
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


def _names_in_folder(path: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; check its permissions") from error

    for folder, _, files in os.walk(path, onerror=fail):
        for name in files:
            yield (Path(folder) / name).relative_to(path).as_posix()


def _contents_of_folder(path: Path, names: list[str]) -> Iterator[tuple[str, Path | bytes, int]]:
    for name in names:
        yield name, path / name, 1 << 14  # read by the thread that decodes it; 16 KB is a guess that bounds batches


def _contents_of_archive(path: Path, layout: Layout) -> Iterator[tuple[str, Path | bytes, int]]:
    missing = len(layout.rows)
    for member in archives.members(path):
        if member.name in layout.rows:
            missing -= 1
            yield member.name, member.read(MAX_FILE), member.size
    if missing:
        raise UserError(f"{path} changed while it was read: start again")


def _decode_all(
    contents: Iterable[tuple[str, Path | bytes, int]],
    layout: Layout,
    files: dict[str, ImageRows],
    size: int,
    where: str,
    advance: Callable[[int], None],
) -> None:
    """Threads, not processes: Pillow decodes and resizes outside the GIL, and rows need no copying between them."""

    def run(batch: list[tuple[str, Path | bytes]]) -> int:
        for name, content in batch:
            if name in layout.rows:
                part, row = layout.rows[name]
                files[part].write(row, _decode_named(content, size, name, where))
        return len(batch)

    workers = os.cpu_count() or 1
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for batch in _batches(contents):
                pending.append(pool.submit(run, batch))
                if len(pending) > 2 * workers:
                    advance(pending.popleft().result())
            while pending:
                advance(pending.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(contents: Iterable[tuple[str, Path | bytes, int]]) -> Iterator[list[tuple[str, Path | bytes]]]:
    batch: list[tuple[str, Path | bytes]] = []
    weight = 0
    for name, content, size in contents:
        batch.append((name, content))
        weight += size
        if len(batch) == _BATCH_IMAGES or weight >= _BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


def _decode_named(content: Path | bytes, size: int, name: str, where: str) -> np.ndarray:
    if isinstance(content, Path):
        content = read_regular(content, MAX_FILE, "shrink or remove it")
    try:
        return decode(content, size)
    except UserError as error:
        raise UserError(f"{where}: {name} {error}") from error


def decode(data: bytes, size: int) -> np.ndarray:
    """Decode a JPEG or PNG file to uint8 [size, size, 3] RGB.

    The largest centred square is resized with an antialiased bicubic filter; an image of that size already is left
    as it is. Grey and palette images become RGB, transparency lies on black, EXIF rotation is ignored. Raises
    UserError for anything that is no such image, is damaged, or has more than 64 million pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"has {image.width}×{image.height} pixels: shrink it to {MAX_PIXELS:,} or fewer")
            image.load()
            picture = _to_rgb(image)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError("is no JPEG or PNG image: remove or replace it") from error
    except Exception as error:  # a damaged file makes decoders fail in many ways: OSError, SyntaxError, struct.error
        raise UserError(f"is a damaged image ({str(error)[:80] or type(error).__name__}): replace it") from error
    width, height = picture.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(picture)


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour).convert("RGB")
    return image.convert("RGB")
