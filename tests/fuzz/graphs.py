"""Kept graphs, which are code: their files damaged, made up, replaced by links, or writable by others. Read by what the
first step of a training calls, `compile_cache.get_or_compile`; a refused graph is compiled anew.

Wrong is a graph that is taken although a file is not the one that was kept, was added or is missing, is a link, or lies
where others can write; or that computes something else.
"""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from fastres.engine import compile_cache, cpp_compiler
from fastres.errors import UserError
from tests.fuzz.children import Kind, Wrong
from tests.fuzz.damage import changed_json, damaged, exchanged, replaced, restore

OTHERS = 0o002


class Anew(Exception):
    """The kept graph is refused: compiling begins."""


class _StandIn:
    """What TorchInductor's compiled functions have."""

    serialized_data = b"the graph" * 50

    def disable_guard_check(self) -> None:
        """It has none."""

    def guard_check(self, owner: Any, images: Any) -> bool:
        return True

    def serialize(self) -> "_StandIn":
        return self

    def __call__(self, owner: Any, images: Any) -> Any:
        return owner._function(images)


class Graphs(Kind):
    """The graph of a small network, whose folder is damaged."""

    name = "kept graphs"
    compiles = True
    """Whether the graph is TorchInductor's, and not the stand-in that takes no half minute to make."""
    refusals = (Anew, compile_cache.CacheUnavailable, UserError)  # Compiled goes on without the cache, and says why
    executes = frozenset({"exec", "pickle.find_class", "ctypes.dlopen"})

    def write(self) -> None:
        self._enter()
        self._obtain()
        (self.place / "cache").rename(self.place / "sound")

    def _enter(self) -> None:
        os.environ["XDG_CACHE_HOME"] = str(self.place / "cache")
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
        os.environ["HOME"] = tempfile.tempdir = str(self.place / "home")  # where it may go instead
        Path(tempfile.tempdir).mkdir(exist_ok=True)
        torch._inductor.config.cpp_cache_precompile_headers = False  # 6 s for a single file
        torch.manual_seed(0)
        self.network, self.images = nn.Linear(3, 2), torch.rand(4, 3)
        if not self.compiles:
            self._stand_in()

    def _stand_in(self) -> None:
        """Instead of TorchInductor: a graph of a few files."""

        def compiled(function: Any, **options: Any) -> Any:
            folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
            for name in ("ab/c.py", "ab/c.so", "de/f.cpp"):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(name.encode() * 50)
            return SimpleNamespace(aot_compile=lambda arguments: _StandIn())

        torch.compile = compiled  # type: ignore[assignment]
        compile_cache._load = lambda data: _StandIn()

    def _obtain(self) -> Any:
        return compile_cache.get_or_compile(self._function, (self.images,), self.network, "fuzz")

    def _function(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images).relu().exp()

    def open(self) -> None:
        self._enter()
        self.cache = self.place / "cache"
        restore(self.cache, self.place / "sound")
        self.root = compile_cache.root()
        self.folder = next(path.parent for path in self.root.glob("*/manifest.json"))
        self.expected = self._function(self.images)
        graph = self._obtain()
        assert graph.from_cache and torch.equal(graph(self.images), self.expected)
        self.sound = self._contents()
        self.files = json.loads((self.folder / "manifest.json").read_text())["files"]
        assert cpp_compiler.compiler_fault() is None  # what a process that compiles anew tries first, once

        def refuse(*arguments: Any, **options: Any) -> None:
            raise Anew

        torch.compile = refuse

    def _contents(self) -> dict[str, bytes | str]:
        """The files of the graph: their bytes, or that they are none; locks and the manifest left out."""
        found: dict[str, bytes | str] = {}
        for path in sorted(self.folder.rglob("*")) if self.folder.is_dir() else ():
            if path.is_symlink() or (not path.is_dir() and not path.is_file()):
                found[str(path.relative_to(self.folder))] = "no file"
            elif path.is_file() and path.name != "manifest.json" and path.suffix != ".lock":
                huge = path.stat().st_size > 10**9
                found[str(path.relative_to(self.folder))] = "huge" if huge else path.read_bytes()
        return found

    def _tampered(self) -> str | None:
        """Why the graph must be refused."""
        if self.folder.is_symlink() or self._contents() != self.sound:
            return "its files are others"
        manifest = self.folder / "manifest.json"
        try:
            if manifest.stat().st_size > 10**9 or json.loads(manifest.read_bytes())["files"] != self.files:
                return "its list is another"
        except (OSError, ValueError, KeyError, TypeError):
            return "it has no list"
        above = {*(self.folder, *self.folder.parents), *(real := self.folder.resolve(), *real.parents)}
        # In a folder that nobody else can enter, the modes of files do not matter.
        inside = [path for path in self.folder.rglob("*") if path.is_dir() or self.folder.stat().st_mode & 0o011]
        for path in (*inside, *above):
            status = path.stat()
            sticky = path.is_dir() and status.st_mode & 0o1000 and path not in (self.root, *self.root.rglob("*"))
            if status.st_mode & OTHERS and not sticky:
                return f"others can write {path.relative_to(self.place) if path.is_relative_to(self.place) else path}"
            if status.st_uid not in (0, os.geteuid()):
                return "another user owns it"
        return None

    def mutate(self, random: Random) -> str:
        moved = self.place / "moved"
        if moved.is_dir():
            shutil.rmtree(moved)
        moved.unlink(missing_ok=True)
        (self.place / "canary").unlink(missing_ok=True)
        restore(self.cache, self.place / "sound")
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".lock")
        path, manifest = random.choice(files), self.folder / "manifest.json"
        kind = random.choice(
            ("bytes", "bytes", "manifest", "manifest", "replaced", "mode", "mode", "link", "more", "swap", "beside")
        )
        if kind == "bytes":
            path.write_bytes(damaged(path.read_bytes(), random))
        elif kind == "manifest":
            path = manifest
            text = json.loads(path.read_text())
            if random.random() < 0.4:
                self._list_changed(text["files"], random)
                path.write_text(json.dumps(text))
            else:
                path.write_bytes(changed_json(path.read_text(), random))
        elif kind == "replaced":
            kind += f" by {replaced(path, random)}"
        elif kind == "mode":
            path = random.choice((path, self.folder, self.root, self.root.parent, self.cache))
            mode = random.choice((0o777, 0o775, 0o666, 0o1777, 0o770, 0o707, 0o700, 0o600, 0o755))
            path.chmod(mode)
            kind += f" {mode:o}"
            if os.geteuid() == 0 and random.random() < 0.3:
                os.chown(path, 65534, 65534)
                kind += " of nobody"
        elif kind == "link":
            path = random.choice((path, path.parent, self.folder, self.root, self.root.parent, manifest))
            path.rename(self.place / "moved")
            path.symlink_to(self.place / "moved")
        elif kind == "more":
            name = random.choice(
                ("x.py", "graph.so", "ab/x.py", "__init__.py", "sitecustomize.py", "conftest.py", "x.bin")
            )
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"open({str(self.place / 'canary')!r}, 'w')\n")
        elif kind == "swap":
            kind += f" with {exchanged(path, random.choice(files))}"
        else:
            beside = [each for each in self.root.iterdir() if each.is_file()]
            path = random.choice((*beside, self.root / f"{self.folder.name[:2]}.lock", self.root / "headers.lock"))
            path.write_bytes(random.randbytes(20))
            kind += f", {replaced(path, random)}"
        return f"{kind} {path.relative_to(self.place)}"

    def _list_changed(self, files: dict[str, Any], random: Random) -> None:
        name = random.choice([*files])
        entry = files.pop(name)
        other = random.choice(
            ("nothing", "../../../sound/x", "/etc/hostname", "./" + name, name + "/", "", ".", "x" * 300, "\0")
        )
        if other != "nothing":
            files[other] = entry

    def read(self) -> None:
        tampered = self._tampered()
        graph = self._obtain()
        if not graph.from_cache:
            raise Wrong("it was compiled")
        if tampered is not None:
            raise Wrong(f"taken although {tampered}")
        seconds = graph.cold_seconds
        if seconds is not None and not (type(seconds) in (int, float) and 0 <= seconds < math.inf):
            raise Wrong(f"its seconds are {seconds!r:.50}")
        if not torch.equal(graph(self.images), self.expected):
            raise Wrong("it computes something else")
        if (self.place / "canary").exists():
            raise Wrong("a file that is none of it ran")


class GraphsInSample(Graphs):
    """A graph of a stand-in for TorchInductor."""

    compiles = False
