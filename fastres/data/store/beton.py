"""The beton store: a prepared store once more, in FFCV's file format, for the FFCV loader.

It is the folder `<store>-beton/` beside the store, with one file `<part>.beton` for each part and `manifest.json`,
complete or absent at any instant, and belongs to that store's fingerprint. FFCV reads the files with its own loader:
fields `image` (RGB) and `label` (-1 for unlabelled images).

A store of pixels becomes raw samples. From a store of encoded files, a JPEG goes in byte for byte if it decodes to
the very pixels that the store gives, which takes the store's size, RGB or grey, and no trick that decoders disagree
on; and if it is shorter than they are. Every other image goes in as pixels: nothing is encoded anew, and each loader
delivers the same pixels. Since a damaged JPEG mostly decodes in silence, to wrong pixels, such a beton comes with a
checksum of each sample in `<part>_sums.npy`, and every read is checked.
"""

import contextlib
import hashlib
import os
import shlex
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastres._version import __version__
from fastres.data.compat.ffcv import changing, import_ffcv, replaced, turbojpeg
from fastres.data.store.decoded import PARTS, Dataset, Part, building
from fastres.data.store.encoded import decode
from fastres.data.store.manifest import BetonManifest, StoredFile, read_manifest, write_manifest
from fastres.errors import UserError
from fastres.utils.progress import progress

FORMAT = 1
_SMALLEST_PAGE = 1 << 21  # FFCV's
_JPEG, _PIXELS = 0, 1  # FFCV's `mode` of an image


@dataclass(frozen=True, eq=False)
class Beton:
    """One part of a beton store, checked up to its pixels."""

    path: Path
    command: str
    """Command that builds it again."""
    size: int
    """Bytes of the file."""
    side: int
    """Pixels of an image's side."""
    starts: NDArray[np.int64]
    """int64 [N]: where each sample lies in the file."""
    sizes: NDArray[np.int64]
    """int64 [N]: its bytes."""
    encoded: NDArray[np.bool_]
    """bool [N]: whether it is a JPEG file; else it is pixels."""
    sums: NDArray[np.uint64] | None
    """uint64 [N]: its `checksum`. None where all samples are pixels of a store of pixels."""

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Betons:
    """An opened beton store."""

    folder: Path
    parts: dict[str, Beton]
    """Of "train", "test" and "unlabelled", those that the data set has."""
    manifest: BetonManifest


def beton_folder(dataset: Dataset) -> Path:
    """Where the beton store of `dataset` is, prepared or not."""
    return dataset.path.with_name(f"{dataset.path.name}-beton")


def is_beton(folder: Path) -> bool:
    """Whether `folder` is a beton store whose files have the sizes that its manifest says; needs no FFCV."""
    try:
        files = read_manifest(folder, BetonManifest).files
        return all((folder / name).stat().st_size == entry.bytes for name, entry in files.items())
    except (OSError, ValueError):
        return False


def prepare(dataset: Dataset, *, quiet: bool = False) -> Betons:
    """The beton store of `dataset`, made if there is none, or if it is damaged or of other data.

    Raises UserError without FFCV and where the disk is full or not writable; nothing half-written is then left.
    """
    with contextlib.suppress(UserError):
        return open_beton(dataset)
    import_ffcv()
    path = beton_folder(dataset)
    with contextlib.suppress(_AlreadyThere), building(path, quiet=quiet, rebuild=True) as folder:
        assert folder is not None  # with `rebuild`, only a store of the other kind is left as it is
        with contextlib.suppress(UserError):
            open_beton(dataset)
            raise _AlreadyThere
        parts = {name: part for name in PARTS if (part := getattr(dataset, name)) is not None}
        with progress(f"writing {path.name}", sum(len(part.images) for part in parts.values()), quiet=quiet) as advance:
            for name, part in parts.items():
                _write(folder, name, part, dataset.image_size, advance)
        _write_manifest(folder, dataset)
    return open_beton(dataset)


