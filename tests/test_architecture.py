"""The rooms: imports run downwards only, each package has its place, and nothing imports by a string."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BY_STRING = {"fastres/__init__.py", "kernels/compile.py"}
"""What may import fastres by a string: the lazy names of the package, and the command under its old name."""
DISCOVERY = {"fastres/models/__init__.py", "fastres/data/sources/__init__.py", "fastres/data/loaders/choose.py"}
"""What may import modules of its own package by a string: they register what they hold, so that a new family of
networks, named data set or loader is in no list that somebody has to extend."""


def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the contracts of `checkout`, without its cache."""
    code = "import sys; from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the contracts cover."""
    left_out = shutil.ignore_patterns("__pycache__", "results", "*.nbc", "*.nbi")
    for name in ("fastres", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_nothing_is_excepted() -> None:
    text = (ROOT / ".importlinter").read_text()
    assert "ignore_imports" not in text
    assert "exclude_type_checking_imports = False" in text
    assert "exhaustive = True" in text


PLANTS = {
    "a wrong way": ("fastres/utils/files.py", "from fastres.training import step\n"),
    "a lazy one": ("fastres/recipe/recipe.py", "def late() -> None:\n    from fastres.data import order\n"),
    "one for types alone": (
        "fastres/layers/convolution.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastres.augment import Augment\n",
    ),
    "a new package without a place": ("fastres/extras/__init__.py", ""),
    "a circle of siblings": ("fastres/training/metrics.py", "from fastres.training import epoch\n"),
    "the benchmarks": ("fastres/bench/timing.py", "from benchmarks.harness import versus\n"),
}


@pytest.mark.parametrize("plant", [None, *PLANTS])
def test_a_planted_import_fails(plant: str | None, checkout: Path) -> None:
    if plant is not None:
        name, text = PLANTS[plant]
        path = checkout / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "") + text)
    done = lint(checkout)
    assert done.returncode == (0 if plant is None else 1), done.stdout + done.stderr
    assert ("BROKEN" in done.stdout) == (plant is not None)


def test_few_modules_stand_at_the_root() -> None:
    assert len(list((ROOT / "fastres").glob("*.py"))) <= 5


def test_nothing_is_imported_by_a_string() -> None:
    importers = {"import_module", "__import__", "run_module", "find_spec"}
    for path in [*(ROOT / "fastres").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        name = str(path.relative_to(ROOT)).replace("fastres/kernels/", "kernels/")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".")[-1] in importers:
                text = ast.unparse(node)
                assert "fastres" not in text or name in BY_STRING, f"{name}: {text}"
                # A variable may hold anything: of these calls, only the name of an outside package may come from one.
                assert not re.search(r"__(name|package)__|\bmodule\b", text) or name in DISCOVERY, f"{name}: {text}"


def test_nothing_asks_which_method_trains() -> None:
    """Outside of the recipe and of the methods themselves no class of a method is imported, nor its name read."""
    configs = {
        "SupervisedConfig",
        "DistillConfig",
        "PseudoLabelConfig",
        "SelfSupervisedConfig",
        "DinoConfig",
        "EmpSslConfig",
    }
    shared = {"Method", "Trainer", "Job", "method_of"}
    for path in (ROOT / "fastres").rglob("*.py"):
        name = path.relative_to(ROOT / "fastres")
        if name.parts[0] == "recipe" or name.parts[:2] == ("training", "methods"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                assert not names & configs, f"{name} imports {names & configs}"
                if (node.module or "").startswith("fastres.training.methods") and "transfer" not in str(node.module):
                    assert names <= shared, f"{name} imports {names - shared}"
            if isinstance(node, ast.Attribute) and node.attr == "name" and ast.unparse(node.value).endswith("method"):
                raise AssertionError(f"{name} reads {ast.unparse(node)}")
