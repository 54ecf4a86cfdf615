"""A recipe that trains in a second, and the command line in this process."""

import sys
from pathlib import Path
from typing import Any

import pytest

from fastres.cli import app

TINY = """
[data]
source = "shapes10"
train_images = 200
test_images = 100

[model]
blocks = [1, 1]
channels = [4, 8]
strides = [2, 2]
kernels = [3, 3]
skip_kernels = [1, 1]

[optimizer]
name = "sgd"
lr = 0.05

[train]
epochs = 2
batch_size = 32 # 180 training images: five whole batches and a partial one of 20
compile = false

[record]
report = false
"""


@pytest.fixture
def tiny(tmp_path: Path, fast_precision: str) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("[train]\n", f'[train]\nprecision = "{fast_precision}"\n'))
    return path


@pytest.fixture
def fastres(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command; returns exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastres", *map(str, arguments)])
        capfd.readouterr()
        try:
            app.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
