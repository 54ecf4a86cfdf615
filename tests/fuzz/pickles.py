"""Pickles of images: changed instructions, programs and sizes. Read by `fastres data prepare`.

Wrong is a store with other images or ids than Python's own unpickler reads from the same bytes, allowed nothing but the
functions that arrays and bytes are made of. Where that one refuses a detail at which ours does not look, such as the
size of a frame or the version of an array's state, there is nothing to compare with.
"""

import io
import pickle
import pickletools
import shutil
import struct
from random import Random
from typing import Any

import numpy as np

from fastres.cli.data import prepare, verify
from fastres.data import open_dataset
from tests.fuzz.children import Kind, Wrong
from tests.fuzz.damage import NUMBERS, damaged

SIDE = 4
MADE_OF = {
    *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray")),
    *(("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"), ("numpy", "dtype")),
    *(("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer"), ("_codecs", "encode")),
    *(("__builtin__", "bytes"), ("builtins", "bytes")),
}
CODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


class Plain(pickle.Unpickler):
    """Python's own, for arrays alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in MADE_OF:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module.replace("__builtin__", "builtins").replace("numpy.core", "numpy._core"), name)


def programs(canary: str) -> list[bytes]:
    """Parts of pickles that run something, or take room."""
    calls = [
        ("posix", "system", f"touch {canary}"),
        ("os", "system", f"touch {canary}"),
        ("builtins", "eval", f"open({canary!r}, 'w')"),
        ("builtins", "exec", f"open({canary!r}, 'w')"),
        ("subprocess", "getoutput", f"touch {canary}"),
        ("numpy", "fromfile", "/etc/passwd"),
        ("numpy", "load", "/etc/passwd"),
        ("builtins", "open", canary),
        ("builtins", "__import__", "os"),
    ]
    made = []
    for module, name, argument in calls:
        made.append(f"c{module}\n{name}\n(V{argument}\ntR".encode())
        made.append(f"(V{argument}\ni{module}\n{name}\n".encode())
        text = argument.encode()
        parts = [b"\x8c" + bytes([len(part)]) + part for part in (module.encode(), name.encode(), text)]
        made.append(parts[0] + parts[1] + b"\x93" + parts[2] + b"\x85R")
        made.append(parts[0] + parts[1] + b"\x93" + parts[2] + b"\x85\x81")
        made.append(b"c" + module.encode() + b"\n" + name.encode() + b"\n" + parts[2] + b"\x85b")
    sizes = [struct.pack("<Q", 1 << bits) for bits in (31, 40, 62)]
    made += [code + size for code in (b"\x8d", b"\x8e", b"\x95", b"\x96") for size in sizes]
    made += [b"]q\x00" + b"h\x00" * 50 + b"e", b"\x85" * 3000, b"(" * 3000, b"2" * 3000, b"N0" * 5000]
    made += [b"]q\x01(" + b"h\x01h\x01" * 10 + b"e", b"K\x02" + b"2r\xff\xff\xff\x7f", b"L" + b"9" * 6000 + b"L\n"]
    made += [b"I" + b"9" * 6000 + b"\n", b"F1e400\n", b"F" + b"1" * 5000 + b"\n", b"Pmodule\n", b"\x82\x01"]
    made += [b"c" + module + b"\n" + name + b"\n" for module, name in ((m.encode(), n.encode()) for m, n in MADE_OF)]
    return made


class Pickles(Kind):
    """`data prepare` of pickles without labels."""

    name = "pickles"

    def open(self) -> None:
        self.path, self.root, self.canary = self.place / "images.pkl", self.place / "root", self.place / "canary"
        random = np.random.default_rng(0)
        rows = random.integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
        flat = random.integers(0, 256, (2, 3072), np.uint8)
        contents: list[dict[Any, Any]] = [
            {b"data": rows, b"ids": [5, 6, 7]},
            {"data": rows, "ids": ["a", "b", b"\xff"]},
            {"data": np.ascontiguousarray(rows.transpose(0, 3, 1, 2)), "ids": np.arange(3)},
            {"data": np.asfortranarray(rows), "ids": np.array(["x", "yy", "z"]), "more": (1, 2.5, None, {"a": [True]})},
            {"data": rows},
        ]
        older = [pickle.dumps(content, protocol) for content in contents for protocol in range(4)]
        made = [*older, *(pickle.dumps(content, protocol) for content in contents for protocol in (4, 5))]
        self.bases = [(data, SIDE) for data in made]
        self.bases += [(data.replace(b"numpy._core", b"numpy.core"), SIDE) for data in older]  # NumPy 1
        self.bases += [(pickle.dumps({b"data": flat, b"ids": [1, 2]}, protocol), 32) for protocol in (0, 2, 4)]
        self.starts = [self._starts(data) for data, _ in self.bases]
        self.programs = programs(str(self.canary))

    def _starts(self, data: bytes) -> list[int]:
        """Where each instruction starts."""
        return [place for _, _, place in pickletools.genops(data) if place is not None]

    def mutate(self, random: Random) -> str:
        number = random.randrange(len(self.bases))
        data, self.side = self.bases[number]
        starts = self.starts[number]
        kind = random.choice(
            ("bytes", "numbers", "instruction", "program", "program", "splice", "near", "near", "pieces")
        )
        at = random.choice(starts)
        if kind == "bytes":
            data = damaged(data, random)
        elif kind == "numbers":
            size = random.choice((1, 2, 4, 8))
            data = (
                data[: at + 1] + (random.choice(NUMBERS) % 256**size).to_bytes(size, "little") + data[at + 1 + size :]
            )
        elif kind == "instruction":
            code = random.choice(CODES)
            data = data[:at] + code + data[at + random.choice((0, 1)) :]
        elif kind == "program":
            data = data[:at] + random.choice(self.programs) + random.choice((b"", b"0")) + data[at:]
        elif kind == "splice":
            other = random.randrange(len(self.bases))
            data = data[:at] + self.bases[other][0][random.choice(self.starts[other]) :]
        elif kind == "near":
            end = min(len(data), at + random.choice((1, 4, 20)))
            data = data[:at] + damaged(data[at:end], random) + data[end:]
        else:
            pieces = [random.choice((*CODES, *self.programs)) for _ in range(random.randrange(40))]
            data = (
                random.choice((b"}", b"", b"\x80\x04}(", b"\x80\x02}")) + b"".join(pieces) + random.choice((b".", b""))
            )
        self.path.write_bytes(data)
        return f"{kind} of base {number} at {at}: {data[max(0, at - 20) : at + 60]!r}"

    def read(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        try:
            prepare(str(self.path), "decoded", "store", self.side, str(self.root), True)
            verify(str(self.path), "decoded", self.side, str(self.root), True)
            self._compare()
        finally:
            if self.canary.exists():
                self.canary.unlink()
                raise Wrong("the program in it ran")

    def _compare(self) -> None:
        part = open_dataset(str(self.path), image_size=self.side, root=self.root, quiet=True).unlabelled
        assert part is not None and part.ids is not None
        with self.unheard():
            try:
                content = Plain(io.BytesIO(self.path.read_bytes()), encoding="bytes").load()
            except Exception:  # NumPy raises SystemError, too
                return
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        images = content["data"]
        if images.ndim == 2:
            images = images.reshape(-1, 3, 32, 32)
        if images.shape[3] != 3:
            images = images.transpose(0, 2, 3, 1)
        if not np.array_equal(part.images, images):
            raise Wrong("the images are others")
        ids = content.get("ids")
        ids = range(len(images)) if ids is None else ids
        texts = [id.decode("utf-8", "replace") if isinstance(id, bytes) else id for id in ids]
        shown = [id.encode(errors="backslashreplace").decode() if isinstance(id, str) else id for id in texts]
        if part.ids.tolist() != shown:
            raise Wrong(f"the ids are {part.ids.tolist()!r:.100} and not {shown!r:.100}")