class _AlreadyThere(Exception):
    """Another process made it while this one waited."""


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(folder: Path, name: str, part: Part, side: int, advance: Callable[[int], None]) -> None:
    """Write `<name>.beton` by FFCV's writer, in this process.

    FFCV's `from_indexed_dataset` forks workers and waits for their count forever when one of them dies or the disk is
    full; what it shares with them lies in shared memory, whose keeper is one more process.
    """
    ffcv = import_ffcv()
    bytes_of_pixels = side * side * 3
    page = max(_SMALLEST_PAGE, 1 << (8 * bytes_of_pixels - 1).bit_length())  # at most an eighth of one stays empty
    described = {"image": ffcv.fields.RGBImageField(), "label": ffcv.fields.IntField()}
    path = folder / f"{name}.beton"
    writer = ffcv.writer.DatasetWriter(str(path), described, page_size=page, num_workers=1)
    writer.num_samples = len(part.images)
    memory = SimpleNamespace(SharedMemory=lambda create, size: SimpleNamespace(buf=bytearray(size)))
    with changing, replaced(ffcv.writer, shared_memory=memory):
        writer.prepare()
    with changing, replaced(ffcv.memory_allocator, Value=_Counter):
        allocator = ffcv.memory_allocator.MemoryAllocator(str(path), writer.data_region_start, page)
    fields = described | {"image": _Images(side)}
    metadata = np.frombuffer(writer.metadata_sm.buf, dtype=writer.metadata_type)
    sums: list[np.uint64] = []
    with _open_pages(allocator), closing(_samples(part, side)) as samples:
        for row, data in enumerate(samples):
            label = -1 if part.labels is None else int(part.labels[row])
            ffcv.writer.handle_sample((data, label), row, metadata.dtype.names, metadata, allocator, fields)
            if not isinstance(part.images, np.ndarray):
                sums.append(_checksum(data))
            advance(1)
    writer.finalize([allocator.allocations])
    if not isinstance(part.images, np.ndarray):
        with (folder / f"{name}_sums.npy").open("wb") as file:
            np.lib.format.write_array(file, np.array(sums, np.uint64), allow_pickle=False)


class _Images:
    """Writes uint8 [side, side, 3] as FFCV's field does, and uint8 [n] as the JPEG file that it is."""

    def __init__(self, side: int) -> None:
        self._side = side

    def encode(self, destination: Any, data: NDArray[np.uint8], malloc: Callable[[int], tuple[int, Any]]) -> None:
        destination["mode"] = _JPEG if data.ndim == 1 else _PIXELS
        destination["height"] = destination["width"] = self._side
        destination["data_ptr"], room = malloc(data.nbytes)
        room[:] = data.reshape(-1)


def _samples(part: Part, side: int) -> Generator[NDArray[np.uint8], None, None]:
    """The samples of a beton, one an image: uint8 [n], the JPEG file, or uint8 [side, side, 3], its pixels."""
    if isinstance(part.images, np.ndarray):
        yield from (np.ascontiguousarray(pixels) for pixels in part.images)
        return
    from fastres.utils.prefetch import prefetch

    threads, several = len(os.sched_getaffinity(0)), 64  # a future for each image would cost as much as the image
    groups = (range(row, min(row + several, len(part.images))) for row in range(0, len(part.images), several))
    with closing(prefetch(partial(_shortest, part.images, side), groups, threads=threads, depth=2 * threads)) as lists:
        for group in lists:
            yield from group


def _shortest(images: Any, side: int, rows: range) -> list[NDArray[np.uint8]]:
    samples = []
    for row in rows:
        file = images.read(row)
        try:
            pixels = np.ascontiguousarray(decode(file, side))
        except UserError:
            pixels = images[row]  # raises it with the image's name
        data = np.frombuffer(file, np.uint8)
        shorter = len(file) < pixels.nbytes and file.startswith(b"\xff\xd8")
        decoded = _decode_jpeg(data, side) if shorter else None
        samples.append(pixels if decoded is None or not np.array_equal(decoded, pixels) else data)
    return samples


