"""manifest.json of a store: what is in its folder, and what its files must be."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from fastres.errors import UserError
from fastres.utils.json_files import LIMIT, Count, Entry, fault_in
from fastres.utils.untrusted import read_regular

MANIFEST = "manifest.json"
Channels = tuple[float, float, float]
Kind = TypeVar("Kind", bound=Entry)


class StoredFile(Entry):
    """A file of a store; `shape` and `dtype` are an array's, `index_sha256` is that of a beton's index."""

    shape: list[Count] | None = None
    dtype: str | None = None
    bytes: Count
    sha256: str
    index_sha256: str | None = None


class Manifest(Entry):
    """Of a store of pixels or of encoded images; a store that is older than `store` is decoded."""

    format: int
    fastres: str | None = None
    """Version that wrote it."""
    name: str
    source: str
    classes: list[str]
    image_size: Count
    fingerprint: str
    """Changes with any byte of the store."""
    store: Literal["decoded", "encoded"] = "decoded"
    container: Literal["folder", "tar"] | None = None
    """Of an encoded store: what holds the image files."""
    location: str | None = None
    """Where that lies, as a URL."""
    mean: Channels
    std: Channels
    files: dict[str, StoredFile]


class BetonManifest(Entry):
    """Of a store in FFCV's file format."""

    store: Literal["beton"]
    format: int
    fastres: str | None = None
    name: str
    source: str
    image_size: Count
    fingerprint: str
    """Of the store that it was made of."""
    files: dict[str, StoredFile]


def read_manifest(folder: Path, kind: type[Kind]) -> Kind:
    """The manifest of `folder`. Raises OSError where there is none, ValueError where it is damaged."""
    try:
        return kind.model_validate_json(read_regular(folder / MANIFEST, LIMIT, "no store has such a manifest"))
    except ValidationError as error:
        raise ValueError(f"{MANIFEST}: {fault_in(error)}") from error
    except UserError as error:
        raise ValueError(str(error)) from error
