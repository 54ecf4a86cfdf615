"""Betons whose files somebody damaged or made up. Read by what `fastres train` with `data.loader = "ffcv"` opens, by
its loader, and by `fastres data verify`.

Wrong is a beton that opens and gives an image that is not the store's, unless `verify` says that it was changed: pixels
that are no JPEG of a store of pixels are checked on demand.
"""

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np

from fastres.data import Dataset, open_dataset
from fastres.data.loaders.ffcv import beton_pixels
from fastres.data.store import beton
from fastres.errors import UserError
from tests.fuzz.children import Kind, Wrong
from tests.fuzz.damage import changed_json, damaged, exchanged, replaced, restore
from tests.fuzz.images import SIDE, sound_images

STORES = ("decoded", "encoded")


class Betons(Kind):
    """Opening of betons, and the images that FFCV's loader reads."""

    name = "betons"
    executes = frozenset({"exec", "pickle.find_class"})  # FFCV's reader makes code; Numba's cache holds pickles

    def write(self) -> None:
        for name, data in sound_images().items():
            path = self.place / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for store in STORES:
            beton.prepare(self._dataset(store), quiet=True)
            folder = beton.beton_folder(self._dataset(store))
            shutil.copytree(folder, self.place / "sound" / folder.name)

    def _dataset(self, store: str) -> Dataset:
        source, root = str(self.place / "source"), self.place / "root"
        return open_dataset(source, store=store, image_size=SIDE, root=root, quiet=True)  # type: ignore[arg-type]

    def open(self) -> None:
        self.datasets = {store: self._dataset(store) for store in STORES}
        self.folders = {store: beton.beton_folder(dataset) for store, dataset in self.datasets.items()}
        for folder in self.folders.values():  # of what the process before this one damaged last
            restore(folder, self.place / "sound" / folder.name)
        self.images = {
            store: {name: np.asarray(part.images[:]) for name, part in dataset.parts.items()}
            for store, dataset in self.datasets.items()
        }
        for store in STORES:  # its first images are read by code that is compiled then
            self.store, self.heal = store, False
            self.read()

    def mutate(self, random: Random) -> str:
        folder = self.folders[self.store]
        restore(folder, self.place / "sound" / folder.name)
        self.store = random.choice(STORES)
        folder = self.folders[self.store]
        self.heal = random.random() < 0.05
        manifest = folder / "manifest.json"
        files = sorted(path for path in folder.iterdir() if path != manifest)
        path = random.choice(files)
        kind = random.choice(
            ("bytes", "index", "index", "made up", "made up", "manifest", "manifest", "replaced", "swapped")
        )
        if kind == "bytes":
            path.write_bytes(damaged(path.read_bytes(), random))
        elif kind in ("index", "made up"):
            data = path.read_bytes()
            end = random.choice((200, 4000)) if path.suffix == ".beton" else len(data)
            start = random.choice((0, max(0, len(data) - 500)))
            part = damaged(data[start : start + end], random)
            path.write_bytes(data[:start] + part + data[start + end :])
            if kind == "made up":
                self._sized_again(path)
        elif kind == "manifest":
            path = manifest
            path.write_bytes(changed_json(path.read_text(), random))
        elif kind == "replaced":
            path = random.choice((path, manifest))
            kind += f" by {replaced(path, random)}"
        else:
            kind += f" with {exchanged(path, random.choice(files))}"
        return f"{self.store} {kind} {path.name}"

    def _sized_again(self, path: Path) -> None:
        """Give the manifest the size and the digests of what `path` is now, as somebody would who made it up."""
        from fastres.data.compat.ffcv import import_ffcv

        manifest = json.loads((path.parent / "manifest.json").read_text())
        entry = manifest["files"][path.name]
        entry["bytes"], entry["sha256"] = path.stat().st_size, beton._sha256(path)
        if path.suffix == ".beton":
            try:
                entry["index_sha256"] = beton._index(import_ffcv(), path).sha256
            except ValueError:  # it has no index any more
                return
        (path.parent / "manifest.json").write_text(json.dumps(manifest))

    def read(self) -> None:
        dataset = self.datasets[self.store]
        try:
            store = beton.open_beton(dataset)
            different = []
            for name, part in store.parts.items():
                rows = np.arange(len(part), dtype=np.int64)
                if not np.array_equal(beton_pixels(part).read(rows).numpy(), self.images[self.store][name]):
                    different.append(name)
            problems = beton.verify(dataset)
        except UserError:
            if self.heal:
                beton.prepare(dataset, quiet=True)
                if beton.verify(dataset):
                    raise Wrong("`data prepare` does not make it sound") from None
            raise
        if different and (self.store == "encoded" or not problems):
            raise Wrong(f"images of {different[0]} changed")
