"""The committed results."""

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


class Results:
    """The committed results: `results("step-cpu-amx.json")` is that file's JSON."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self._read = cache(lambda name: json.loads((folder / name).read_text()))

    def __call__(self, name: str) -> Any:
        return self._read(name)
