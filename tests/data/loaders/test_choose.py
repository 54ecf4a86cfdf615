"""Which loader "auto" takes, what it says of it, and what is told where one cannot be had."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastres.data import Dataset, open_dataset
from fastres.data.loaders import choose
from fastres.errors import UserError


@pytest.fixture
def dataset(data_root: Path) -> Dataset:
    return open_dataset("shapes10", quiet=True)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make it look as if the packages of exactly these loaders were installed."""

    def only(*names: str) -> None:
        monkeypatch.setattr(choose, "installed", lambda kind: kind in names)

    return only


def test_a_set_that_fits_is_resident(dataset: Dataset) -> None:
    kind, why = choose.choose(dataset)
    assert kind == "resident"
    assert why.startswith("36.9 MB of images fit into 50% of this machine's memory, ")


@pytest.mark.parametrize(
    ("packages", "kind", "note"),
    [
        (("ffcv", "dali"), "ffcv", None),
        (("dali",), "dali", "; ffcv is not installed: pip install 'fastres[ffcv]'"),
        ((), "torch", "; ffcv and dali are not installed: pip install 'fastres[ffcv,dali]'"),
    ],
)
def test_a_set_that_does_not_fit_streams(
    dataset: Dataset,
    installed: Any,
    monkeypatch: pytest.MonkeyPatch,
    packages: tuple[str, ...],
    kind: str,
    note: str | None,
) -> None:
    installed(*packages)
    monkeypatch.setattr(choose, "memory_bytes", lambda device: 2 * 36_864_000 - 1)
    chosen = choose.choose(dataset)
    assert chosen.name == kind
    assert chosen.reason == "36.9 MB of images do not fit into 50% of this machine's memory, 73.7 MB" + (note or "")
    monkeypatch.setattr(choose, "memory_bytes", lambda device: 2 * 36_864_000)
    assert choose.choose(dataset).name == "resident"


def test_the_recipes_word_counts(dataset: Dataset) -> None:
    assert choose.choose(dataset, "torch") == ("torch", "as the recipe says")


def test_memory_is_the_machines_or_less() -> None:
    import torch

    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < choose.memory_bytes(torch.device("cpu")) <= int(total.split()[1]) * 1024


WITHOUT = """
import sys
from fastres.data import open_dataset
from fastres.data.loaders import make_loader
from fastres.errors import UserError

sys.modules[sys.argv[1]] = None  # as if it were not installed
try:
    make_loader(open_dataset("shapes10", quiet=True), loader=sys.argv[2], batch_size=4)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(("kind", "module"), [("ffcv", "ffcv"), ("dali", "nvidia.dali")])
def test_a_missing_extra_is_told_with_its_line(dataset: Dataset, kind: str, module: str) -> None:
    """In a process of its own, in which the module cannot be imported."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, module, kind], capture_output=True, text=True, check=True)
    assert f"pip install 'fastres[{kind}]'" in done.stdout, done.stderr
    assert 1 <= len(done.stdout.splitlines()) <= 2


def test_resident_needs_pixels(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / part / label / "0.png")
    encoded = open_dataset(str(tmp_path), store="encoded", quiet=True)
    with pytest.raises(UserError, match=r"set data\.store to 'decoded'"):
        choose.choose(encoded, "resident")
    kind, why = choose.choose(encoded)
    assert kind in ("ffcv", "dali", "torch")
    assert why.startswith("the images are encoded")
