"""Committed results are read by the models that write them, and written again with the same contents."""

import json

import pytest

from benchmarks.published.tables import RESULTS
from fastres.bench.schema import Roofline
from fastres.experiments.pareto.schema import Pareto
from fastres.experiments.reproduce.schema import Reproduced
from fastres.utils.json_files import File


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("pareto/pareto.json", Pareto),
        ("reproduce-cpu/reproduce.json", Reproduced),
        ("roofline/roofline.json", Roofline),
    ],
)
def test_committed_results_load(name: str, model: type[File]) -> None:
    path = RESULTS / name
    assert model.read(path).to_json() == {"version": 1, **json.loads(path.read_text())}
