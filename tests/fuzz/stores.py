"""Prepared stores, decoded and encoded, whose files somebody damaged or made up. Read by `fastres data info`, `verify`
and what `train`, `eval` and `predict` open; what is refused is put right by `fastres data prepare`, as messages say.

Wrong is a store that opens with another label, class, name, mean, deviation or size than it had, or whose image is
another, unless `verify` says that it was changed: pixels of a decoded store are checked on demand.
"""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fastres.cli.data import info, prepare
from fastres.data import Dataset, open_dataset
from fastres.data import verify as problems_of
from fastres.errors import UserError
from tests.fuzz.children import Kind, Wrong
from tests.fuzz.damage import changed_json, damaged, exchanged, replaced, restore
from tests.fuzz.images import SIDE, sound_images, tar_of

SOURCES = {"folder": "decoded", "images.tar": "decoded", "folder-files": "encoded", "files.tar": "encoded"}
"""Each with the kind of its store."""


def facts(dataset: Dataset) -> dict[str, Any]:
    """All values of a data set that decide a result, the images last."""
    parts = {name: getattr(dataset, name) for name in ("train", "test", "unlabelled")}
    found: dict[str, Any] = {
        "classes": dataset.classes,
        "size": dataset.image_size,
        "mean": dataset.mean,
        "std": dataset.std,
    }
    for name, part in parts.items():
        found[f"{name} labels"] = part and part.labels is not None and part.labels.tolist()
        found[f"{name} ids"] = part and part.ids is not None and part.ids.tolist()
    found["images"] = {name: part and np.asarray(part.images[:]).tobytes() for name, part in parts.items()}
    return found


class Stores(Kind):
    """`data info`, `verify` and opening of stores."""

    name = "stores"

    def write(self) -> None:
        files = sound_images()
        for source, store in SOURCES.items():
            path = self.place / "sources" / source
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_bytes(tar_of(files))
            else:
                for name, data in files.items():
                    (path / name).parent.mkdir(parents=True, exist_ok=True)
                    (path / name).write_bytes(data)
            self._open(source, store)
        (self.place / "root" / "stores").rename(self.place / "sound")

    def _open(self, source: str, store: Any) -> Dataset:
        path = str(self.place / "sources" / source)
        return open_dataset(path, store=store, image_size=SIDE, root=self.place / "root", quiet=True)

    def open(self) -> None:
        self.stores = self.place / "root" / "stores"
        restore(self.stores, self.place / "sound")
        self.folders = {source: self._open(source, store).path for source, store in SOURCES.items()}
        self.expected = {source: facts(self._open(source, store)) for source, store in SOURCES.items()}
        self.source = "folder"

    def mutate(self, random: Random) -> str:
        restore(self.folders[self.source], self.place / "sound" / self.folders[self.source].name)
        self.source = random.choice([*SOURCES])
        folder = self.folders[self.source]
        self.heal = random.random() < 0.2
        files = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
        kind = random.choice(
            ("bytes", "bytes", "header", "manifest", "manifest", "made up", "replaced", "swapped", "more")
        )
        path = folder / "manifest.json" if kind == "manifest" else random.choice(files)
        if kind == "bytes":
            path.write_bytes(damaged(path.read_bytes(), random))
        elif kind == "header":
            path.write_bytes(self._header_changed(path.read_bytes(), random))
        elif kind == "manifest":
            path.write_bytes(changed_json(path.read_text(), random))
        elif kind == "made up":
            change = random.choice((self._header_changed, damaged, self._huge))
            path.write_bytes(change(path.read_bytes(), random))
            self._sized_again(folder, path)
        elif kind == "replaced":
            path = random.choice((path, folder / "manifest.json", folder))
            if path == folder:
                path.rename(folder.with_name("moved"))
                path.touch()
            kind += f" by {replaced(path, random)}"
            shutil.rmtree(folder.with_name("moved"), ignore_errors=True)
        elif kind == "swapped":
            kind += f" with {exchanged(path, random.choice(files))}"
        else:
            (folder / random.choice(("x.npy", "train_labels.npy.tmp", "unlabelled_images.npy"))).write_bytes(
                path.read_bytes()
            )
        return f"{self.source} {kind} {path.name}"

    def _header_changed(self, data: bytes, random: Random) -> bytes:
        """An array whose header says something else."""
        size = 10 + int.from_bytes(data[8:10], "little")
        shapes = (
            "(1099511627776,)",
            "(8, 1099511627776, 3, 3)",
            "(0,)",
            "()",
            "(-1,)",
            "(4, 8, 8, 3)",
            "(1,)",
            "(2, 2)",
        )
        kinds = (
            "'|O'",
            "'<i8'",
            "'|u1'",
            "'<f8'",
            "'<U9'",
            "'|V8'",
            "'>i8'",
            "'<M8[s]'",
            "[('a', '<i8')]",
            "1 + 1",
            "'|i1'",
        )
        header = (
            f"{{'descr': {random.choice(kinds)}, 'fortran_order': {random.choice(('False', 'True', '0'))}, "
            f"'shape': {random.choice(shapes)}, }}"
        )
        made = random.choice((header, header, "{}", "[" * 2000, "__import__('os').system('touch canary')", "x" * 65000))
        return data[:8] + len(made).to_bytes(2, "little") + made.encode() + data[size:]

    def _huge(self, data: bytes, random: Random) -> bytes:
        import pickle

        return pickle.dumps({"a": [1] * random.choice((1, 1000))})

    def _sized_again(self, folder: Path, path: Path) -> None:
        """Give the manifest the size, and shape and type if it has them, of what `path` is now."""
        manifest = json.loads((folder / "manifest.json").read_text())
        entry = manifest["files"][path.name]
        entry["bytes"] = path.stat().st_size
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            entry["shape"], entry["dtype"] = list(array.shape), array.dtype.str
        except Exception:  # it has none
            entry["shape"] = [1 << 43]
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def read(self) -> None:
        path, store, root = str(self.place / "sources" / self.source), SOURCES[self.source], str(self.place / "root")
        try:
            info(path, store, SIDE, root, True)
            dataset = self._open(self.source, store)
            found, expected = facts(dataset), self.expected[self.source]
            different = [key for key in expected if found[key] != expected[key]]
            if different and (different != ["images"] or store == "encoded"):
                raise Wrong(f"its {different[0]} changed")
            problems = problems_of(path, store=store, image_size=SIDE, root=root)
            if different and not problems:
                raise Wrong("an image changed, and verify finds nothing")
        except UserError:
            if self.heal:
                self._check_healed(path, store, root)
            raise
        if not (Path(root) / "stores").is_dir():
            raise Wrong("the store is gone")

    def _check_healed(self, path: str, store: str, root: str) -> None:
        """The remedy that messages name makes the store that it was."""
        prepare(path, store, "store", SIDE, root, True)
        if facts(self._open(self.source, store)) != self.expected[self.source]:
            raise Wrong("`data prepare` does not make it sound")
        if [*self.stores.glob(".*.tmp")]:
            raise Wrong("`data prepare` leaves a temporary folder")
