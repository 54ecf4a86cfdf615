"""Starting: what somebody waits for before anything happens. The rivals are what comes with torch."""

import subprocess
import sys

import torch

from benchmarks.harness.versus import Side, Versus
from fastres import __version__

WATCHED = """
import atexit, pathlib, re, runpy, sys
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1], file=sys.stderr))
kind, what, *sys.argv[1:] = sys.argv[1:]
exec(what) if kind == "-c" else runpy.run_module(what, run_name="__main__", alter_sys=True)
"""
"""Runs what its arguments say as the interpreter does, and in the end tells its largest resident set in KiB. What
wait4 tells of a child counts the pages of the parent that it was forked from."""


def python(*arguments: str) -> Side:
    """A turn is a process; its outcome is what it prints."""

    def run() -> str:
        return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout

    def peak() -> int:
        command = [sys.executable, "-c", WATCHED, *arguments]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        return 1024 * int(told.split()[-1])

    return Side(run, peak=peak)


def test_help(versus: Versus) -> None:
    def same(ours: str, rival: str) -> None:
        for text in (ours, rival):
            assert "usage:" in text.lower() and "--help" in text

    ours, rival = python("-m", "fastres", "--help"), python("-m", "torch.distributed.run", "--help")
    # Both start Python; the rival imports torch, which fastres must not. Measured: 8 times as fast.
    versus(ours, rival, same=same, rounds=3, against="torchrun --help", at_least=3)


def test_import(versus: Versus) -> None:
    def same(ours: str, rival: str) -> None:
        assert (ours.strip(), rival.strip()) == (__version__, torch.__version__)

    ours, rival = (python("-c", f"import {name}; print({name}.__version__)") for name in ("fastres", "torch"))
    # Importing fastres imports nothing else: what is left is Python's own start. Measured: 39 times as fast.
    versus(ours, rival, same=same, rounds=3, against="import torch", at_least=10)
