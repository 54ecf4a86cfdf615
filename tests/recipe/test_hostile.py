"""Recipes that nobody means: each is a line within a second, whatever is in the file."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastres.errors import UserError
from fastres.experiments.sweep.plan import load as load_sweep
from fastres.models import build
from fastres.optim import factor, total_steps
from fastres.recipe import Recipe
from fastres.utils.terminal import brief

MOST = 1500
"""Characters of a message: two lines, of which one is the user's own value and the other names nine more faults."""


@contextmanager
def refused() -> Iterator[None]:
    """The block raises a UserError of one short line, in less than a second of the processor's."""
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        yield
    assert time.process_time() - started < 1
    message = str(caught.value)
    check_message(message)


def check_message(message: str) -> None:
    lines = message.split("\n")
    assert len(lines) <= 2 and all(line.isprintable() for line in lines) and len(message) <= MOST, message


DEEP = "[" * 10_000 + "]" * 10_000
TEXTS = {
    "a number of 5,000 digits": "[train]\nepochs = " + "9" * 5000,
    "a number of 4,000 digits": "[train]\nbatch_size = " + "9" * 4000,
    "a number of 50,000 hexadecimal digits": "[train]\nbatch_size = 0x" + "f" * 50_000,
    "lists in lists": f"[model]\nblocks = {DEEP}",
    "tables in tables": "x = " + "{a = " * 5000 + "1" + "}" * 5000,
    "a key of 3,000 parts": ".".join("a" * 3000) + " = 1",
    "a table of 300,000 parts": f"[{'.'.join('a' * 300_000)}]",
    "quoted parts": ".".join(['"a"'] * 3000) + " = 1",
    "tables below tables": "\n".join(f"[{'.'.join('a' * depth)}]" for depth in range(1, 60)),
    "a key of a million letters": "a" * 1_000_000 + " = 1",
    "a million quotes": '"' * 1_000_000,
    "two million letters": "# " + "x" * 2_000_000,
    "a line break in a key": '[train]\n"a\\nb' + "x" * 5000 + '" = 1',
    "line breaks in a value": '[train]\nbest = "' + "x\\n" * 5000 + '"',
    "a long kind": '[optimizer]\nname = "' + "y" * 100_000 + '"',
    "a long value": '[train]\nepochs = "' + "z" * 100_000 + '"',
    "NUL in a path": '[data]\nroot = "a\\u0000"',
    "100,000 stages": "[model]\nblocks = [" + "1, " * 100_000 + "]",
    "no text": os.urandom(3000).decode("latin1"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_file_that_nobody_wrote(what: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(TEXTS[what].encode("latin1"))
    with refused():
        Recipe.load(path)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "folder", "a\\u0000b", "~nosuchuser/x.toml", "x" * 100_000])
def test_what_is_extended_is_a_file_of_a_recipes_size(target: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "recipe.toml").write_text(f'extends = "{target}"\n')
    with refused():
        Recipe.load(tmp_path / "recipe.toml")


def test_a_chain_of_recipes_ends(tmp_path: Path) -> None:
    for number in range(1500):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n')
    (tmp_path / "1500.toml").write_text("[train]\nepochs = 3\n")
    with refused():
        Recipe.load(tmp_path / "0.toml")
    assert Recipe.load(tmp_path / "1480.toml").train.epochs == 3


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "train.epochs=" + "x" * 100_000,
        "train." + "a." * 5000 + "b=1",
        "model.blocks=" + "[" * 5000,
        "model.blocks={" + "a." * 50_000 + "b=1}",
        "train.epochs=" + "9" * 5000,
        "record.name=a\0b",
    ],
)
def test_an_override_that_nobody_typed(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    with refused():
        Recipe.load(tmp_path / "recipe.toml", [text])


def test_a_grid_without_end(tmp_path: Path) -> None:
    keys = [f'"{table}.{key}"' for table, key in (("train", "seed"), ("optimizer", "lr"), ("train", "batch_size"))]
    lines = [f"{key} = {list(range(1, 101))}" for key in keys]
    (tmp_path / "recipe.toml").write_text("\n".join(["[sweep.grid]", *lines]))
    with refused():
        load_sweep(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=1e308",
        "model.channels=[1000000, 1, 1, 1]",
        "model.channels=[99999, 99999, 99999, 99999]",
        "model.blocks=[100000]",
        "model.blocks=[250, 250, 250, 251]",
        "model={name='speednet', widths=[99999]}",
    ],
)
def test_a_network_that_no_machine_holds(override: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    with refused():
        build(Recipe.load(tmp_path / "recipe.toml", [override]).model, 10, 32)


def numbers(table: dict[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys of the numbers in a recipe."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{above}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{above}{key}"


KINDS = (
    *("", "optimizer.name=adamw", "optimizer.name=muon"),
    *("model.name=speednet", "schedule.name=step", "method.name=dino"),
)
VALUES = ("1e308", "-1e308", "1e-308", "0", "-1", str(10**18), "1e15", "inf", "nan")


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_anywhere_is_a_traceback(kind: str, tmp_path: Path) -> None:
    """Refused, or a recipe with a network, steps and rates."""
    path = tmp_path / "recipe.toml"
    path.write_text("[model]\nblocks = [1]\nchannels = [4]\n[schedule]\nmilestones = []\n" if "step" in kind else "")
    settings = [kind] if kind else []
    chosen = kind.partition(".")[0]
    for key in numbers(Recipe.load(path, settings).model_dump()):
        for value in VALUES if key.startswith(chosen) else ():
            started = time.process_time()
            try:
                recipe = Recipe.load(path, [*settings, f"{key}={value}"])
                steps = total_steps(recipe.train.epochs, 390)
                for step in (0, steps // 2, steps - 1):
                    factor(recipe.schedule, step, 390, recipe.train.epochs)
                if key.startswith("model."):
                    build(recipe.model, 10, 32)
            except UserError as error:
                check_message(str(error))
            assert time.process_time() - started < 1, (key, value)


def test_brief_keeps_both_ends_on_a_line() -> None:
    assert brief("short") == "short"
    assert brief("a\nb\x1b") == "a?b?"
    assert brief("a" * 100 + "z" * 100, 30) == "a" * 20 + "…" + "z" * 10
