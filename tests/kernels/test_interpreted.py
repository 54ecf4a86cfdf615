"""The tests of interpreted/ in Triton's interpreter, in processes of their own: Triton is told when it is imported.

This process keeps the real compiler, for the tests of machine code. On a machine with a CUDA device pytest also runs
interpreted/ here, with compiled kernels.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))

PROCESSES = ("--numprocesses", "2")
"""The interpreter is Python: one core each, and PyTorch's threads would only be in each other's way."""

SAMPLE = 20
"""`make test` runs one case in so many, and the first of each test; `make test-slow PART=kernels` runs all."""

COMPILED = {"test_augment_kernels.py", "test_forms.py", "test_random.py", "test_symmetric.py"}
"""Whose forms `make test` runs compiled instead (compiled/), so that they wait for `make test-slow`."""


def run(names: list[str], *arguments: str, one_in: int = 1) -> tuple[int, str]:
    """Exit status and output of some files' tests."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "FASTRES_ONE_CASE_IN": str(one_in)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        *(str(FOLDER / name) for name in names),
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def test_a_sample() -> None:
    """In one process: starting takes as long as a file's sample."""
    names = [name for name in FILES if name not in COMPILED]
    assert len(names) == len(FILES) - len(COMPILED)
    status, output = run(names, one_in=SAMPLE)
    assert status == 0, output
    assert all(f"interpreted/{name}" in output for name in names), output


@pytest.mark.slow
@pytest.mark.kernels
def test_every_case() -> None:
    status, output = run(FILES, *PROCESSES)
    assert status == 0, output
    assert all(f"interpreted/{name}" in output for name in FILES), output


@pytest.mark.slow
@pytest.mark.kernels
def test_exhaustive_ones() -> None:
    """Those that are marked slow."""
    status, output = run(["test_forms.py"], "-m", "slow", *PROCESSES)
    assert status == 0, output


def test_skipped_where_no_kernel_can_run() -> None:
    """By hand, without the variable and without a GPU: skipped, with the reason."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / "test_random.py")]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stdout
    assert "kernels run on a CUDA device or, with TRITON_INTERPRET=1 set, on a CPU" in found
    assert "1 skipped" in found