def _decode_jpeg(data: NDArray[np.uint8], side: int) -> NDArray[np.uint8] | None:
    """uint8 [side, side, 3] as the loader will decode it, or None where its decoder refuses."""
    from fastres.data.store.ffcv_decode import decode_rows

    one = np.zeros(1, np.int64)
    out = np.zeros((1, side * side * 3), np.uint8)
    sizes, encoded = np.array([len(data)]), np.ones(1, np.bool_)
    failed, _ = decode_rows(data, one, sizes, encoded, np.array([_checksum(data)]), one, side, out)
    return None if failed >= 0 else out.reshape(side, side, 3)


def _checksum(data: NDArray[np.uint8]) -> np.uint64:
    from fastres.data.store.ffcv_decode import bind, checksum

    bind(turbojpeg())
    flat = data.reshape(-1)
    flat.flags.writeable = False  # as the mapped file is: one compiled function for both
    return np.uint64(checksum(flat))


class _Counter:
    """For one process, what multiprocessing.Value is for several."""

    def __init__(self, kind: Any, value: int) -> None:
        self.value = value

    def get_lock(self) -> contextlib.nullcontext:
        return contextlib.nullcontext()


@contextmanager
def _open_pages(allocator: Any) -> Iterator[None]:
    """FFCV's own context, which leaves the file open when its last page finds no room."""
    allocator.__enter__()
    try:
        yield
        allocator.flush_page()
    finally:
        allocator.fp.close()


