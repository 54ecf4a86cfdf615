"""Recipes: text that is no TOML, absurd values, chains and files that never end. Read by `fastres show`.

Wrong is a recipe that is accepted and holds another value at any key than TOML's own reader finds there, or that its
own `--json` output, read as a recipe, is not.
"""

import io
import json
import math
import os
import shutil
import tomllib
from contextlib import redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

from fastres.cli.inspect import show
from fastres.recipe import Recipe
from tests.fuzz.children import Kind, Wrong
from tests.fuzz.damage import damaged

RECIPES = Path(__file__).parents[2] / "recipes"
VALUES = (
    *("true", "-1", "0", "1", "2", "0.5", "-0.0", "1e308", "-1e308", "1e-320", "nan", "inf", "-inf", "1e400", "0x7f"),
    *(str(2**31), str(2**32), str(2**63), "9" * 400, "9" * 5000, "1979-05-27", "07:32:00", '""', "''", '"x"'),
    *('"' + "x" * 1000 + '"', '"\\u0000"', '"\\ud800"', '"a\\nb"', '"\\u001b[31m"', "[]", "[[]]", "{}", "{ name = 1 }"),
    *("[1, 2]", "[0]", "[-1]", "[1000000]", "[1e308]", "[true]", '["a"]', "[" * 40 + "]" * 40, "[" * 5000 + "]" * 5000),
    *("[" + "1, " * 3000 + "1]", "[100000]", "1_000_000", "2.5", "3", "64", "[8, 8]", "{ a = { b = { c = 1 } } }"),
    *('"~nosuchuser/x"', '"/dev/zero"', '"../../x"', '"shapes10"', '"cifar10"', '"holdout"', '"none"', '"report"'),
)
PARENTS = (
    *("/dev/zero", "/dev/full", "pipe", "folder", "nowhere.toml", "mutant.toml", "", ".", "\\u0000", "~nosuchuser/x"),
    *("x" * 300, "chain0.toml", "/proc/self/mem", "binary", "loop.toml", "link.toml", "huge.toml"),
)
KEYS = (
    "epochs",
    "name",
    "extends",
    "blocks",
    "channels",
    "lr",
    "source",
    "grid",
    "a.b",
    '"a\\nb"',
    "x" * 300,
    "preset",
)


class Recipes(Kind):
    """`show` of the repository's recipes, mutated."""

    name = "recipes"

    def write(self) -> None:
        shutil.copytree(RECIPES, self.place / "recipes")
        for folder in {path.parent for path in (self.place / "recipes").rglob("*.toml")}:
            (folder / "folder").mkdir()
            os.mkfifo(folder / "pipe")
            (folder / "binary").write_bytes(bytes(range(256)))
            (folder / "loop.toml").write_text('extends = "loop.toml"\n')
            (folder / "link.toml").symlink_to("link.toml")
            (folder / "huge.toml").touch()
            os.truncate(folder / "huge.toml", 1 << 40)
            for number in range(1500):
                (folder / f"chain{number}.toml").write_text(f'extends = "chain{number + 1}.toml"\n')

    def open(self) -> None:
        files = sorted((self.place / "recipes").rglob("*.toml"))
        apart = ("chain", "loop", "link", "huge", "mutant")
        self.bases = [path for path in files if not path.name.startswith(apart)]
        self.texts = {path: path.read_text() for path in self.bases}
        lines = [line for text in self.texts.values() for line in text.splitlines() if " = " in line]
        self.values: dict[str, list[str]] = {}  # of each key, those that some recipe has
        for line in lines:
            key, _, value = line.partition(" = ")
            self.values.setdefault(key, []).append(value)
        self.path, self.settings = self.bases[0], []
        self.read()  # the first one imports the most

    def mutate(self, random: Random) -> str:
        base = random.choice(self.bases)
        self.path, self.settings, text = base.with_name("mutant.toml"), [], self.texts[base]
        kind = random.choice(
            ("bytes", "values", "values", "taken", "taken", "taken", "lines", "parent", "keys", "settings", "depth")
        )
        lines = text.splitlines()
        valued = [number for number, line in enumerate(lines) if " = " in line]
        what = ""
        if kind in ("values", "taken", "settings"):
            for _ in range(random.choice((1, 1, 2))):
                number = random.choice(valued)
                key = lines[number].partition(" = ")[0]
                value = random.choice(self.values[key] if kind == "taken" else VALUES)
                what += f" {key} = {value[:60]}"
                if kind != "settings":
                    lines[number] = f"{key} = {value}"
                else:
                    table = next((line for line in reversed(lines[:number]) if line.startswith("[")), "[]")
                    self.settings.append(f"{table.strip('[] ')}.{key}={value}".removeprefix("."))
        elif kind == "lines":
            for _ in range(random.choice((1, 1, 3))):
                at = random.randrange(len(lines))
                if random.random() < 0.3:
                    del lines[at]
                else:
                    lines.insert(random.randrange(len(lines) + 1), lines[at])
        elif kind == "parent":
            what = random.choice(PARENTS)
            lines = [line for line in lines if not line.startswith("extends")]
            lines.insert(0, f'extends = "{what}"')
        elif kind == "keys":
            key = random.choice(KEYS)
            lines.insert(random.randrange(len(lines) + 1), f"{key} = {random.choice(VALUES)}")
        elif kind == "depth":
            deep = random.choice((40, 3000))
            lines.append(random.choice((f"[{'.'.join(['a'] * deep)}]", f"{'a.' * deep}b = 1", "a" * 10**6 + " = 1")))
        content = ("\n".join(lines) + "\n").encode(errors="surrogatepass")
        if kind == "bytes" or random.random() < 0.05:
            content = random.choice((b"", b"", b"\xef\xbb\xbf")) + damaged(content, random)
        self.path.write_bytes(content)
        return f"{base.relative_to(self.place)}: {kind}{what} {' '.join(self.settings)}"

    def read(self) -> None:
        with redirect_stdout(io.StringIO()) as printed:
            show(self.path, self.settings, None, True)
        recipe = json.loads(printed.getvalue())["recipe"]
        own = tomllib.loads(self.path.read_text(encoding="utf-8-sig"))
        own.pop("extends", None)
        for key, value in flat(own):
            if key[0] != "sweep" and value != {} and not any(setting.startswith(key[0]) for setting in self.settings):
                self._check(recipe, key, value)
        again = Recipe.model_validate(recipe)
        if again.model_dump(exclude_none=True) != recipe:
            raise Wrong("its own output is another recipe")

    def _check(self, recipe: Any, key: tuple[str, ...], value: Any) -> None:
        found = recipe
        for name in key:
            found = found.get(name) if isinstance(found, dict) else None
        if not same(found, value):
            raise Wrong(f"{'.'.join(key)} is {found!r:.100} and not {value!r:.100}")


def flat(table: dict[str, Any], at: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """The values of nested tables with their keys; an empty table sets nothing."""
    values: list[tuple[tuple[str, ...], Any]] = []
    for key, value in table.items():
        values += flat(value, (*at, key)) if isinstance(value, dict) else [((*at, key), value)]
    return values


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal; a whole number may have become the same float, and no bool a number."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return bool(one == other)
