"""Words of the field: names that this code alone used do not come back, nor do its idioms."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for top in ("fastres", "kernels") for path in (ROOT / top).rglob("*.py")]
TEXTS = [*SOURCES, *(ROOT / "benchmarks").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "recipes").rglob("*.toml")]
TEXTS += [ROOT / "kernels" / "README.md", ROOT / "benchmarks" / "README.md"]
EVERYWHERE = """
    Feed Kept claimed Position Tally Beginning fades_after Phase Together roles Graphs Replayed obtain settle NotKept
    uncollected Exhibits unmixed plain finish dear words outside ahead found place share chosen kept
    """.split()  # noqa: SIM905
WITHIN = {
    "training": ["note", "numbers", "shares", "phase", "uniform", "together"],
    "engine": ["note", "why", "holds"],
    "data/loaders": ["why"],
}
"""Words that are the field's own in other rooms: a uniform distribution, numbers of a table."""
IDIOMS = r"\b(leaves?|left|leaving) the reals\b|\bfalls? to\b|\bsa(y|ys|id|ying) so\b|\bas ever\b"


def definitions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What the code names: variables, parameters, attributes that it sets, functions, classes, modules' aliases."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, 0


@pytest.mark.parametrize("room", ["", *WITHIN])
def test_no_old_name_is_left(room: str) -> None:
    words = set(WITHIN.get(room, EVERYWHERE))
    aliases = {"pipeline.py": {"unmixed", "plain"}, "schema.py": {"share"}}  # public methods of before; a key of a file
    left = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        if str(path.relative_to(ROOT)).startswith(f"fastres/{room}" if room else "")
        for name, line in definitions(ast.parse(path.read_text()))
        if name in words - aliases.get(path.name, set())
    ]
    assert not left


def test_errors_of_the_library_do_not_speak_of_options() -> None:
    """Who calls a function has no `--out` to give: options stand in whole commands, between backticks, alone."""
    rooms = {"cli", "bench", "experiments"}  # what commands alone call
    left = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[1] not in rooms
        for top in ast.walk(ast.parse(path.read_text()))
        if isinstance(top, ast.Raise)
        for node in ast.walk(top)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"(?<![\w-])--[a-z]", re.sub(r"`[^`]*(`|$)", "", node.value))
    ]
    assert not left


def test_no_idiom_is_left() -> None:
    left = []
    for path in TEXTS:
        text = path.read_text()
        for match in re.finditer(IDIOMS, text):
            line = text[: match.start()].count("\n") + 1
            left.append(f"{path.relative_to(ROOT)}:{line}: {match[0]}")
    assert not left