def _write_manifest(folder: Path, dataset: Dataset) -> None:
    ffcv = import_ffcv()
    files: dict[str, StoredFile] = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = StoredFile(bytes=path.stat().st_size, sha256=_sha256(path))
        if path.suffix == ".beton":
            files[path.name] = files[path.name].updated(index_sha256=_index(ffcv, path).sha256)
    manifest = BetonManifest(
        store="beton",
        format=FORMAT,
        fastres=__version__,
        name=dataset.manifest.name,
        source=dataset.manifest.source,
        image_size=dataset.image_size,
        fingerprint=dataset.manifest.fingerprint,
        files=files,
    )
    write_manifest(folder, manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- opening ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    """All of a beton but its images."""

    header: np.void
    fields: NDArray[np.void]
    samples: NDArray[np.void]
    """[N]: `f0` (mode, width, height, data_ptr) and `f1`, the label."""
    regions: NDArray[np.void]
    """[N]: sample_id, ptr and size of what FFCV calls allocations."""
    sha256: str


def _index(ffcv: Any, path: Path) -> _Index:
    """Read a beton's index. Sizes are believed as far as the file goes."""
    kinds = ffcv.types
    samples = kinds.get_metadata_type([ffcv.fields.RGBImageField(), ffcv.fields.IntField()])
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(kinds.HeaderType.itemsize)
        header = np.frombuffer(head, kinds.HeaderType)[0]
        wanted = int(header["num_fields"]) * kinds.FieldDescType.itemsize
        wanted += int(header["num_samples"]) * samples.itemsize
        table = int(header["alloc_table_ptr"])
        rest = int(header["num_samples"]) * kinds.ALLOC_TABLE_TYPE.itemsize
        if len(head) + wanted > table or table + rest != size:
            raise ValueError("its header is wrong")
        body = file.read(wanted)
        file.seek(table)
        tail = file.read()
    edge = int(header["num_fields"]) * kinds.FieldDescType.itemsize
    return _Index(
        header,
        np.frombuffer(body[:edge], kinds.FieldDescType),
        np.frombuffer(body[edge:], samples),
        np.frombuffer(tail, kinds.ALLOC_TABLE_TYPE),
        hashlib.sha256(head + body + tail).hexdigest(),
    )


def _command(dataset: Dataset) -> str:
    store = " --store encoded" if dataset.encoded else ""
    return f"`fastres data prepare {shlex.quote(dataset.source)}{store} --format beton`"


def open_beton(dataset: Dataset) -> Betons:
    """Open the beton store of `dataset` without reading its images.

    Checked are the size of each file, the whole index, the checksums, and that every sample lies within the file.
    Raises UserError, which names the command that makes it, where there is none, where it is damaged and where it
    belongs to other data; and without FFCV.
    """
    ffcv = import_ffcv()
    path = beton_folder(dataset)
    command = _command(dataset)
    if not path.exists():
        raise UserError(f"{dataset.source} has no beton: run {command}")
    try:
        manifest = read_manifest(path, BetonManifest)
        if manifest.format != FORMAT:
            raise ValueError(f"its format is {manifest.store} {manifest.format}")
        if manifest.fingerprint != dataset.manifest.fingerprint:
            raise ValueError("it was made of other data")
        parts = {
            name: _open_part(ffcv, path / f"{name}.beton", manifest.files, part, dataset)
            for name in PARTS
            if (part := getattr(dataset, name)) is not None
        }
    except Exception as error:  # a file of anything makes its readers raise anything
        detail = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise UserError(f"the beton {path} is of no use ({detail.splitlines()[0][:160]}): run {command}") from error
    return Betons(path, parts, manifest)


def _open_part(ffcv: Any, path: Path, files: dict[str, StoredFile], part: Part, dataset: Dataset) -> Beton:
    size, side, count = _size(path, files), dataset.image_size, len(part.images)
    index = _index(ffcv, path)
    if index.sha256 != files[path.name].index_sha256:
        raise ValueError(f"the index of {path.name} was changed")
    images, labels = index.samples["f0"], index.samples["f1"]
    starts, sizes = images["data_ptr"].astype(np.int64), index.regions["size"].astype(np.int64)
    encoded = images["mode"] == _JPEG
    sound = (
        index.header["version"] == ffcv.types.CURRENT_VERSION
        and index.fields["type_id"].tolist() == [2, 1]
        and len(images) == len(index.regions) == count
        and np.array_equal(index.regions["sample_id"], np.arange(count))
        and np.array_equal(index.regions["ptr"], images["data_ptr"])
        and np.all((images["width"] == side) & (images["height"] == side))
        and np.all(encoded | (sizes == side * side * 3))
        and np.all((starts >= 0) & (sizes >= 0) & (starts <= size - sizes))
        and np.array_equal(labels, np.full(count, -1) if part.labels is None else part.labels)
    )
    if not sound:
        raise ValueError(f"{path.name} does not hold the store's samples")
    sums = None
    if not isinstance(part.images, np.ndarray):
        file = path.with_name(f"{path.stem}_sums.npy")
        _size(file, files)
        if _sha256(file) != files[file.name].sha256:
            raise ValueError(f"{file.name} was changed")
        sums = np.load(file, allow_pickle=False)
        if sums.dtype != np.uint64 or sums.shape != (count,):
            raise ValueError(f"{file.name} does not belong to it")
    return Beton(path, _command(dataset), size, side, starts, sizes, encoded, sums)


def _size(path: Path, files: dict[str, StoredFile]) -> int:
    size = path.stat().st_size
    if size != files[path.name].bytes:
        raise ValueError(f"{path.name} has {size} bytes instead of {files[path.name].bytes}")
    return size


def verify(dataset: Dataset) -> list[str]:
    """Read every byte of the beton store of `dataset` and list what differs from its manifest."""
    try:
        store = open_beton(dataset)
    except UserError as error:
        return [str(error)]
    changed = [name for name, entry in store.manifest.files.items() if _sha256(store.folder / name) != entry.sha256]
    return [f"{store.folder / name} was changed: its sha256 is not the manifest's" for name in changed]
