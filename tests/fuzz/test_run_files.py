"""Run files that somebody damaged or made up: read, or refused in a line, by every command that reads them."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastres.errors import UserError
from fastres.experiments.compare.compare import compare, facts
from fastres.experiments.speedrun.results import PLAN, ROWS, check_plan, read_rows
from fastres.experiments.sweep.results import DIVERGED, read_point, summarise
from fastres.recipe import Recipe
from fastres.runs.environment import Environment
from fastres.runs.schema import (
    ENVIRONMENT,
    METRICS,
    SUMMARY,
    Best,
    Corruptions,
    Epoch,
    Failure,
    Round,
    SpeedrunPlan,
    SpeedrunRow,
    Summary,
    Sweep,
)
from fastres.utils.json_files import write_lines

VALUES = (
    *(None, True, -1, 0, 1, 2**63, 10**400, 0.5, -0.0, 1e308, -1e308, "", "x" * 1000, "\ud800", [], {}, [[]], {"a": 1}),
    *("NaN", "Infinity"),
)
"""Put in the place of any value; the last two as JSON's dialects write them, without quotes."""
RECIPE = Recipe()


def write_run(run: Path) -> None:
    """A run directory with every file that is read, and with what a sweep and a speedrun add."""
    rows = [
        Epoch(epoch=epoch, step=epoch, lr=0.1, train_loss=1.0, train_accuracy=0.5, val_loss=1.0, val_accuracy=0.5)
        for epoch in (1, 2)
    ]
    write_lines(run / METRICS, rows)
    Environment(device="cpu", cpu_model="a processor", isa=["avx2"]).write(run / ENVIRONMENT)
    Summary(
        stopped="completed",
        test_accuracy=0.5,
        test_loss=1.0,
        test_images=100,
        best=Best(metric="val_loss", epoch=2, value=1.0),
        epochs=2,
        seconds=1.0,
        rounds=(Round(round=0, added=0, test_accuracy=0.5),),
    ).write(run / SUMMARY)
    Corruptions(mean_corruption_accuracy=0.5, severities=[1], accuracy={"fog": [0.5]}).write(run / "shift.json")
    point = read_point(run, "run", "", {"optimizer.lr": 0.1})
    assert point is not None
    summarise([point], "test_accuracy", source="x").write(run / "sweep.json")
    SpeedrunPlan(recipe_hash="0", runs=1, target=0.9, device=None, data="0").write(run / PLAN)
    write_lines(run / ROWS, [SpeedrunRow(run=0, seed=0, test_accuracy=0.5, test_loss=1.0, seconds=1.0, compiled=False)])


def compared(run: Path) -> object:
    return facts(compare([run, run.with_name("other")]))


READERS: dict[str, Callable[[Path], object]] = {
    SUMMARY: lambda run: (compared(run), read_point(run, "run", "", {})),
    METRICS: lambda run: (compared(run), read_point(run, "run", "", {})),
    ENVIRONMENT: compared,
    "shift.json": lambda run: Corruptions.read(run / "shift.json"),
    "sweep.json": lambda run: Sweep.read(run / "sweep.json"),
    PLAN: lambda run: check_plan(run, SpeedrunPlan(recipe_hash="0", runs=1, target=0.9, device=None, data="0")),
    ROWS: read_rows,
    DIVERGED: lambda run: read_point(run, "run", "", {}),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values within `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, content in inside for place in places(content, (*at, key)))]


def mutated(text: str, source: random.Random) -> bytes:
    """`text` with a value replaced, removed or doubled, or with bytes changed, cut off or added."""
    if source.random() < 0.3:
        data = bytearray(text.encode())
        for _ in range(source.randint(1, 4)):
            place = source.randrange(len(data))
            data[place : place + source.choice((0, 1, 1, 50))] = source.randbytes(source.choice((0, 1, 3)))
        return bytes(data)
    lines = [json.loads(line) for line in text.splitlines()] if text.count("}\n{") else [json.loads(text)]
    line = source.randrange(len(lines))
    *above, last = source.choice(places(lines[line])[1:])
    node = lines[line]
    for key in above:
        node = node[key]
    if source.random() < 0.2:
        del node[last]
    else:
        node[last] = source.choice(VALUES)
    made = "\n".join(json.dumps(each) for each in lines)
    for word in ("NaN", "Infinity"):
        made = made.replace(f'"{word}"', word)
    return made.encode(errors="surrogatepass")


@pytest.mark.parametrize(
    "count", [25, pytest.param(5000 // len(READERS), marks=(pytest.mark.slow, pytest.mark.fuzz))], ids=["sample", "all"]
)
@pytest.mark.parametrize("name", READERS)
def test_damage_is_read_or_told(name: str, count: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for folder in (run, tmp_path / "other"):
        folder.mkdir()
        (folder / "recipe.toml").write_text(RECIPE.to_toml())
        write_run(folder)
    if name == DIVERGED:
        Failure(error="the loss is not finite").write(run / DIVERGED)
    text = (run / name).read_text()
    READERS[name](run)
    ends: Counter[str] = Counter()
    for seed in range(count):
        (run / name).write_bytes(mutated(text, random.Random(seed)))
        try:
            READERS[name](run)
            ends["read"] += 1
        except UserError as error:
            assert len(str(error).splitlines()) <= 2, error
            ends["told"] += 1
    assert ends["told"] > 0.2 * count, ends
