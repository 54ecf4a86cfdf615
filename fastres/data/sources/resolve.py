"""The source that a user names: its path, its identity, and how to build its store."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from fastres.data.sources import cifar
from fastres.data.sources.images import build_encoded, build_from_images
from fastres.data.sources.named import SETS
from fastres.data.store.decoded import FORMAT, Writer
from fastres.data.untrusted import archives
from fastres.errors import UserError
from fastres.recipe.data import NAMED
from fastres.utils.files import as_on_disk
from fastres.utils.paths import expand_home

Store = Literal["decoded", "encoded"]
DEFAULT_SIZE = 32


@dataclass(frozen=True)
class Source:
    """A source whose contents have not been read yet."""

    text: str
    """As the user named it."""
    name: str
    image_size: int
    store: Path
    """Folder of its store, whether prepared or not."""
    build: Callable[[Writer, bool], tuple[str, ...]]
    """Write the arrays with the writer, quietly or not, and return the classes."""


def data_root(root: str | Path | None) -> Path:
    """Folder of downloads and stores: `root`, else `$FASTRES_DATA`, else `~/.cache/fastres`. Raises UserError where it
    lies in a home folder that there is not."""
    folder = root or os.environ.get("FASTRES_DATA")
    try:
        return expand_home(folder or Path("~", ".cache", "fastres")).resolve()
    except UserError as error:
        if folder:
            raise UserError(str(error) if root else f"FASTRES_DATA: {error}") from error
        raise UserError(
            "there is no home folder for data, as HOME is not set and this user has no name:\n"
            "set FASTRES_DATA, or data.root in the recipe, to a folder"
        ) from error


def resolve(
    text: str, *, store: Store = "decoded", image_size: int | None = None, root: str | Path | None = None
) -> Source:
    """Find the source `text`: a name of `NAMED`, else a path. Costs a few stats, and reads no image.

    Raises UserError for a path that does not exist, and for an `image_size` or a kind of store that the source cannot
    have. An encoded store lies beside the decoded one, under its name and `-encoded`.
    """
    if store not in ("decoded", "encoded"):
        raise UserError(f"there is no store '{store}': choose 'decoded' or 'encoded'")
    base = data_root(root)
    if image_size is not None and not 4 <= image_size <= 1024:
        raise UserError(f"data.image_size is {image_size}: choose 4 to 1024 pixels")
    size = image_size or DEFAULT_SIZE
    if text in NAMED:
        if store == "encoded":
            raise UserError(f"{text} has no image files to leave where they are: use the decoded store")
        if size != DEFAULT_SIZE:
            raise UserError(f"{text} has images of 32 pixels, not {size}: leave data.image_size out")
        identity, name = f"{text} {SETS[text].version}", text
        build = partial(SETS[text].build, base / "downloads")
    else:
        path = existing(text)
        identity, name = _identity(path), path.name
        build = partial(_read if store == "decoded" else _read_encoded, path, size)
    key = hashlib.sha256(json.dumps([FORMAT, identity, size]).encode()).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", re.sub(r"(\.tar)?\.(gz|xz|tar|tgz|txz|pkl|pickle)$", "", name))
    folder = f"{stem.strip('-')[:40] or 'data'}-{size}-{key}{'-encoded' if store == 'encoded' else ''}"
    return Source(text, name, size, base / "stores" / folder, build)


def is_cifar10(source: str) -> bool:
    """Whether the images of `source` are CIFAR-10's own pixels, and no JPEG files of them. Reads no image."""
    path = expand_home(source)
    if source in NAMED or not path.exists():
        return source == "cifar10"
    if path.is_dir():
        kind = cifar.kind_of_folder(path)
    else:
        kind = cifar.kind_of_archive(path) if archives.is_archive(path) else None
    return kind == cifar.KINDS["cifar10"]


def existing(text: str) -> Path:
    try:
        return as_on_disk(expand_home(text)).resolve(strict=True)
    except (OSError, UserError, RuntimeError, ValueError) as error:
        near = difflib.get_close_matches(re.sub(r"[\s_-]", "", text.lower()), NAMED, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"give a path that exists, or one of {', '.join(NAMED)}"
        raise UserError(f"there is no file or folder {text}: {hint}") from error


def _identity(path: Path) -> str:
    """Text that changes when the file or folder does.

    A folder is told by the times of itself and of the folders two levels below it, and by the files directly in it if
    they are few. That notices what comes, goes or is renamed, in milliseconds for any number of images, but not an
    image that is overwritten in place: delete the store then.
    """
    try:
        status = path.stat()
        facts: list[tuple[str, int, int]] = [(str(path), 0 if path.is_dir() else status.st_size, status.st_mtime_ns)]
        if path.is_dir():
            with os.scandir(path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
            for entry in listed:
                if entry.is_dir():
                    facts.append((entry.name, 0, entry.stat().st_mtime_ns))
                    with os.scandir(entry) as below:
                        facts += sorted(
                            (f"{entry.name}/{inner.name}", 0, inner.stat().st_mtime_ns)
                            for inner in below
                            if inner.is_dir()
                        )
                elif len(listed) <= 64:
                    facts.append((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    return json.dumps(facts)


def _is_archive(path: Path) -> bool:
    try:
        return path.is_file() and archives.is_archive(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def _read_encoded(path: Path, size: int, writer: Writer, quiet: bool) -> tuple[str, ...]:
    if path.is_dir() or _is_archive(path):
        return build_encoded(path, size, writer, quiet=quiet)
    raise UserError(f"{path} is neither a folder nor a tar of images: use the decoded store")


def _read(path: Path, size: int, writer: Writer, quiet: bool) -> tuple[str, ...]:
    """Tell by its contents what `path` is, and read it."""
    packed = _is_archive(path)
    kind = None
    if packed or path.is_dir():
        cifar.check_md5(path, cifar.kind_of_folder(path) if path.is_dir() else None)
        kind = cifar.kind_of_folder(path) if path.is_dir() else cifar.kind_of_archive(path)
    if kind is not None:
        if size != cifar.SIDE:
            raise UserError(f"{path} is {kind.name}, whose images have 32 pixels: leave data.image_size out")
        return cifar.build_from_cifar(path, kind, writer, quiet=quiet)
    if packed or path.is_dir():
        return build_from_images(path, size, writer, quiet=quiet)
    if path.is_file():
        return cifar.build_from_pickle(path, size, writer, quiet=quiet)
    raise UserError(f"{path} is neither a file nor a folder: name an archive, a pickle or a folder of images")
