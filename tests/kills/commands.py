"""Commands that are killed, and what each leaves when nobody does: when somebody does, it may leave nothing else."""

import hashlib
import json
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from tests.forks import Forks

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = """
[data]
image_size = 8
validation_share = 0.2

[model]
blocks = [1]
channels = [4]
strides = [2]
dropout = 0.1

[optimizer]
name = "adamw"
lr = 0.01

[train]
epochs = {epochs}
batch_size = 16
precision = "fp32"
compile = false
checkpoint_seconds = 0

[record]
report = {report}
"""
GRID = """
[sweep.grid]
"train.seed" = [0, 1]
"optimizer.lr" = [0.01, 0.1]
"""
SEARCH = """
[sweep.search]
trials = 4
sampler = "random"

[sweep.search.parameters]
"optimizer.lr" = { low = 1e-3, high = 0.3, log = true }
"model.channels" = [[4], [8]]
"""
TIMES = (
    "seconds",
    "seconds_shown",
    "commit",
    "dirty",
    "compiled_from_cache",
    "images_per_second",
    "input_stall",
    "peak_memory_bytes",
    "pareto_front",
)
"""Keys, or their ends, of what no two runs have in common."""
PICTURED = {".png", ".html", ".md"}
"""Endings of files that show such values."""


def run(arguments: list[str], event: int | None = None, count: Path | None = None) -> int:
    """The command line's exit code. It is killed before its `event`-th change of the file system, counted from 0; how
    many there were goes into the file `count`."""
    from fastres.cli import app

    os.fsync = lambda descriptor: None  # the kernel loses nothing when a process dies, and this is what takes long
    changes = _Changes(event)
    sys.addaudithook(changes)
    sys.argv, code = ["fastres", *arguments], 0
    try:
        app.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    if count is not None:
        count.write_text(str(changes.seen))
    return code


class _Changes:
    """Counts what changes the file system, and kills the process before one of these changes."""

    def __init__(self, event: int | None) -> None:
        self.seen, self._event = 0, event

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "sqlite3.connect"):
            return
        if self.seen == self._event:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1


class Command(ABC):
    """A command with all its arguments. `place` is a folder of its own."""

    name: ClassVar[str]
    done: ClassVar[str] = ""
    """File of the output that says that all is done: the command refuses to run once more."""

    def __init__(self, place: Path) -> None:
        self.place, self.source, self.out = place, place / "source", place / "work" / "out"
        self.recipe = place / "recipe.toml"

    def write(self, forks: Forks) -> None:
        """What the command needs."""
        write_source(self.source)
        self._write_recipe()

    def _write_recipe(self, more: str = "", epochs: int = 4, report: bool = False) -> None:
        self.recipe.write_text(RECIPE.format(epochs=epochs, report=str(report).lower()) + more)

    def settings(self) -> list[str]:
        return ["--set", f"data.source={self.source}", "--set", f"data.root={self.place / 'root'}", "--device", "cpu"]

    @abstractmethod
    def arguments(self) -> list[str]:
        """The command that goes on, or begins."""

    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.done) and (self.out / self.done).is_file()

    def result(self) -> dict[str, Any]:
        """Every file of the folder of the output by its name, locks left out: what is in it, so far as no clock has a
        part in that."""
        return dict(files_below(self.out.parent))


def write_source(folder: Path, train: int = 40, test: int = 12) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for number in range(2 * count):
            path = folder / part / f"class{number % 2}" / f"{number}.{'png' if number % 3 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = (0, 160) if number % 2 else (96, 256)
            Image.fromarray(random.integers(*colour, (8, 8, 3), np.uint8)).save(path)


