"""manifest.json of a store: what is in its folder, and what its files must be."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from fastres.errors import UserError
from fastres.utils.files import write_json
from fastres.utils.json_files import LIMIT, Count, Entry, fault_in
from fastres.utils.untrusted import read_regular

MANIFEST = "manifest.json"
Channels = tuple[float, float, float]
Side = Annotated[int, Field(ge=1, le=4096)]
Name = Annotated[str, Field(pattern=r"^[a-z_]+\.(npy|beton)$")]
"""Of a file in the store's own folder."""


class StoredFile(Entry):
    """A file of a store; `shape` and `dtype` are an array's, `index_sha256` is that of a beton's index."""

    shape: list[Count] | None = None
    dtype: str | None = None
    bytes: Count
    sha256: str
    index_sha256: str | None = None


class AnyManifest(Entry):
    """Of any store."""

    sha256: str | None = None
    """Of all else in the manifest; None in stores of older versions."""


Kind = TypeVar("Kind", bound=AnyManifest)


class Manifest(AnyManifest):
    """Of a store of pixels or of encoded images; a store that is older than `store` is decoded."""

    format: int
    fastres: str | None = None
    """Version that wrote it."""
    name: str
    source: str
    classes: list[str]
    image_size: Side
    fingerprint: str
    """Changes with any byte of the store."""
    store: Literal["decoded", "encoded"] = "decoded"
    container: Literal["folder", "tar"] | None = None
    """Of an encoded store: what holds the image files."""
    location: str | None = None
    """Where that lies, as a URL."""
    mean: Channels
    std: Channels
    files: dict[Name, StoredFile]


class BetonManifest(AnyManifest):
    """Of a store in FFCV's file format."""

    store: Literal["beton"]
    format: int
    fastres: str | None = None
    name: str
    source: str
    image_size: Side
    fingerprint: str
    """Of the store that it was made of."""
    files: dict[Name, StoredFile]


def write_manifest(folder: Path, manifest: AnyManifest) -> None:
    """Write the manifest of `folder`, with its digest."""
    content = manifest.to_json()
    write_json(folder / MANIFEST, {**content, "sha256": _digest(content)})


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, kind: type[Kind]) -> Kind:
    """The manifest of `folder`. Raises OSError where there is none, ValueError where it is damaged."""
    try:
        data = read_regular(folder / MANIFEST, LIMIT, "no store has such a manifest")
        manifest = kind.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(f"{MANIFEST}: {fault_in(error)}") from error
    except UserError as error:
        raise ValueError(str(error)) from error
    content = json.loads(data)
    given = content.pop("sha256", None)
    known = set(kind.model_fields)
    if given != _digest(content) if given is not None else content.keys() - known:
        raise ValueError(f"{MANIFEST} was changed: its sha256 is another")
    return manifest
