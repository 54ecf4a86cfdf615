"""Ways to damage files, each a function of a seeded generator."""

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

VALUES = (
    *(None, True, -1, 0, 1, 2**63, 10**400, 0.5, -0.0, 1e308, -1e308, "", "x" * 1000, "\ud800", [], {}, [[]], {"a": 1}),
    *("NaN", "Infinity"),
)
"""Put in the place of any value of JSON; the last two as its dialects write them, without quotes."""
NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def damaged(content: bytes, random: Random) -> bytes:
    """`content` with bits, bytes and numbers changed, removed, added, repeated or moved, or its end cut off."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(data) + 1)
        size = random.choice((1, 1, 2, 4, 8, 64, 512))
        piece = bytes(data[at : at + size])
        kind = random.randrange(9)
        if kind == 0 and piece:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at : at + size] = random.randbytes(len(piece))
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = random.randbytes(size)
        elif kind == 4:
            data[at:at] = piece * random.choice((1, 2, 50))
        elif kind == 5:
            elsewhere = random.randrange(len(data) + 1)
            data[elsewhere : elsewhere + size] = piece
        elif kind == 6:
            width = random.choice((1, 2, 4, 8))
            number = random.choice(NUMBERS) % 256**width
            data[at : at + width] = number.to_bytes(width, random.choice(("little", "big")))
        elif kind == 7:
            data[at : at + size] = bytes([random.choice((0, 32, 255))]) * len(piece)
        elif random.random() < 0.3:
            del data[at:]
        else:
            data += random.choice((b"\0", b"\n", random.randbytes(3), piece))
    return bytes(data)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values within `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, content in inside for place in places(content, (*at, key)))]


def changed_json(text: str, random: Random) -> bytes:
    """JSON, or an object a line, with a value replaced, removed, or moved by a last digit; now and then `damaged`."""
    if random.random() < 0.3:
        return damaged(text.encode(), random)
    lines = [json.loads(line) for line in text.splitlines()] if text.count("}\n{") else [json.loads(text)]
    line = random.randrange(len(lines))
    *above, last = random.choice(places(lines[line])[1:])
    node = lines[line]
    for key in above:
        node = node[key]
    if random.random() < 0.2:
        del node[last]
    elif type(node[last]) in (int, float) and random.random() < 0.3:
        node[last] *= random.choice((1 + 1e-6, 2, -1))
    else:
        node[last] = random.choice(VALUES)
    made = "\n".join(json.dumps(each) for each in lines)
    for word in ("NaN", "Infinity"):
        made = made.replace(f'"{word}"', word)
    return made.encode(errors="surrogatepass")


def replaced(path: Path, random: Random) -> str:
    """Put something else where the file `path` is; returns what, in words."""
    kind = random.choice(
        ("nothing", "an empty file", "a folder", "a pipe", "a dead link", "a link to itself", "a link to a device")
        + ("a link to a copy", "a file of a terabyte", "a file of a colon", "a socket")
    )
    copy = path.with_name(f"{path.name}.copy")
    if kind == "a link to a copy":
        shutil.copy(path, copy)
    if kind == "a file of a terabyte":
        os.truncate(path, 1 << 40)  # it takes no room: the end is a hole
        return kind
    path.unlink()
    if kind == "an empty file":
        path.touch()
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a dead link":
        path.symlink_to("nowhere")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    elif kind == "a link to a device":
        path.symlink_to(random.choice(("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem")))
    elif kind == "a link to a copy":
        path.symlink_to(copy.name)
    elif kind == "a file of a colon":
        path.write_bytes(b":")
    elif kind == "a socket":
        import socket

        with socket.socket(socket.AF_UNIX) as end:
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's path has at most 107 bytes
            end.bind(path.name)
            os.chdir(here)
    return kind


def exchanged(path: Path, other: Path) -> str:
    """Give each of two files the other's contents; returns the name of `other`."""
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)
    return other.name


def restore(path: Path, original: Path) -> None:
    """Make the file or folder `path`, whatever stands there, a copy of `original`."""
    for old in (path, path.with_name(f"{path.name}.copy")):
        if old.is_symlink() or not old.is_dir():
            old.unlink(missing_ok=True)
        else:
            shutil.rmtree(old)
    if original.is_dir():
        shutil.copytree(original, path, symlinks=True)
    else:
        shutil.copy(original, path)
