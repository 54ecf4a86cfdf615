"""From recipe files and `--set` to one validated Recipe, with errors that name file, key and nearest valid key.

Layers are merged in order: the file that is extended, the file, the overrides. Each key remembers which layer set it
last, so that an error names the layer to correct.
"""

import datetime
import difflib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fastres.errors import UserError
from fastres.recipe.kinds import Kinds
from fastres.recipe.networks import PRESETS
from fastres.recipe.sweeps import TAGS
from fastres.utils.files import as_on_disk
from fastres.utils.format import MOST_FAULTS, listed
from fastres.utils.terminal import brief
from fastres.utils.untrusted import open_regular

Values = dict[str, Any]
"""A table as TOML gives it, before anything is known of its keys."""
Origins = dict[tuple[str, ...], str]
Layer = tuple[str, Values]
"""Origin, for messages, and the values that it sets."""

LONGEST = 1 << 20
"""Bytes of a recipe; fastres's own have at most a few thousand."""
NESTED = 32
"""Recipes that extend each other, and tables and lists inside of each other; fastres's own have seven of these."""
_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"""(?<![A-Za-z0-9_-])(?:{_PART}[ \t]*+\.[ \t]*+){{{NESTED + 1}}}""")


def load(recipe: type[BaseModel], path: Path, overrides: list[str]) -> Any:
    """Read `path`, what it extends and `overrides` into a `recipe`. Raises UserError naming file and key."""
    return resolve(recipe, layers(path, overrides), path)


def layers(path: Path, overrides: list[str]) -> list[Layer]:
    """Layers of the files that `path` extends, of `path` itself and of `overrides`, in the order of application."""
    return [*_files(path), *_assignments(overrides)]


def resolve(recipe: type[BaseModel], layers: list[Layer], path: Path) -> Any:
    """Merge `layers` into a `recipe`; `path` is named for what no layer set. Raises UserError naming layer and key."""
    values: Values = {}
    origins: Origins = {}
    for origin, layer in layers:
        if isinstance(layer.get("sweep"), dict):
            layer = {**layer, "sweep": _spelt(layer["sweep"])}
        _forget_keys_of_other_kinds(recipe, values, layer)
        _merge(values, layer, origin, origins)
    try:
        return recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(recipe, error, str(path), origins, values)) from error


def _spelt(sweep: Values) -> Values:
    """The table [sweep] with recipe keys in one spelling, so that a later layer meets the key of an earlier one."""
    if isinstance(sweep.get("grid"), dict):
        sweep = {**sweep, "grid": dotted(sweep["grid"])}
    search = sweep.get("search")
    if isinstance(search, dict) and isinstance(search.get("parameters"), dict):
        sweep = {**sweep, "search": {**search, "parameters": dotted(search["parameters"], leaves=_is_range)}}
    return sweep


def _is_range(table: Values) -> bool:
    """Whether `table` is `{low = 0, high = 1}` or a part of that, not a table of recipe keys."""
    return any(not isinstance(value, (dict, list, type(None))) for value in table.values())


def dotted(table: Values, leaves: Callable[[Values], bool] = lambda table: not table) -> Values:
    """`{"train": {"seed": 0}}` as `{"train.seed": 0}`; tables that are `leaves` stay whole."""
    flat: Values = {}
    for key, value in table.items():
        if isinstance(value, dict) and value and not leaves(value):
            flat |= {f"{key}.{rest}": content for rest, content in dotted(value, leaves).items()}
        else:
            flat[key] = value
    return flat


def nested(table: Values) -> Values:
    """`{"train.seed": 0}` as `{"train": {"seed": 0}}`, and `""` as None, which stands for the default."""
    layer: Values = {}
    for key, value in dotted(table).items():
        *tables, last = key.split(".")
        node = layer
        for name in tables:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise UserError(f"'{key}' is set beside '{name}', which holds it: leave one of them out")
        if last in node:
            raise UserError(f"'{key}' is set beside keys of its own: leave one of them out")
        node[last] = None if value == "" else value
    return layer


