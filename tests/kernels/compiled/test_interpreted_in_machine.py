"""The tests of interpreted/ with compiled kernels in the machine, in processes of their own, which runs_on.py tells."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "interpreted"
FILES = [
    "test_augment_draws.py",
    "test_augment_kernels.py",
    "test_forms.py",
    "test_gradients.py",
    "test_hard_values.py",
    "test_layouts.py",
    "test_random.py",
    "test_symmetric.py",
]
"""All but those of the operators, which are about PyTorch."""


def test_every_file_is_named() -> None:
    assert {*FILES, "test_operators.py"} == {path.name for path in FOLDER.glob("test_*.py")}


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("name", FILES)
def test_in_the_machine(name: str, record_property: Any) -> None:
    environment = os.environ | {"FASTRES_PTX_MACHINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--numprocesses", "2", str(FOLDER / name)]
    done = subprocess.run(
        command, cwd=FOLDER.parents[2], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed, done.stdout
    record_property("log", f"interpreted/{name} in the machine: {passed[1]} tests")