def files_below(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name.endswith(".lock"):
            continue
        if path.suffix in (".json", ".jsonl"):
            yield name, [timeless(json.loads(line)) for line in json_of(path)]
        elif path.suffix in PICTURED or path.name in ("last.pt", "study.db"):
            yield name, "there"
        else:
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()


def json_of(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(content) for key, content in value.items() if not key.endswith(TIMES)}
    return [timeless(part) for part in value] if isinstance(value, list) else value


class Train(Command):
    """`fastres train`, gone on with by --resume as soon as there is a run."""

    name = "train"
    done = "summary.json"

    def _write_recipe(self, more: str = "", epochs: int = 6, report: bool = False) -> None:
        super()._write_recipe('[eval]\ntta = "mirror"\n', epochs)
        text = self.recipe.read_text()
        self.recipe.write_text(text.replace("[train]\n", '[train]\nema = 0.9\nbest = "val_loss"\nearly_stopping = 5\n'))

    def arguments(self) -> list[str]:
        if (self.out / "recipe.toml").is_file():
            return ["train", "--resume", str(self.out), "--device", "cpu"]
        return ["train", str(self.recipe), *self.settings(), "--out", str(self.out)]


class TrainWithPage(Train):
    """One with a page, which is drawn between the last epoch and the summary."""

    name = "train with a page"

    def _write_recipe(self, more: str = "", epochs: int = 2, report: bool = True) -> None:
        Command._write_recipe(self, more, epochs, report)


class Prepare(Command):
    """`fastres data prepare`, into a decoded store."""

    name = "prepare"
    options: ClassVar[list[str]] = []

    def write(self, forks: Forks) -> None:
        write_source(self.source, 300, 100)

    def arguments(self) -> list[str]:
        return ["data", "prepare", str(self.source), "--image-size", "8", "--root", str(self.out), *self.options]


class PrepareEncoded(Prepare):
    name = "prepare an encoded store"
    options: ClassVar[list[str]] = ["--store", "encoded"]


class PrepareBeton(Prepare):
    name = "prepare a beton"
    options: ClassVar[list[str]] = ["--store", "encoded", "--format", "beton"]


class Sweep(Command):
    """`fastres sweep` of four points."""

    name = "sweep"

    def _write_recipe(self, more: str = "", epochs: int = 2, report: bool = False) -> None:
        super()._write_recipe(GRID, epochs)

    def arguments(self) -> list[str]:
        return ["sweep", str(self.recipe), *self.settings(), "--out", str(self.out)]


class Search(Sweep):
    """`fastres sweep` of a search of four trials."""

    name = "search"

    def _write_recipe(self, more: str = "", epochs: int = 2, report: bool = False) -> None:
        Command._write_recipe(self, SEARCH, epochs)


class Speedrun(Command):
    """`fastres speedrun` of three runs."""

    name = "speedrun"
    done = "speedrun.json"

    def arguments(self) -> list[str]:
        whole = ["--set", "data.split=none", "--runs", "3"]
        return ["speedrun", str(self.recipe), *self.settings(), *whole, "--out", str(self.out)]


class Predict(Command):
    """`fastres predict` with a trained network."""

    name = "predict"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.run = place / "run"
        self.out = place / "work" / "predictions.csv"

    def write(self, forks: Forks) -> None:
        super().write(forks)
        self.out.parent.mkdir(exist_ok=True)
        trained = ["train", str(self.recipe), *self.settings(), "--out", str(self.run)]
        assert forks.run(run, trained, output=self.place / "train.log") == 0

    def arguments(self) -> list[str]:
        return ["predict", str(self.run), str(self.source), "--out", str(self.out), "--device", "cpu"]


class Compare(Command):
    """`fastres compare` of two runs."""

    name = "compare"

    def write(self, forks: Forks) -> None:
        super().write(forks)
        for seed in (0, 1):
            trained = ["train", str(self.recipe), *self.settings(), "--set", f"train.seed={seed}"]
            trained += ["--out", str(self.place / "runs" / str(seed))]
            assert forks.run(run, trained, output=self.place / "train.log") == 0

    def finished(self) -> bool:
        return (self.out / "compare.html").is_file() and not [*self.out.glob(".*")]

    def arguments(self) -> list[str]:
        return ["compare", str(self.place / "runs"), "--out", str(self.out)]


class Reproduce(Command):
    """`fastres reproduce` of one claim, whose recipe is the report's on a hundredth of its network."""

    name = "reproduce"

    def arguments(self) -> list[str]:
        small = ["--scale", "0.0004", "--set", "model.channels=[4,8,16,32]", "--set", "train.compile=false"]
        small += ["--set", f"data.root={self.place / 'root'}", "--set", "train.checkpoint_seconds=0"]
        asked = ["reproduce", "losses", "--recipes", str(RECIPES), "--source", str(self.source), "--device", "cpu"]
        return [*asked, "--seeds", "1", *small, "--out", str(self.out)]
