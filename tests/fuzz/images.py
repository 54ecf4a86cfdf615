"""Tars and folders of images, and the images in them. Read by `fastres data prepare`.

Wrong is a store with an image that is not the decoded file of one that Python's own tarfile finds there (in a folder:
that lies there), or with a class that is not a folder on that file's path; and images that are left out in silence.
"""

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path, PurePosixPath
from random import Random

import numpy as np
from PIL import Image

from fastres.cli.data import prepare, verify
from fastres.data import open_dataset
from fastres.data.store.encoded import decode
from fastres.errors import UserError
from tests.fuzz.children import Kind, Wrong
from tests.fuzz.damage import NUMBERS, damaged, replaced

SIDE = 8
NAMES = (
    *(
        "/train/ant/9.png",
        "../9.png",
        "train/../../9.png",
        "train/ant/" + "x" * 300 + ".png",
        "train/ant/\n.png",
        "9.png",
    ),
    *(
        "train/9.png",
        "train/ant/9.jpg",
        "train/cow/9.png",
        "test/cow/9.png",
        "val/ant/9.png",
        "train/ant/.9.png",
        "",
        ".",
    ),
    *(
        "train/ant/9.PNG",
        "train/ant/9.gif",
        "train/ant/0.png",
        "C:\\9.png",
        "train/ant/\udcff.png",
        "train/ant/e\u0301.png",
    ),
    *("train//ant/9.png", "./train/ant/9.png", "train/ant", "train", "train/ant/9.png/", "__MACOSX/train/ant/._9.png"),
    *("train/=1+1/9.png", "train/ant/\0.png", "data_batch_1", "batches.meta", "cifar-10-batches-py/data_batch_1"),
)
PAX = (
    *(
        ("size", "99999999999999"),
        ("size", "-1"),
        ("size", "4"),
        ("size", "x"),
        ("path", "../x.png"),
        ("path", "/x.png"),
    ),
    *(("linkpath", "/etc/passwd"), ("GNU.sparse.major", "1"), ("GNU.sparse.size", "999999999999"), ("mtime", "1e400")),
    *(
        ("hdrcharset", "BINARY"),
        ("path", "x" * 100_000),
        ("GNU.sparse.map", "0,1"),
        ("GNU.sparse.name", "../x"),
        ("a", ""),
    ),
)


def sound_images() -> dict[str, bytes]:
    """Two classes, images of all usual forms, each with pixels of its own."""
    random = np.random.default_rng(0)
    files: dict[str, bytes] = {}

    def add(name: str, mode: str, side: tuple[int, int] = (SIDE, SIDE), **options: object) -> None:
        image = Image.fromarray(random.integers(0, 256, (*side, 3), np.uint8)).convert(mode)
        file = io.BytesIO()
        image.save(file, "PNG" if name.endswith("png") else "JPEG", **options)
        files[name] = file.getvalue()

    for part in ("train", "test"):
        for label in ("ant", "bee"):
            add(f"{part}/{label}/0.png", "RGB")
            add(f"{part}/{label}/1.jpg", "RGB", quality=90)
            if part == "train":
                add(f"{part}/{label}/2.png", "P" if label == "ant" else "RGBA")
                add(f"{part}/{label}/3.jpeg", "L", (9, 12), progressive=True)
                add(f"{part}/{label}/4.png", "L" if label == "bee" else "RGB", (SIDE, SIDE), compress_level=0)
                add(f"{part}/{label}/5.jpg", "CMYK" if label == "bee" else "RGB", (10, 7), subsampling="4:2:0")
    return files


