"""The committed results, and sentences that quote them."""

import json
import re
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?"


class Results:
    """The committed results: `results("step-cpu-amx.json")` is that file's JSON."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self._read = cache(lambda name: json.loads((folder / name).read_text()))

    def __call__(self, name: str) -> Any:
        return self._read(name)


class Quote(NamedTuple):
    """A sentence, or a part of one, with figures."""

    document: str
    phrase: str
    """With format fields in the places of figures; how it is broken into lines does not matter."""
    figures: dict[str, Any]
    """The value of each field."""

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the phrase with any numbers in it, one group a field."""
        parts = []
        for literal, name, _, _ in Formatter().parse(self.phrase):
            parts.append(r"\s+".join(map(re.escape, re.split(r"\s+", literal))))
            if name is not None:
                parts.append(rf"({NUMBER}%?)")
        return re.compile("".join(parts))

    @property
    def shown(self) -> list[str]:
        """The figures as the phrase has them."""
        fields = [(name, form) for _, name, form, _ in Formatter().parse(self.phrase) if name is not None]
        return [format(self.figures[name], form or "") for name, form in fields]