def _files(path: Path, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """The layers that `path` stands for: what it extends first, itself last."""
    shown = brief(str(path), 400)
    try:
        layer = _parse(_read(as_on_disk(path)).decode("utf-8-sig"))  # with or without a byte order mark
    except FileNotFoundError:
        there = [str(file) for file in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), there, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ": give the path of a TOML recipe"
        raise UserError(f"{shown}: no such recipe{hint}") from None
    except NotADirectoryError:
        raise UserError(f"{shown}: not a file; give the path of a TOML recipe") from None
    except PermissionError:
        raise UserError(f"{shown}: no right to read it; change its permissions") from None
    except OSError as error:  # a name too long, links in a circle, a failing disk
        raise UserError(f"{shown}: cannot be read ({error.strerror}); give the path of a TOML recipe") from None
    except ValueError as error:
        raise UserError(f"{shown}: not valid TOML: {brief(str(error))}") from None
    _check(layer, shown)
    parent = layer.pop("extends", None)
    if parent is None:
        return [(shown, layer)]
    if not isinstance(parent, str):
        raise UserError(f"{shown}: 'extends' must be the path of another recipe, in quotes")
    here = path.resolve()
    if here in seen:
        raise UserError(f"{shown}: 'extends' goes in a circle; remove one of its links")
    if len(seen) == NESTED:
        raise UserError(f"{shown}: more than {NESTED} recipes extend each other in a row; put some of them together")
    return [*_files(path.parent / parent, (*seen, here)), (shown, layer)]


def _read(path: Path) -> bytes:
    """The contents of a recipe. Raises OSError, and UserError for a pipe, a device and what no recipe is as long as."""
    try:
        with open_regular(path) as file:
            data = file.read(LONGEST + 1)
    except (UserError, ValueError):  # of another kind, a name with NUL
        raise UserError(f"{brief(str(path), 400)}: not a file; give the path of a TOML recipe") from None
    if len(data) > LONGEST:
        raise UserError(f"{brief(str(path), 400)}: longer than {LONGEST >> 10:,} KiB; give the path of a TOML recipe")
    return data


def _parse(text: str) -> Values:
    """The table that `text` is in TOML. Raises ValueError where it is none."""
    if _LONG_KEY.search(text):  # tomllib takes the square of its length
        raise ValueError(f"a key of more than {NESTED} parts")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python's own limit
        raise ValueError("a whole number of thousands of digits") from None
    except RecursionError:
        raise ValueError(f"more than {NESTED} lists or tables inside of each other") from None


def _check(layer: Values, origin: str) -> None:
    """Raise UserError for values that are no recipe's, whatever their key, and that would trouble those who read them:
    depth that Python cannot follow, numbers beyond 64 bits, which TOML does not have, NUL, which no name may have."""
    left: list[tuple[tuple[str, ...], Any]] = [((), layer)]
    while left:
        key, value = left.pop()
        problem = ""
        if len(key) > NESTED:
            problem = f"is nested deeper than the {NESTED} tables that a recipe may have: leave some out"
        elif isinstance(value, dict):
            left += (((*key, str(name)), content) for name, content in value.items())
        elif isinstance(value, list):
            left += (((*key, str(number)), content) for number, content in enumerate(value))
        elif isinstance(value, int) and value.bit_length() > 63:
            problem = f"is a whole number of {value.bit_length():,} bits: give one of at most 64"
        elif isinstance(value, str) and "\0" in value:
            problem = "has a NUL character in it: remove that"
        if problem:
            raise UserError(f"{origin}: '{brief('.'.join(key))}' {problem}")


def _assignments(overrides: list[str]) -> list[Layer]:
    """`a.b=c` as layers, those that choose a kind (`optimizer.name=adamw`) first, whatever order they were typed in."""
    layers = []
    for text in overrides:
        origin = f"--set {brief(text)}"
        key, equals, value = text.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise UserError(f"{origin}: write it as table.key=value, for example train.epochs=3")
        parsed: Any = _value(value.strip())
        for name in reversed(names):
            parsed = {name: parsed}
        _check(parsed, origin)
        layers.append((origin, parsed, names[-1] != "name"))
    return [(origin, layer) for origin, layer, _ in sorted(layers, key=lambda item: item[2])]


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it is none. Nothing at all means: back to the default."""
    if not text:
        return None
    if text in ("True", "False"):
        return text == "True"
    try:
        value = _parse(f"value = {text}") if "\n" not in text else {}
    except ValueError:
        return text
    value = value.get("value", text)
    return text if isinstance(value, (datetime.date, datetime.time)) else value


def _kind(field: FieldInfo | None, content: Any) -> type[BaseModel] | None:
    """Of the tables that a field chooses from by their `name`, such as sgd and adam, that of `content`; None for a name
    that none has, and for a field without such a choice."""
    if field is None:
        return None
    return next((kinds.table(field.annotation, content) for kinds in field.metadata if isinstance(kinds, Kinds)), None)


def _forget_keys_of_other_kinds(recipe: type[BaseModel], values: Values, layer: Values) -> None:
    """When a layer changes a table's kind (SGD to AdamW), drop what was inherited and the new kind does not have."""
    for table, content in layer.items():
        if not isinstance(content, dict) or not isinstance(values.get(table), dict):
            continue
        # A preset that is asked for later than the keys it stands for replaces them.
        for key in PRESETS.get(str(content.get("preset")), {}) if table == "model" else ():
            values[table].pop(key, None)
        field = recipe.model_fields.get(table)
        if "name" in content and (kind := _kind(field, content)) is not None:
            values[table] = {key: value for key, value in values[table].items() if key in kind.model_fields}
        if (kind := _kind(field, values[table])) is not None:
            _forget_keys_of_other_kinds(kind, values[table], content)  # Muon's table holds that of another optimizer


def _merge(values: Values, layer: Values, origin: str, origins: Origins, at: tuple[str, ...] = ()) -> None:
    for key, value in layer.items():
        origins[(*at, key)] = origin
        if value is None:
            values.pop(key, None)
        elif isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value, origin, origins, (*at, key))
        else:
            if isinstance(value, dict):
                values[key] = {}
                _merge(values[key], value, origin, origins, (*at, key))
            else:
                values[key] = value


