"""Loaders belong to the process that made them: what forked children, daemonic workers and pickles find."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from fastres.data.loaders import choose
from tests.noise import write_noise

KINDS = [kind for kind in choose.KINDS if choose.installed(kind)]

SCRIPT = """
import multiprocessing, os, signal, sys
import numpy as np
from fastres.data import make_loader, open_dataset

dataset, kinds = open_dataset(sys.argv[1], root=sys.argv[2], image_size=8, quiet=True), sys.argv[3:]
loaders = {kind: make_loader(dataset, loader=kind, batch_size=8, seed=1, workers=2) for kind in kinds}

def right(batches, epoch, first=0):
    rows = loaders["resident"].epoch_rows(epoch)[8 * first :]
    found = np.concatenate([batch.source[batch.rows].numpy() for batch in batches])
    return np.array_equal(found, dataset.train.images[rows])

begun = {}
for kind, loader in loaders.items():
    assert right(list(loader.batches(3)), 3)  # what it keeps between epochs, such as DALI's pipeline, is there
    begun[kind] = loader.batches(0)
    next(begun[kind])

def whole(name, *kinds):
    for kind in kinds:
        assert right(list(loaders[kind].batches(2)), 2)
        if name == "fork":
            try:
                next(begun[kind])
            except RuntimeError as error:
                assert "begin one here" in str(error)
            else:
                raise AssertionError("a child went on with its parent's iterator")
        loaders[kind].close()

def child(name, *kinds):
    signal.alarm(60)
    whole(name, *kinds)

for name in ("fork", "daemon"):
    if name == "daemon":
        process = multiprocessing.get_context("fork").Process(target=child, args=(name, *kinds), daemon=True)
        process.start()
        process.join()
        status = process.exitcode
    else:
        pid = os.fork()
        if not pid:
            child(name, *kinds)
            sys.exit(0)  # by Python's whole end, which takes apart what is left
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(name, status, flush=True)
for kind in kinds:
    print(kind, right(list(begun[kind]), 0, 1))
    loaders[kind].close()
"""


def test_a_forked_child_and_a_daemonic_worker(tmp_path: Path) -> None:
    """Of every loader, in one process for all, which begins an epoch, forks, and finishes it."""
    write_noise(tmp_path / "images", 20)
    command = [sys.executable, "-c", SCRIPT, tmp_path / "images", tmp_path / "data", *KINDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.stdout.splitlines() == ["fork 0", "daemon 0", *(f"{kind} True" for kind in KINDS)], done.stderr
    assert done.stderr.count("the torch loader reads in this process") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_and_copies_are_refused_with_the_way_out(kind: str) -> None:
    loader = object.__new__(choose.loader_of(kind))
    for function in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"cannot be pickled or copied.*make_loader"):
            function(loader)
