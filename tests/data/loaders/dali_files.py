"""Files for the tests of the DALI loader, of every kind that Pillow opens, and loaders over them in memory."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastres.data.loaders.dali import DaliLoader
from fastres.data.store.encoded import decode
from fastres.errors import UserError

SIDE = 32


def photo(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Smooth colours with some noise: what JPEG files hold, and what shows every rounding."""
    width, height = size
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = draw.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))


def packed(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(depth: int, colour: int, rows: bytes, chunks: bytes = b"") -> bytes:
    """A PNG file of SIDE × SIDE that Pillow would not write."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def kinds() -> dict[str, tuple[bytes, bool]]:
    """Image files by what is special about them, and whether DALI is to decode them itself."""
    draw, image = np.random.default_rng(1), photo(0)
    grey, alpha, grey_alpha = image.convert("L"), image.convert("RGBA"), image.convert("LA")
    alpha.putalpha(Image.fromarray(draw.integers(0, 256, (SIDE, SIDE), np.uint8)))
    grey_alpha.putalpha(Image.fromarray(draw.integers(0, 256, (SIDE, SIDE), np.uint8)))
    deep = draw.integers(0, 1 << 16, (SIDE, SIDE)).astype(np.uint16)
    deep_rows = b"".join(b"\0" + draw.integers(0, 256, SIDE * 6, np.uint8).tobytes() for _ in range(SIDE))
    colour_rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown rotated, which fastres ignores
    red = tuple(int(value) for value in np.asarray(image)[0, 0])
    plain = packed(image, "PNG")
    return {
        "JPEG 4:4:4": (packed(image, "JPEG", quality=95, subsampling=0), True),
        "JPEG 4:2:2": (packed(image, "JPEG", subsampling=1), True),
        "JPEG 4:2:0": (packed(image, "JPEG", subsampling=2), True),
        "JPEG, poor": (packed(image, "JPEG", quality=5), True),
        "JPEG, progressive": (packed(image, "JPEG", progressive=True), True),
        "JPEG, own tables and restarts": (packed(image, "JPEG", optimize=True, restart_marker_rows=1), True),
        "JPEG, grey": (packed(grey, "JPEG"), True),
        "JPEG of RGB": (packed(image, "JPEG", keep_rgb=True), True),
        "JPEG, CMYK": (packed(image.convert("CMYK"), "JPEG"), False),
        "JPEG, turned by Exif": (packed(image, "JPEG", exif=turned), False),
        "JPEG with a fill byte before a marker": (
            packed(image, "JPEG").replace(b"\xff\xdb", b"\xff\xff\xdb", 1),
            False,
        ),
        "JPEG, wide": (packed(photo(1, (47, 40)), "JPEG"), False),
        "JPEG, high": (packed(photo(2, (33, 100)), "JPEG"), False),
        "JPEG, small": (packed(photo(3, (20, 21)), "JPEG"), False),
        "PNG": (plain, True),
        "PNG, grey": (packed(grey, "PNG"), True),
        "PNG, 1 bit": (packed(image.convert("1"), "PNG"), True),
        "PNG, palette": (packed(image.quantize(50), "PNG"), True),
        "PNG with a gamma": (png(8, 2, colour_rows, chunk(b"gAMA", struct.pack(">I", 100_000))), True),
        "PNG with a wrong checksum": (plain[:-16] + b"\0\0\0\0" + plain[-12:], True),
        "PNG, palette, transparent": (packed(image.quantize(50), "PNG", transparency=3), False),
        "PNG with a transparent colour": (packed(image, "PNG", transparency=red), False),
        "PNG, alpha": (packed(alpha, "PNG"), False),
        "PNG, grey and alpha": (packed(grey_alpha, "PNG"), False),
        "PNG, 16 bit grey": (packed(Image.fromarray(deep), "PNG"), False),
        "PNG, 16 bit": (png(16, 2, deep_rows), False),
        "PNG, turned by Exif": (packed(image, "PNG", exif=turned), False),
        "PNG, large": (packed(photo(4, (64, 65)), "PNG"), False),
    }


KINDS = kinds()


class Files:
    """What a loader asks of EncodedImages, over files in memory: for those that `prepare` would refuse."""

    def __init__(self, files: list[bytes], side: int = SIDE) -> None:
        self._files, self.shape = files, (len(files), side, side, 3)
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self._files)

    def read(self, row: int) -> bytes:
        self.seen.append(row)
        return self._files[row]

    def decode(self, rows: Any) -> np.ndarray:
        pixels = []
        for row in rows:
            try:
                pixels.append(decode(self._files[row], self.shape[1]))
            except UserError as error:
                raise UserError(f"image {row} {error}") from error
        return np.stack(pixels)


def over(pixels: Any, size: int = 16, **options: Any) -> DaliLoader:
    """A loader of all of `pixels`, by default in their order."""
    return DaliLoader(pixels, np.arange(len(pixels)) % 10, np.arange(len(pixels)), size, workers=2, **options)


def everything(loader: DaliLoader, epoch: int = 0, first_step: int = 0) -> np.ndarray:
    return torch.cat([batch.source for batch in loader.batches(epoch, first_step)]).numpy()
