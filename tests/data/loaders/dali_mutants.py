"""Decode damaged files with DALI, a thousand: `python dali_mutants.py SEED`; status 0 if all pixels are Pillow's."""

import contextlib
import random
import sys
import zlib

import numpy as np
from dali_files import KINDS, SIDE, Files, everything, over

from fastres.data.store.encoded import decode
from fastres.errors import UserError


def mutated(data: bytes, draw: random.Random) -> bytes:
    """`data` with one to three bytes of its head, or of all of it, changed, put in or taken out."""
    changed = bytearray(data)
    scan = data.find(b"\xff\xda")
    head = scan + 14 if scan > 0 else 120
    end = draw.choice([min(head, len(data)), len(data)])
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        at = draw.randrange(2, min(end, len(changed)))
        match draw.randrange(5):
            case 0 | 1:
                changed[at] = draw.randrange(256)
            case 2:
                changed[at] ^= 1 << draw.randrange(8)
            case 3:
                changed[at:at] = draw.choice([b"\xff", b"\xff\xff", b"\xff\xe1\0\x08Exif\0\0", draw.randbytes(3)])
            case 4:
                del changed[at : at + draw.randrange(1, 4)]
    if changed.startswith(b"\x89PNG") and draw.random() < 0.7:  # so that what is in the header is looked at
        changed[29:33] = zlib.crc32(changed[12:29]).to_bytes(4, "big")
    return bytes(changed)


def decode_mutants(seed: int, count: int) -> None:
    """Damaged files that Pillow still takes, and which preparation lets pass, eight in each batch of 32."""
    draw = random.Random(seed)
    # Without the one that DALI refuses, with which Pillow would decode nearly all batches.
    bases = [data for name, (data, by_dali) in KINDS.items() if by_dali and name != "PNG with a wrong checksum"]
    files: list[bytes] = []
    while len(files) < count:
        data = mutated(draw.choice(bases), draw)
        with contextlib.suppress(UserError):
            decode(data, SIDE)
            files += [data, *draw.choices(bases, k=3)]
    with over(Files(files), 32) as loader:
        assert np.array_equal(everything(loader), np.stack([decode(data, SIDE) for data in files]))


if __name__ == "__main__":
    decode_mutants(int(sys.argv[1]), 4000)
