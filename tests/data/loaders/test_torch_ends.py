"""The torch loader's process, ended in every way: its workers end too, and nothing is printed that says nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("alarm")

SCRIPT = """
import os, signal, sys, time
import numpy as np
from fastres.data.loaders.torch import TorchLoader
from fastres.utils.signals import Interrupt

pixels = np.load(sys.argv[1], mmap_mode="r")
loader = TorchLoader(pixels, np.zeros(97, np.int64), np.arange(97), 1, workers=2)
iterator = loader.batches()
next(iterator)
print("ready", flush=True)
"""
LATE = """
import functools, fastres.data.loaders.torch as loaders

def late(start, parent, worker):
    while worker == 1 and os.getppid() == parent: time.sleep(0.01)
    start(parent, worker)

loaders._start = functools.partial(late, loaders._start)
"""
"""The second worker is up when the process has ended."""
ENDS = {
    # Ctrl-C goes to the whole group: Python's usual end.
    "interrupted": ("for batch in iterator: time.sleep(0.1)", signal.SIGINT, -2),
    # What training does: the signal is noted, the epoch can go on.
    "noted": (
        "with Interrupt() as interrupt:\n"
        "    print('set', flush=True)\n"
        "    while not interrupt.requested: time.sleep(0.01)\n"
        "    assert sum(1 for _ in iterator) == 96; print('finished', flush=True)",
        signal.SIGINT,
        0,
    ),
    "a job's end": ("", signal.SIGTERM, 0),
    "left open": ("", None, 0),
    "left open by an error": ("raise ValueError", None, 1),
    "killed": ("time.sleep(60)", signal.SIGKILL, -9),
}
ENDS["killed while a worker starts"] = ENDS["killed"]
ENDS["a job's end"] = (ENDS["noted"][0], signal.SIGTERM, 0)


def in_session(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


@pytest.mark.serial
@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_a_process(how: str, tmp_path: Path) -> None:
    """A script from standard input, which no spawned worker could import, without a guard around its main part."""
    np.save(tmp_path / "images.npy", np.zeros((97, 8, 8, 3), np.uint8))
    code, number, status = ENDS[how]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-", tmp_path / "images.npy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        with process:
            imports, loading = SCRIPT.split("pixels =")
            process.stdin.write(imports + (LATE if "starts" in how else "") + "pixels =" + loading + code)
            process.stdin.close()
            assert process.stdout.readline() == "ready\n"
            workers = [pid for pid in in_session(process.pid) if pid != process.pid]
            assert len(workers) == 2 or number is None
            if "Interrupt()" in code:
                assert process.stdout.readline() == "set\n"
            if number == signal.SIGKILL:
                process.kill()
            elif number is not None:
                os.killpg(process.pid, number)
            began = time.monotonic()
            assert process.wait(30) == status
            errors.seek(0)
            text = errors.read()
            assert ("finished" in process.stdout.read()) == ("finished" in code)
            # Without the process, workers look every five seconds whether it is still there.
            assert time.monotonic() - began < 10
            while left := in_session(process.pid):
                assert number == signal.SIGKILL and time.monotonic() - began < 20, left
                time.sleep(0.05)
            assert text.count("Traceback") == (status not in (0, -9)), text
            assert text.count("saving after this step") == ("Interrupt()" in code), text
