"""Data: from a source, as the user names it, to a store that loaders read.

sources/ tells what a source is and reads or draws it, hostile files through untrusted/; store/ writes, opens and checks
stores; order.py is the order of an epoch, loaders/ yield its batches; compat/ imports packages that need help.
"""

from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastres import aliases
from fastres.data.sources.resolve import Store, data_root, resolve
from fastres.data.store import beton
from fastres.data.store.decoded import Dataset, Part, Writer, building, open_store, verify_store, write_manifest
from fastres.data.store.encoded import EncodedImages
from fastres.errors import UserError
from fastres.utils.untrusted import encodable

if TYPE_CHECKING:
    from fastres.data.loaders import Batch, Loader, make_loader

__all__ = ["Batch", "Dataset", "EncodedImages", "Loader", "Part", "data_root", "info"]
__all__ += ["make_loader", "open_dataset", "prepare", "verify"]


def _torchvision() -> ModuleType:
    from fastres.data.compat import torchvision

    return torchvision


torchvision_cpu = aliases.module("fastres.data.torchvision_cpu", _torchvision)


def __dir__() -> list[str]:
    return [*globals(), "Batch", "Loader", "make_loader"]


def __getattr__(name: str) -> Any:
    """`make_loader` and its classes, which bring torch along, only when they are asked for."""
    if name in ("Batch", "Loader", "make_loader"):
        from fastres.data import loaders

        return getattr(loaders, name)
    raise AttributeError(f"module 'fastres.data' has no attribute '{name}'")


def open_dataset(
    source: str | Path,
    *,
    store: Store = "decoded",
    image_size: int | None = None,
    root: str | Path | None = None,
    quiet: bool = False,
) -> Dataset:
    """Open the store of `source`, prepared first if there is none.

    `store` is "decoded", memory-mapped pixels, or "encoded": the JPEG and PNG files of a folder or an uncompressed tar
    stay where they are, and a part's `images` are `EncodedImages`, which decode a file when it is asked for. The same
    images, classes, order and statistics, without a second copy on disk.

    `source` is "shapes10", "cifar10", "cifar100", or the path of a CIFAR archive or folder, of a folder or tar of
    images, or of a pickle. Folders and tars of images are brought to `image_size` pixels (default 32). `root` is the
    folder of downloads and stores; see `data_root`. Progress goes to standard error unless `quiet`.

    Opening a prepared store reads headers and labels only. Raises UserError for a source that is missing, damaged,
    hostile or not for this kind of store, for a full disk, and for a damaged store; nothing half-written is left.
    """
    source = str(source)
    resolved = resolve(source, store=store, image_size=image_size, root=root)
    if not resolved.store.exists():
        return prepare(source, store=store, image_size=image_size, root=root, quiet=quiet)
    return open_store(resolved.store, source)


def prepare(
    source: str | Path,
    *,
    store: Store = "decoded",
    image_size: int | None = None,
    root: str | Path | None = None,
    quiet: bool = False,
) -> Dataset:
    """As `open_dataset`, but a store that does not open is built again instead of refused."""
    source = str(source)
    resolved = resolve(source, store=store, image_size=image_size, root=root)
    with building(resolved.store, quiet=quiet, rebuild=True) as folder:
        if folder is not None:
            writer = Writer(folder)
            classes = resolved.build(writer, quiet)
            if resolve(source, store=store, image_size=image_size, root=root).store != resolved.store:
                raise UserError(f"{source} changed while it was read: start again")
            name, size, facts = resolved.name, resolved.image_size, writer.facts
            write_manifest(folder, name=name, source=source, classes=classes, image_size=size, facts=facts)
    return open_store(resolved.store, source)


def info(
    source: str | Path, *, store: Store = "decoded", image_size: int | None = None, root: str | Path | None = None
) -> dict[str, Any]:
    """Facts about `source`, ready for JSON; reads no image, downloads and prepares nothing.

    Text can be encoded: what UTF-8 cannot hold of a path or a class name is written out, as `\\udce9`.

    Keys: source, store, name, image_size, path (of the store), prepared; and if it is prepared: classes, mean, std,
    bytes, fingerprint, parts: for each part its number of images and, where labelled, the images of each class; and
    beton: path and bytes of the store in FFCV's file format, None if there is none.
    """
    source = str(source)
    resolved = resolve(source, store=store, image_size=image_size, root=root)
    facts: dict[str, Any] = {
        "source": encodable(source),
        "store": store,
        "name": encodable(resolved.name),
        "image_size": resolved.image_size,
        "path": encodable(str(resolved.store)),
        "prepared": resolved.store.exists(),
    }
    if not facts["prepared"]:
        return facts
    dataset = open_store(resolved.store, source)
    parts: dict[str, dict[str, Any]] = {}
    for name, part in (("train", dataset.train), ("test", dataset.test), ("unlabelled", dataset.unlabelled)):
        if part is not None:
            parts[name] = {"images": len(part.images)}
            if part.labels is not None:
                counts = np.bincount(part.labels, minlength=len(dataset.classes)).tolist()
                parts[name]["classes"] = dict(zip(dataset.classes, counts, strict=True))
    return facts | {
        "classes": list(dataset.classes),
        "parts": parts,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "bytes": sum(entry.bytes for entry in dataset.manifest.files.values()),
        "fingerprint": dataset.manifest.fingerprint,
        "beton": _about_beton(dataset),
    }


def _about_beton(dataset: Dataset) -> dict[str, Any] | None:
    folder = beton.beton_folder(dataset)
    if not folder.exists():
        return None
    return {"path": encodable(str(folder)), "bytes": sum(path.stat().st_size for path in folder.glob("*.beton"))}


def verify(
    source: str | Path, *, store: Store = "decoded", image_size: int | None = None, root: str | Path | None = None
) -> list[str]:
    """Read the whole store of `source` and list what is wrong with it: wrong sizes, shapes, or sha256 sums; of an
    encoded store also each image file that is gone or has changed; and of the beton store of the same data, if any.

    An empty list means that it is sound. Raises UserError if it was never prepared.
    """
    source = str(source)
    resolved = resolve(source, store=store, image_size=image_size, root=root)
    if not resolved.store.exists():
        kind = " --store encoded" if store == "encoded" else ""
        raise UserError(f"{source} is not prepared: run `fastres data prepare {quote(source)}{kind}`")
    problems = verify_store(resolved.store)
    if not problems and beton.beton_folder(dataset := open_store(resolved.store, source)).exists():
        problems += beton.verify(dataset)
    return problems
