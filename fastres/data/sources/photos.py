"""Photos to be classified, as they lie: image files, folders and tars of them, brought to one size as a store's are."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fastres.data.sources import cifar
from fastres.data.sources.images import File, contents, fault, in_batches, is_image, names_in_folder
from fastres.data.sources.resolve import existing
from fastres.data.store.encoded import MAX_FILE, decode, is_decodable
from fastres.data.untrusted import archives
from fastres.errors import UserError
from fastres.recipe.data import NAMED
from fastres.utils.format import MOST_FAULTS, listed, plural
from fastres.utils.prefetch import prefetch
from fastres.utils.progress import progress, say
from fastres.utils.terminal import printable
from fastres.utils.untrusted import open_regular


def holds_photos(source: str) -> bool:
    """Whether `source` is an image file, or a folder or tar that is no CIFAR: not an array of images in a file of its
    own, nor a named set. Reads the beginning of a file. Raises UserError where there is no such source."""
    if source in NAMED:
        return False
    path = existing(source)
    try:
        if path.is_dir():
            return cifar.kind_of_folder(path) is None
        if _holds_many(path):
            return cifar.kind_of_archive(path) is None
        with open_regular(path) as file:
            return is_image(path.name) or is_decodable(file.read(16))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def read_photos(
    sources: Sequence[str], size: int, count: int, *, quiet: bool = False
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and pixels, uint8 [N, size, size, 3], of the images that `sources` are or hold, `count` at a time.

    A name is the source as it was given, and behind a slash the path inside of it. The order is that of `sources`, of
    names in a folder, of a tar itself; no more than `count` images and some batches of files are in memory. What is
    left out, and progress, is reported on standard error unless `quiet`.

    Raises UserError for a source without images; where images cannot be used, after all are read, naming up to ten.
    """

    def decoded(batch: list[File]) -> list[tuple[str, np.ndarray | str]]:
        results: list[tuple[str, np.ndarray | str]] = []
        for file in batch:
            try:
                results.append((file.name, decode(contents(file), size)))
            except UserError as error:
                results.append((file.name, fault(file, error)))
        return results

    threads = os.cpu_count() or 1
    names: list[str] = []
    pixels: list[np.ndarray] = []
    faults: list[str] = []
    read = faulty = 0
    files = (file for source in sources for file in _files(source, quiet))
    few = not any(_holds_many(existing(source)) for source in sources)
    with progress("images", None, quiet=quiet or few) as advance:
        for batch in prefetch(decoded, in_batches(files), threads=threads, depth=2 * threads):
            read += len(batch)
            advance(len(batch))
            for name, result in batch:
                if isinstance(result, str):
                    faulty += 1
                    faults += [result] * (len(faults) < MOST_FAULTS)
                elif not faulty:
                    names.append(name)
                    pixels.append(result)
                    if len(pixels) == count:
                        yield names, np.stack(pixels)
                        names, pixels = [], []
    if faulty == 1:
        raise UserError(faults[0])
    if faulty:
        raise UserError(f"{faulty:,} of {read:,} images cannot be used:\n{listed(faults, faulty)}")
    if pixels:
        yield names, np.stack(pixels)


def _holds_many(path: Path) -> bool:
    """Whether a file or folder is a folder or an archive. Raises OSError."""
    return path.is_dir() or archives.is_archive(path)


def _files(source: str, quiet: bool) -> Iterator[File]:
    path, prefix = existing(source), source.rstrip("/")
    if not _holds_many(path):
        yield File(source, path, path.stat().st_size)
        return
    others: list[str] = []
    images = 0
    for file in _files_of_folder(path, prefix) if path.is_dir() else _files_of_tar(path, prefix):
        if is_image(file.name):
            images += 1
            yield file
        else:
            others.append(file.name)
    if not images:
        raise UserError(f"{source} holds no images: expected *.jpg, *.jpeg or *.png")
    if others:
        what = plural(len(others), "file is no image by its name and", "files are no images by their names and")
        say(f"{source}: {what} left out, such as {printable(min(others))}", quiet=quiet)


def _files_of_folder(path: Path, prefix: str) -> Iterator[File]:
    for name in sorted(names_in_folder(path)):
        yield File(f"{prefix}/{name}", path / name, 1 << 14)  # a guess at its size, as for a store


def _files_of_tar(path: Path, prefix: str) -> Iterator[File]:
    for member in archives.members(path):
        name = f"{prefix}/{member.name}"
        yield File(name, 0, member.size, member.read(MAX_FILE) if is_image(name) else None)
