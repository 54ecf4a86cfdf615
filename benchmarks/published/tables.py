"""The tables of the READMEs and the pictures in results/, each from the committed results."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.harness.summary import PARTS, with_parts
from benchmarks.published import ablations
from benchmarks.suites import epoch_parts
from fastres.bench import roofline_page
from fastres.bench.schema import Roofline
from fastres.experiments.pareto import page
from fastres.experiments.pareto.schema import Pareto
from fastres.report import run_figures
from fastres.report.style import png
from fastres.runs.schema import Best, Epoch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PARETO, ROOFLINE = "pareto/pareto.json", "roofline/roofline.json"
"""Output of `fastres bench pareto` and `roofline`, with `--out` here."""
SUITES = "suites-cpu-amd-epyc.json"
"""Output of `pytest --benchmark-only --save-results`."""
TABLE = re.compile(r"<!-- table: ([\w-]+) -->\n(.*?)\n?<!-- end -->", re.DOTALL)
"""A table between its markers, in the READMEs as in tables.md."""


class Results:
    """The committed results: `results("step-cpu-amx.json")` is that file's JSON."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self._read = cache(lambda name: json.loads((folder / name).read_text()))

    def __call__(self, name: str) -> Any:
        return self._read(name)


def rounded(value: float | None) -> str:
    """Three significant digits with thousands: 4222033 becomes "4,220,000"; nothing for None."""
    return "" if value is None else f"{float(f'{value:.3g}'):,.0f}"


def tables(results: Results) -> dict[str, str]:
    """Those of tables.md, by the names that the markers have."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=False, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"form": format, "rounded": rounded}
    written = environment.get_template("tables.md").render(
        read=results,
        PARTS=PARTS,
        with_parts=with_parts,
        pareto=page.table(Pareto.read(results.folder / PARETO)),
        roofline=roofline_page.table(Roofline.read(results.folder / ROOFLINE)),
    )
    return dict(TABLE.findall(written))


def pictures(results: Results) -> Iterator[tuple[str, bytes]]:
    """Files in results/ that are made of others there: their names and contents."""
    run = results("report_best-5-epochs/lr-0.1-one-cycle.json")
    summary, epochs = run["summary"], [Epoch(**epoch) for epoch in run["epochs"]]
    loss = run_figures.loss(epochs, best=Best(**summary["best"]), leak=summary["split"] == "report")
    yield "report_best-5-epochs/loss.png", png(loss)
    rows = results("ablations-94-cpu.json")["rows"]
    yield "ablations-94-cpu.png", ablations.figure(rows)
    yield "ablations-94-cpu.md", ablations.table(rows, times=False).encode()
    yield SUITES.replace(".json", "-epoch.png"), png(epoch_parts.bars(with_parts(results(SUITES)["figures"])))
    yield PARETO.replace(".json", ".png"), page.picture(Pareto.read(results.folder / PARETO))
    yield ROOFLINE.replace(".json", ".png"), roofline_page.picture(Roofline.read(results.folder / ROOFLINE))
