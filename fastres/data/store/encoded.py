"""Image files, encoded: what pixels one has, and a part of a data set whose images stay in their files.

An encoded store holds where each file lies, its size and its CRC-32. A file is checked against them whenever it is
read, so that one that changed after preparation is an error and never other pixels.
"""

import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from fastres.data.store.arrays import read_array
from fastres.data.store.manifest import Manifest, read_manifest
from fastres.errors import UserError
from fastres.utils.untrusted import open_regular, read_exactly

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE = 64 << 20  # bytes of one image file
MAX_PIXELS = 64_000_000  # width times height of one image: 256 MB decoded


def is_decodable(start: bytes) -> bool:
    """Whether a file that begins with these 8 bytes or more is a JPEG or PNG file, damaged or not."""
    return start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def decode(data: bytes, size: int) -> np.ndarray:
    """Decode a JPEG or PNG file to uint8 [size, size, 3] RGB.

    The largest centred square is resized with an antialiased bicubic filter; an image of that size already is left
    as it is. Grey and palette images become RGB, transparency lies on black, EXIF rotation is ignored. Raises
    UserError for anything that is no such image, is damaged, or has more than 64 million pixels.
    """
    from PIL import Image, UnidentifiedImageError

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"has {image.width}×{image.height} pixels: shrink it to {MAX_PIXELS:,} or fewer")
            image.load()
            picture = to_rgb(image)
    except UserError:
        raise
    except bombs as error:  # Pillow's own limit, a greater one, is looked at first
        raise UserError(f"has more than {MAX_PIXELS:,} pixels: shrink it to so many or fewer") from error
    except UnidentifiedImageError as error:
        raise UserError("is no JPEG or PNG image: remove or replace it") from error
    except Exception as error:  # a damaged file makes decoders fail in many ways: OSError, SyntaxError, struct.error
        raise UserError(f"is a damaged image ({str(error)[:80] or type(error).__name__}): replace it") from error
    return square(picture, size)


def square(picture: "Image.Image", size: int) -> np.ndarray:
    """uint8 [size, size, 3] of an RGB picture, cropped and resized as `decode` says."""
    from PIL import Image

    width, height = picture.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(picture)


def load_decoders() -> None:
    """Import what `decode` needs: 50 ms, once in a process and those that it forks afterwards."""
    from PIL import Image

    Image.preinit()


def to_rgb(image: "Image.Image") -> "Image.Image":
    """The RGB picture of an image of any mode, as `decode` says."""
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour).convert("RGB")
    return image.convert("RGB")