def tar_of(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_changed(data: bytes, random: Random) -> bytes:
    """A PNG file with one chunk changed, its checksum put right; or with one more."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number = random.randrange(len(chunks))
    name, content = chunks[number]
    if name == b"IHDR" and random.random() < 0.7:
        sides = struct.pack(">II", *(random.choice((0, 1, 8, 9, 3000, 9000, 2**16, 2**31 - 1)) for _ in range(2)))
        chunks[number] = (name, sides + content[8:])
    elif name == b"IDAT" and random.random() < 0.3:
        chunks[number] = (name, zlib.compress(bytes(random.choice((0, 10, 10**7)))))
    elif random.random() < 0.4:
        bomb = zlib.compress(bytes(10**7), 9)
        extra = [
            (b"zTXt", b"a\0\0" + bomb),
            (b"iTXt", b"a\0\1\0\0\0" + bomb),
            (b"iCCP", b"a\0\0" + bomb),
            (b"tRNS", b"\0"),
        ]
        extra += [
            (b"PLTE", bytes(random.choice((0, 2, 3, 900)))),
            (b"acTL", bytes(8)),
            (b"fcTL", bytes(26)),
            (b"IDAT", b""),
        ]
        chunks.insert(number + 1, random.choice(extra))
    else:
        chunks[number] = (name, damaged(content, random))
    return data[:8] + b"".join(chunk(*each) for each in chunks)


def jpeg_changed(data: bytes, random: Random) -> bytes:
    """A JPEG file with a number in one of its segments changed, or with one more segment."""
    changed, marks = (
        bytearray(data),
        [at for at in range(len(data) - 10) if data[at] == 255 and data[at + 1] not in (0, 255)],
    )
    at = random.choice(marks)
    if random.random() < 0.3:
        segment = random.choice((b"\xe1", b"\xe2", b"\xee", b"\xfe", b"\xc0", b"\xda", b"\xdd"))
        extra = random.randbytes(random.choice((0, 6, 30)))
        changed[at:at] = b"\xff" + segment + struct.pack(">H", random.choice((len(extra) + 2, 0, 65535))) + extra
    else:
        place = at + random.randrange(2, 10)
        width = random.choice((1, 2))
        changed[place : place + width] = (random.choice(NUMBERS) % 256**width).to_bytes(width, "big")
    return bytes(changed)


def resummed(header: bytearray) -> bytes:
    """A tar's header with its checksum put right."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def header_changed(data: bytes, random: Random) -> bytes:
    """A tar with a field of a header changed, its checksum put right."""
    starts = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
    at = random.choice(starts)
    header = bytearray(data[at : at + 512])
    field = random.choice(("name", "size", "type", "link", "magic", "prefix", "mode", "any"))
    if field == "name":
        name = random.choice(NAMES).encode(errors="surrogateescape")[:100]
        header[:100] = name.ljust(100, b"\0")
    elif field == "size":
        sizes = (
            b"00000000000\0",
            b"77777777777\0",
            b"-0000000001\0",
            b"\x80" + b"\0" * 3 + b"\x7f" * 8,
            b"\xff" * 12,
            b"x" * 12,
        )
        sizes += (b"00000001000\0", b"00000000001\0", b" " * 12)
        header[124:136] = random.choice(sizes)
    elif field == "type":
        header[156:157] = random.choice(
            (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"L", b"K", b"x", b"g", b"X", b"\0")
        )
    elif field == "link":
        header[156:157], header[157:167] = random.choice((b"1", b"2")), b"/etc/hosts"
    elif field == "magic":
        header[257:265] = random.choice((b"ustar  \0", b"ustar\x0000", b"\0" * 8, b"ustar\x0001"))
    elif field == "prefix":
        header[345:355] = random.choice((b"../" + b"x" * 7, b"/" * 10, b"train/ant\0", b"\xff" * 10))
    else:
        header[random.randrange(512)] = random.randrange(256)
    return data[:at] + resummed(header) + data[at + 512 :]


def with_member(data: bytes, random: Random, image: bytes) -> bytes:
    """A tar with one more member, of an odd name or with an odd extended header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=random.choice((0, 1, 2))) as tar:
        info = tarfile.TarInfo(random.choice(NAMES).replace("\0", "0"))
        info.size = len(image)
        if random.random() < 0.6:
            info.name = "train/ant/9.png"
            tar.format = tarfile.PAX_FORMAT
            info.pax_headers = dict(random.sample(PAX, random.choice((1, 1, 3))))
        try:
            tar.addfile(info, io.BytesIO(image))
        except (ValueError, UnicodeError):  # this form has no way to write such a name
            return data
    member = buffer.getvalue().rstrip(b"\0")
    member += b"\0" * (-len(member) % 512)
    starts = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
    at = random.choice((*starts, len(data) - 1024))
    return data[:at] + member + data[at:]


def visible(name: str) -> bool:
    """Whether a file is one that nobody hid, with the ending of an image."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and name.lower().endswith((".png", ".jpg", ".jpeg"))


class Images(Kind):
    """`data prepare` of tars and folders, into both kinds of store."""

    name = "tars and images"

    def open(self) -> None:
        self.root = self.place / "root"
        self.files = sound_images()
        heap = {f"{number}{Path(name).suffix}": data for number, (name, data) in enumerate(self.files.items())}
        self.sets = [self.files, self.files, heap, {f"pets/{name}": data for name, data in self.files.items()}]
        self.path, self.store = self.place / "images.tar", "decoded"
        self.path.write_bytes(tar_of(self.files))
        self.read()  # the first one imports the most
        self.heavy = [gzip.compress(bytes(50_000_000), 9), bz2.compress(bytes(10**6)), lzma.compress(bytes(50_000_000))]

    def mutate(self, random: Random) -> str:
        self._clear()
        files = dict(random.choice(self.sets))
        self.store = random.choice(("decoded", "decoded", "encoded"))
        kind = random.choice(("image", "image", "header", "header", "member", "bytes", "folder", "odd"))
        if kind == "image":
            name = random.choice([*files])
            change = random.choice((damaged, png_changed if name.endswith("png") else jpeg_changed))
            files[name] = change(files[name], random)
            where = random.choice(("tar", "folder"))
        elif kind == "folder":
            name, where = random.choice([*files]), "folder"
        else:
            name, where = "", "tar"
        if where == "folder":
            self.path = self.place / "folder"
            for each, content in files.items():
                (self.path / each).parent.mkdir(parents=True, exist_ok=True)
                (self.path / each).write_bytes(content)
            if kind == "folder":
                name += f" {self._change_folder(self.path / name, random)}"
            return f"{kind} {where} {self.store} {name}"
        self.path = self.place / "images.tar"
        data = tar_of(files, random.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
        if kind == "header":
            for _ in range(random.choice((1, 1, 2))):
                data = header_changed(data, random)
        elif kind == "member":
            data = with_member(data, random, random.choice([*files.values()]))
        elif kind == "odd":
            data, name = self._odd(data, random)
        packer = random.choice(("", "", "gz", "xz")) if kind in ("bytes", "image") else ""
        if packer:
            data = gzip.compress(data, 1) if packer == "gz" else lzma.compress(data, preset=0)
        if kind == "bytes":
            data = damaged(data, random)
        self.path.write_bytes(data)
        return f"{kind} {where} {packer} {self.store} {name}"

    def _clear(self) -> None:
        for path in (self.root, self.place / "folder"):
            shutil.rmtree(path, ignore_errors=True)

    def _odd(self, data: bytes, random: Random) -> tuple[bytes, str]:
        """Files that only look like tars, or are more than one."""
        made = {
            "zeros": lambda: random.choice(self.heavy),
            "twice": lambda: data + data,
            "packed twice": lambda: gzip.compress(gzip.compress(data, 1), 1),
            "two packed parts": lambda: gzip.compress(data[:2048], 1) + gzip.compress(data[2048:], 1),
            "packed with a tail": lambda: gzip.compress(data, 1) + b"tail",
            "cut": lambda: data[: random.randrange(len(data))],
            "cut and packed": lambda: gzip.compress(data[: random.randrange(len(data))], 1),
            "packed and cut": lambda: lzma.compress(data, preset=0)[: -random.randrange(1, 200)],
            "zeros within": lambda: data[:1024] + bytes(1024) + data[1024:],
            "empty": lambda: bytes(random.choice((0, 512, 1024, 10240))),
            "tar in a tar": lambda: tar_of({"train/ant/0.png": data}),
            "bz2": lambda: bz2.compress(data),
        }
        name = random.choice([*made])
        return made[name](), name

    def _change_folder(self, path: Path, random: Random) -> str:
        if random.random() < 0.6 or path.parent == self.path:
            return replaced(path, random)
        kind = random.choice(
            ("class moved", "class linked", "loop", "strange name", "no bytes of UTF-8", "fifo beside")
        )
        if kind == "class moved":
            path.parent.rename(path.parent.with_name(random.choice(("cow", ".bee", "e\u0301", "=1"))))
        elif kind == "class linked":
            moved = self.place / "folder" / f"elsewhere{random.randrange(9)}"
            path.parent.rename(moved)
            path.parent.symlink_to(moved)
        elif kind == "loop":
            (path.parent / "loop").symlink_to("..")
        elif kind == "strange name":
            path.rename(path.with_name(random.choice(("a\nb.png", "\x1b[31m.png", "x.gif", ".png", "x", "x.tar"))))
        elif kind == "no bytes of UTF-8":
            path.rename(os.fsdecode(os.fsencode(path.parent) + b"/\xff\xfe.png"))
        else:
            os.mkfifo(path.with_name("pipe.png"))
        return kind

    def read(self) -> None:
        with redirect_stderr(io.StringIO()) as said:
            prepare(str(self.path), self.store, "store", SIDE, str(self.root), True)
        verify(str(self.path), self.store, SIDE, str(self.root), True)
        with self.unheard():
            self._compare(said.getvalue())

    def _compare(self, said: str) -> None:
        dataset = open_dataset(str(self.path), store=self.store, image_size=SIDE, root=self.root, quiet=True)
        names: dict[bytes, list[str]] = {}
        for name, content in self._files():
            try:
                names.setdefault(decode(content, SIDE).tobytes(), []).append(name)
            except UserError:
                continue
        count = 0
        for part in (dataset.train, dataset.test, dataset.unlabelled):
            for row in range(0 if part is None else len(part.images)):
                assert part is not None
                count += 1
                found = names.get(part.images[row].tobytes())
                if found is None:
                    raise Wrong(f"image {row} is none of the source")
                if part.labels is not None:
                    label = dataset.classes[part.labels[row]]
                    if not any(label in PurePosixPath(name).parts for name in found):
                        raise Wrong(f"image {row} has the class {label!r} and is {found[0]}")
        there = sum(map(visible, (name for group in names.values() for name in group)))
        if count < there and "left out" not in said and "leaves" not in said:
            raise Wrong(f"{there - count} of {there} images are left out in silence: {said[-200:]!r}")

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """Names and contents of what is there, hidden files and folders left out."""
        if self.path.is_dir():
            for folder, _, names in os.walk(self.path, followlinks=False):
                for name in names:
                    path = Path(folder) / name
                    if path.is_file():
                        yield str(path.relative_to(self.path)), path.read_bytes()
            return
        with tarfile.open(self.path) as tar:
            for info in tar:
                if info.isreg():
                    file = tar.extractfile(info)
                    assert file is not None
                    yield info.name, file.read()
