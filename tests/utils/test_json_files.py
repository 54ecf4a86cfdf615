"""Files of JSON that nobody's run wrote: refused before they take memory."""

import tracemalloc
from pathlib import Path

import pytest

from fastres.errors import UserError
from fastres.runs.schema import Epoch
from fastres.utils.json_files import read_lines


def test_lines_without_end_are_not_made_objects(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch":1}\n' * 500_000)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged \(it has 500,000 lines\)"):
        read_lines(path, Epoch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20  # the file has 6 MB, and its lines as bytes take 22; as objects they take 400