class _Tar:
    """An archive that threads, views and forked processes read through one descriptor, opened when first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: _Descriptor | None = None

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on: fewer where the file ends. Raises OSError and UserError."""
        # A thread's own reference keeps the descriptor open, and its number from naming another file, through a close.
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = _Descriptor(self.path)
        parts, missing = [], size
        while missing and (data := os.pread(descriptor.number, missing, offset + size - missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        self._descriptor = None


class _Descriptor:
    """Closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            self.number = os.dup(file.fileno())

    def __del__(self, close: Any = os.close) -> None:
        if hasattr(self, "number"):
            close(self.number)


class EncodedImages:
    """One part of an encoded store, or a slice of it: it stands where a decoded store has its array of pixels.

    Reading is safe in any number of threads. Pickled, it is the name of its store. A folder costs no file handle, a
    tar one from the first image on, which `close` gives back and which the next read opens again.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, store: Path, part: str) -> None:
        """Open `part` of the store in the folder `store`. Raises OSError and ValueError if it is damaged."""
        manifest = read_manifest(store, Manifest)
        self._store, self._part, self._size = store, part, manifest.image_size
        location = manifest.location
        if location is None or not location.startswith("file:///"):
            raise ValueError(f"its location is {location!r:.80}")
        self.location = Path(os.fsdecode(unquote_to_bytes(location.removeprefix("file://"))))
        """The folder or tar that holds the files."""
        self._tar = None if manifest.container == "folder" else _Tar(self.location)
        self._files = manifest.files
        self._sizes = self._load("sizes", np.int64)
        self._offsets = self._load("offsets", np.int64)
        self._checksums = self._load("checksums", np.uint32)
        self._name_ends = self._load("name_ends", np.int64)
        self._names = self._load("names", np.uint8).tobytes()
        lengths = {len(array) for array in (self._sizes, self._offsets, self._checksums, self._name_ends)}
        name_sizes = np.diff(self._name_ends, prepend=0)
        ends = self._name_ends[-1] if len(self._name_ends) else -1
        if len(lengths) > 1 or ends != len(self._names) or name_sizes.min() < 0 or b"\0" in self._names:
            raise ValueError(f"{part} has arrays that do not belong together")
        if min(self._sizes.min(), self._offsets.min()) < 0 or self._sizes.max() > MAX_FILE:
            raise ValueError(f"{part} has sizes or offsets that no file has")
        self._rows = range(len(self._sizes))

    def _load(self, what: str, dtype: type) -> np.ndarray:
        # Not mapped: a map keeps a file handle, and 60,000 files take 3 MB.
        name = f"{self._part}_{what}.npy"
        array = read_array(self._store / name, self._files[name])
        if array.dtype != dtype or array.ndim != 1:
            raise ValueError(f"{name} has another shape or type than it should")
        return array

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, 3) of the decoded images."""
        return len(self), self._size, self._size, 3

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._store, self._part, self._rows)

    def name(self, row: int) -> str:
        """The file's path inside its folder or tar; bytes that are not UTF-8 are surrogates, as in `os.fsdecode`."""
        row = self._rows[row]
        return os.fsdecode(self._names[self._name_ends[row - 1] if row else 0 : self._name_ends[row]])

    def read(self, row: int) -> bytes:
        """The file of image `row` as it was when the store was prepared.

        Raises UserError, naming the image, if the file is gone, cannot be read, or is not what it was.
        """
        entry = self._rows[row]
        size = int(self._sizes[entry])
        try:
            if self._tar is None:
                data = read_exactly(f"{self.location}/{self.name(row)}", size)
            else:
                data = self._tar.read(int(self._offsets[entry]), size)
        except (OSError, OverflowError) as error:  # at a place that no file has
            self._fail(row, f"cannot be read ({getattr(error, 'strerror', None) or error})", error)
        except UserError as error:
            self._fail(row, f"cannot be read ({str(error).splitlines()[0][:200]})", error)
        if len(data) != size:
            self._fail(row, f"has changed: its size is no longer {size:,} bytes")
        if zlib.crc32(data) != self._checksums[entry]:
            self._fail(row, "has changed: its checksum is another")
        return data

    def _fail(self, row: int, problem: str, error: Exception | None = None) -> NoReturn:
        raise UserError(
            f"{self.location}: {self.name(row)} ({self._part} image {self._rows[row]}) {problem};\n"
            f"put it back as it was, or delete the store {self._store} and prepare it again"
        ) from error

    def decode(self, rows: "Sequence[int] | NDArray[np.integer]", out: np.ndarray | None = None) -> np.ndarray:
        """Read and decode the images `rows`, into `out` if it is given: uint8 [len(rows), H, W, 3].

        Raises UserError as `read` does, and IndexError for a row that there is not.
        """
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for pixels, row in zip(out, rows, strict=True):
            data = self.read(int(row))
            try:
                pixels[:] = decode(data, self._size)
            except UserError as error:
                self._fail(int(row), str(error).split(":")[0], error)
        return out

    @overload
    def __getitem__(self, index: slice) -> "EncodedImages": ...
    @overload
    def __getitem__(self, index: "int | np.integer | Sequence[int] | NDArray[Any]") -> np.ndarray: ...
    def __getitem__(self, index: Any) -> "EncodedImages | np.ndarray":
        """A slice is a view, and decodes nothing. A number gives uint8 [H, W, 3], numbers or bools [n, H, W, 3]."""
        if isinstance(index, slice):
            view = object.__new__(EncodedImages)
            view.__dict__.update(self.__dict__, _rows=self._rows[index])
            return view
        rows = np.arange(len(self))[index]
        if rows.ndim > 1:
            raise IndexError("images are chosen by a number, a slice, or one list of numbers")
        return self.decode(rows) if rows.ndim else self.decode([int(rows)])[0]

    def problems(self) -> list[str]:
        """Read every file; what is wrong with those that are gone or have changed."""
        messages = []
        for row in range(len(self)):
            try:
                self.read(row)
            except UserError as error:
                messages.append(str(error).split(";\n")[0])
        return messages

    def close(self) -> None:
        """Give the tar's file handle back."""
        if self._tar is not None:
            self._tar.close()


def _reopen(store: Path, part: str, rows: range) -> EncodedImages:
    try:
        images = EncodedImages(store, part)
    except Exception as error:  # a file of anything makes its readers raise anything
        raise UserError(f"the prepared store {store} is damaged or gone ({error}): prepare it again") from error
    images._rows = rows
    return images
