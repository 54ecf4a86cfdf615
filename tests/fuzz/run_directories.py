"""Run directories whose files somebody damaged or made up. Each file is read as the commands read it: `compare`,
`sweep`, `speedrun` and `reproduce` the JSON, `eval` and `predict` the network, `train --resume` the checkpoints, a
search its study.

Wrong is JSON that is accepted and read as other values than JSON's own reader finds there; a recipe as `recipes.py` has
it; and tensors, trials and facts about the network that are not exactly those that were written.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import torch
from torch import Tensor

from fastres.engine.memory import StartupTimer
from fastres.evaluation.trained import TrainedModel
from fastres.experiments.compare.compare import compare, facts
from fastres.experiments.reproduce.run import Begun
from fastres.experiments.speedrun.results import PLAN, ROWS, check_plan, read_rows
from fastres.experiments.sweep import search
from fastres.experiments.sweep.results import DIVERGED, read_point, summarise
from fastres.experiments.sweep.study import STUDY
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.runs.directory import read_recipe
from fastres.runs.environment import Environment
from fastres.runs.schema import (
    ENVIRONMENT,
    METRICS,
    SUMMARY,
    Corruptions,
    Failure,
    Round,
    SpeedrunPlan,
    SpeedrunRow,
    Summary,
    Sweep,
    read_epochs,
)
from fastres.training.loop import Run
from fastres.training.methods.transfer import read_weights
from fastres.training.run import train
from fastres.utils.json_files import LARGEST, Entry, write_lines
from tests.fuzz.children import Kind, Wrong
from tests.fuzz.damage import changed_json, damaged, replaced, restore
from tests.fuzz.images import SIDE, sound_images
from tests.fuzz.recipes import flat, same

TRAINED = """
[data]
image_size = 8
validation_share = 0.4

[model]
blocks = [1]
channels = [4]
strides = [2]

[optimizer]
name = "adamw"
lr = 0.01

[train]
epochs = 2
batch_size = 4
precision = "fp32"
compile = false
best = "val_loss"
ema = 0.9

[record]
report = false
"""
SEARCHED = """
[sweep.search]
trials = 2
sampler = "random"

[sweep.search.parameters]
"optimizer.lr" = { low = 1e-3, high = 0.3, log = true }
"model.channels" = [[4], [8]]
"""
SPEEDRUN = SpeedrunPlan(recipe_hash="0", runs=1, target=0.9, device=None, data="0")
TRANSFERRED = "transferred.pt"


def tensors_of(value: Any) -> list[Any]:
    """The leaves of nested containers, tensors as bytes."""
    if isinstance(value, Tensor):
        return [str(value.dtype), tuple(value.shape), bytes(value.contiguous().flatten().view(torch.uint8).tolist())]
    if isinstance(value, dict):
        return [part for key, content in value.items() for part in (key, *tensors_of(content))]
    if isinstance(value, (list, tuple)):
        return [part for content in value for part in tensors_of(content)]
    return [value]


def check_written(model: Entry, content: Any) -> None:
    """Raise Wrong unless each field that was given is what JSON's own reader finds, or None for what is not finite."""
    for key, value in model.to_json().items():
        if key == "version":
            continue
        written = content.get(key)
        if value is None and isinstance(written, float) and not abs(written) <= LARGEST:
            continue
        if not _as_written(value, written):
            raise Wrong(f"{key} is {value!r:.100} and not {written!r:.100}")


def _as_written(value: Any, written: Any) -> bool:
    if isinstance(value, dict) and isinstance(written, dict):
        return all(_as_written(content, written.get(key)) for key, content in value.items())
    if isinstance(value, list) and isinstance(written, list):
        return len(value) == len(written) and all(map(_as_written, value, written))
    return same(value, written)


class NothingThere(Exception):
    """A checkpoint or rows that there are not: what wrote them starts again."""