def explain(recipe: type[BaseModel], error: ValidationError, path: str, origins: Origins, values: Values) -> str:
    """What is wrong: the first fault on a line, up to nine others on a second one, which counts the rest."""
    faults = error.errors(include_url=False)
    (origin, first), *others = [_explain(recipe, fault, path, origins, values) for fault in faults[:MOST_FAULTS]]
    if not others:
        return f"{origin}: {first}"
    also = [text if layer == origin else f"{layer}: {text}" for layer, text in others]
    return f"{origin}: {first}\nalso {listed(also, len(faults) - 1)}"


def _explain(recipe: type[BaseModel], fault: Any, path: str, origins: Origins, values: Values) -> tuple[str, str]:
    """The place of a fault, and in a line its key, what is wrong, what would be right."""
    key, keys_here = _locate(recipe, values, fault["loc"])
    origin = next((origins[key[:end]] for end in range(len(key), 0, -1) if key[:end] in origins), path)
    name, given = brief(".".join(key)), fault.get("input")
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key[-1], keys_here, n=1, cutoff=0.5)
        table = ".".join(key[:-1])
        hint = (
            f"did you mean '{'.'.join([*key[:-1], near[0]])}'?"
            if near
            else f"{f'[{brief(table)}]' if table else 'a recipe'} has {', '.join(keys_here)}"
        )
        text = f"unknown key '{name}'; {hint}"
    elif fault["type"] == "missing":
        text = f"'{name}' is missing: give it a value"
    elif fault["type"] == "union_tag_invalid":
        kinds = [kind.strip(" '") for kind in fault["ctx"]["expected_tags"].split(",")]
        given_kind = str(given.get("name")) if isinstance(given, dict) else str(given)
        near = difflib.get_close_matches(given_kind, kinds, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        text = f"'{name}.name' is '{brief(given_kind)}'; {hint}there are {', '.join(kinds)}"
    elif fault["type"] == "value_error":
        text = brief(f"{name}: {fault['ctx']['error']}" if name else str(fault["ctx"]["error"]), 400)
    elif fault["type"] == "model_type":
        text = f"'{name}' must be a table, such as [{name}], not {brief(repr(given))}"
    else:
        text = f"'{name}' is {brief(repr(given))}: {fault['msg'][0].lower()}{brief(fault['msg'][1:], 400)}"
        if fault["type"] == "literal_error" and isinstance(given, str):
            near = difflib.get_close_matches(given, fault["ctx"]["expected"].replace("'", "").split(), n=1)
            text += f"; did you mean '{near[0].strip(',')}'?" if near else ""
    return origin, text


def _locate(recipe: type[BaseModel], values: Any, location: tuple[int | str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """The key as the user wrote it (without pydantic's union tags), and the keys that are valid in the same table."""
    key: list[str] = []
    table: type[BaseModel] | None = recipe
    keys_here: list[str] = []
    field: FieldInfo | None = None
    for part in location:
        if part in TAGS:
            table, field = TAGS[str(part)], None
            continue
        key.append(str(part))
        if table is not None:
            keys_here = list(table.model_fields)
            field = table.model_fields.get(str(part))
        values = values.get(part) if isinstance(values, dict) else None
        table = _kind(field, values) or _table_of(field)
    return tuple(key), keys_here


def _table_of(field: FieldInfo | None) -> type[BaseModel] | None:
    """The table that a key stands for, which may be left out, or None for a value and for a choice of tables."""
    if field is None:
        return None
    tables = [
        kind
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
    return tables[0] if len(tables) == 1 else None
