"""Freed memory stays with the process: measured by the page faults of a process of its own."""

import subprocess
import sys

import pytest

from fastres.engine.memory import keep_freed_memory

CODE = """
import resource, sys, torch
from fastres.engine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    return [torch.ones(10_000_000) for _ in range(4)]
for _ in range(10):  # until the heap has the holes that a step needs
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_steps_meet_no_fresh_pages() -> None:
    if not keep_freed_memory():
        pytest.skip("no glibc")
    # 5 steps of 160 MB are 195,000 pages of 4 KiB; huge pages would make it 400.
    usual, cached = faults("usual"), faults("kept")
    assert usual > 350
    assert cached < usual / 10