class RunDirectories(Kind):
    """Every file of a run directory, and of a folder of runs, that is read again."""

    name = "run directories"

    def write(self) -> None:
        for name, data in sound_images().items():
            path = self.place / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (self.place / "recipe.toml").write_text(TRAINED)
        (self.place / "search.toml").write_text(TRAINED + SEARCHED)
        sound = self.place / "sound"
        run = train(self._recipe(), out=sound / "run", device="cpu", quiet=True).run
        shutil.copytree(run, self.place / "other")
        torch.save(checkpoint.load_weights(run / checkpoint.FINAL)[0], run / TRANSFERRED)
        rounds = (Round(round=0, added=0, test_accuracy=0.5),)
        Summary.read(run / SUMMARY).updated(rounds=rounds).write(run / SUMMARY)
        shifted = {"mean_corruption_accuracy": 0.5, "severities": [1], "accuracy": {"fog": [0.5]}}
        Corruptions.model_validate(shifted).write(run / "shift.json")
        point = read_point(run, "run", "", {"optimizer.lr": 0.1})
        assert point is not None
        summarise([point], "test_accuracy", source="x").write(run / "sweep.json")
        SPEEDRUN.write(run / PLAN)
        row = SpeedrunRow(run=0, seed=0, test_accuracy=0.5, test_loss=1.0, seconds=1.0, compiled=False)
        write_lines(run / ROWS, [row])
        Begun(source="shapes10", scale=1.0, set=("a.b=1",), workers=1).write(run / "begun.json")
        Failure(error="the loss is not finite").write(self.place / DIVERGED)
        search.search(self._plan(), out=sound / "search", device="cpu", quiet=True)

    def _settings(self) -> list[str]:
        return [f"data.source={self.place / 'source'}", f"data.root={self.place / 'root'}"]

    def _recipe(self) -> Recipe:
        return Recipe.load(self.place / "recipe.toml", self._settings())

    def _plan(self) -> search.SearchPlan:
        return search.load(self.place / "search.toml", self._settings())

    def open(self) -> None:
        search.write_results = lambda *arguments: None  # the page of each study would take the longest
        self.work = self.place / "work"
        self.run, self.searched = self.work / "run", self.work / "search"
        restore(self.work, self.place / "sound")
        self.resumed = Run(read_recipe(self.run), "cpu", True, StartupTimer())
        self.plan = self._plan()
        self.readers: dict[str, Callable[[], Any]] = {
            SUMMARY: lambda: (self._compared(), read_point(self.run, "run", "", {})) and self._json(Summary, SUMMARY),
            METRICS: lambda: (self._compared(), read_point(self.run, "run", "", {})) and self._lines(METRICS),
            ENVIRONMENT: lambda: self._compared() and self._json(Environment, ENVIRONMENT),
            "shift.json": lambda: self._json(Corruptions, "shift.json"),
            "sweep.json": lambda: self._json(Sweep, "sweep.json"),
            "begun.json": lambda: self._json(Begun, "begun.json"),
            PLAN: lambda: check_plan(self.run, SPEEDRUN),
            ROWS: lambda: self._lines(ROWS),
            DIVERGED: lambda: read_point(self.run, "run", "", {}),
            "recipe.toml": self._recipe_toml,
            checkpoint.LAST: self._last,
            checkpoint.BEST: lambda: self._network(checkpoint.BEST),
            checkpoint.FINAL: self._final,
            TRANSFERRED: lambda: read_weights(str(self.run / TRANSFERRED)),
            "transferred.safetensors": lambda: read_weights(str(self.run)),
            STUDY: lambda: search.search(self.plan, out=self.searched, device="cpu", quiet=True).facts,
        }
        exact = (checkpoint.LAST, checkpoint.BEST, checkpoint.FINAL, TRANSFERRED, "transferred.safetensors", STUDY)
        # Copied at once: the next reader may load into the same tensors.
        self.expected = {name: tensors_of(self.readers[name]()) for name in exact}
        self.changed = [self.searched]

    def _compared(self) -> Any:
        return facts(compare([self.run, self.place / "other"]))

    def _json(self, kind: type[Any], name: str) -> None:
        check_written(kind.read(self.run / name), json.loads((self.run / name).read_bytes()))

    def _lines(self, name: str) -> None:
        if not (self.run / name).exists():
            raise NothingThere
        rows: Iterable[Entry] = read_rows(self.run) if name == ROWS else read_epochs(self.run)
        for row, line in zip(rows, (self.run / name).read_bytes().splitlines(), strict=True):
            check_written(row, json.loads(line))

    def _recipe_toml(self) -> None:
        import tomllib

        self._compared()
        recipe = read_recipe(self.run).model_dump()
        for key, value in flat(tomllib.loads((self.run / "recipe.toml").read_text(encoding="utf-8-sig"))):
            found: Any = recipe
            for name in key:
                found = found[name]
            if not same(found, value):
                raise Wrong(f"{'.'.join(key)} is {found!r:.100} and not {value!r:.100}")

    def _last(self) -> Any:
        rows = self.resumed.restore(self.run)
        if not (self.run / checkpoint.LAST).is_file():
            raise NothingThere
        state = (self.resumed.step.state(), self.resumed.at.state(), self.resumed.epoch_metrics.sums)
        return state, [row.to_json() for row in rows]

    def _network(self, name: str) -> Any:
        weights, _ = checkpoint.load_weights(self.run / name)
        self.resumed.step.averaged.load_state_dict(weights)
        return self.resumed.step.averaged.state_dict()

    def _final(self) -> Any:
        model = TrainedModel.load(self.run, "cpu")
        black = model.augment.normalize(torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8))
        white = model.augment.normalize(torch.full((1, SIDE, SIDE, 3), 255, dtype=torch.uint8))
        return model.module.state_dict(), model.classes, model.image_size, black, white

    def mutate(self, random: Random) -> str:
        for path in self.changed:
            restore(path, self.place / "sound" / path.relative_to(self.work))
        if (self.run / DIVERGED).is_dir():
            (self.run / DIVERGED).rmdir()
        (self.run / DIVERGED).unlink(missing_ok=True)
        self.file = random.choice([*self.readers])
        path = (self.searched if self.file == STUDY else self.run) / self.file
        if self.file == "transferred.safetensors":
            path = self.run / checkpoint.FINAL
        self.changed = [self.searched if self.file == STUDY else path]  # a search writes more than its study
        if self.file == DIVERGED:
            shutil.copy(self.place / DIVERGED, path)
            self.changed.clear()
        if random.random() < 0.06:
            return f"{self.file} {replaced(path, random)}"
        if path.suffix in (".json", ".jsonl"):
            path.write_bytes(changed_json(path.read_text(), random))
            return f"{self.file} changed"
        path.write_bytes(damaged(path.read_bytes(), random))
        return f"{self.file} damaged"

    def read(self) -> None:
        try:
            found = self.readers[self.file]()
        except NothingThere:
            return
        expected = self.expected.get(self.file)
        if expected is not None and tensors_of(found) != expected:
            raise Wrong(f"{self.file} gives other values")
