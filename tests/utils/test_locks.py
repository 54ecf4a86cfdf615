"""Locks between processes: exclusive, let go of at the end, and never opened through a link."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastres.errors import UserError
from fastres.runs.directory import run_lock
from fastres.utils.locks import lock, open_lock, try_lock

HOLD = (
    "import sys; from pathlib import Path; from fastres.utils.locks import open_lock, try_lock\n"
    "with open_lock(Path(sys.argv[1])) as held: print(try_lock(held), flush=True); sys.stdin.read()"
)


def test_one_process_has_it_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    with open_lock(path) as held:
        assert not try_lock(held)
        holder.kill()
        holder.wait()
        lock(held)
        with open_lock(path) as other:
            assert not try_lock(other)
    with open_lock(path) as held:
        lock(held, shared=True)
        with open_lock(path) as other:
            lock(other, shared=True)
            assert not try_lock(other)
    holder.communicate()


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_nothing_is_opened_through_a_link(kind: str, tmp_path: Path) -> None:
    """As `.lock` of a run that somebody else made."""
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    if kind == "link":
        victim.write_text("precious")
    if kind in ("link", "dangling"):
        (run / ".lock").symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(run / ".lock")
    else:
        (run / ".lock").mkdir()
    with pytest.raises(UserError, match=r"\.lock"), run_lock(run):
        raise AssertionError("it was taken")
    assert not victim.exists() if kind != "link" else victim.read_text() == "precious"
