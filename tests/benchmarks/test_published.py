"""The tables and pictures of the READMEs are those of the committed results."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.published import readme
from benchmarks.published.readme import DOCUMENTS, render
from benchmarks.published.tables import RESULTS, Results, pictures, rounded, tables
from fastres.errors import UserError

ROOT = Path(__file__).parents[2]

TEXTS = {document: (ROOT / document).read_text() for document in DOCUMENTS}


# ---------------------------------------------------------------------------------------------------- the checkout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_readmes_have_the_figures_of_the_results(document: str) -> None:
    assert render(document, TEXTS[document], Results()) == TEXTS[document], "run `make figures`"


def test_pictures_are_those_of_the_results() -> None:
    for name, data in pictures(Results()):
        committed = (RESULTS / name).read_bytes()
        if not name.endswith(".png"):
            assert data == committed, f"{name}: run `make figures`"
            continue
        drawn, there = (
            np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).astype(int) for each in (data, committed)
        )
        # Letters of another matplotlib may lie elsewhere by a pixel. The same figure of another run differs by 6 and
        # more of 255 on average.
        assert drawn.shape == there.shape and abs(drawn - there).mean() < 3, f"{name}: run `make figures`"


# ---------------------------------------------------------------------------------------------------- wrong figures


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the results, to be changed."""
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def change(path: Path, keys: list[Any], factor: float) -> None:
    value = whole = json.loads(path.read_text())
    for key in keys[:-1]:
        value = value[key]
    value[keys[-1]] *= factor
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("name", "keys", "changed"),
    [
        ("speed94-cpu-amd-epyc.json", ["ours", "summary", "seconds"], ["README.md"]),
        ("report_best-5-epochs/lr-0.01.json", ["summary", "test_accuracy"], ["README.md"]),
        ("step-cpu-amx.json", ["figures", "step_against_the_reports[20]", "ratio"], ["README.md"]),
        (
            "step-cpu-amx.json",
            ["figures", "step_against_the_matrix_units", "share_of_matrix_product"],
            ["README.md"],
        ),
        (
            "loaders-cpu-amd-epyc.json",
            ["figures", "decoded[none]", "resident images/s"],
            ["README.md", "benchmarks/README.md"],
        ),
        ("loaders-cpu-amd-epyc.json", ["figures", "streaming[ffcv]", "images/s", 1], ["benchmarks/README.md"]),
        ("augment-cpu-amd-epyc.json", ["figures", "augment[simple]", "share_of_copy_rate"], ["benchmarks/README.md"]),
        ("augment-accuracy.json", ["runs", 0, "test_accuracy"], ["benchmarks/README.md"]),
    ],
)
def test_other_results_make_other_readmes(results: Path, name: str, keys: list[Any], changed: list[str]) -> None:
    change(results / name, keys, 0.5)
    found = Results(results)
    differing = [document for document, text in TEXTS.items() if render(document, text, found) != text]
    assert differing == changed


@pytest.mark.parametrize(
    ("document", "right", "wrong"),
    [
        ("README.md", "| 90.16% |", "| 94.16% |"),
        ("benchmarks/README.md", "| 1,480,000 |", "| 1,840,000 |"),
    ],
)
def test_a_wrong_figure_in_a_readme_is_put_right(document: str, right: str, wrong: str) -> None:
    assert TEXTS[document].count(right) == 1
    planted = TEXTS[document].replace(right, wrong)
    assert render(document, planted, Results()) == TEXTS[document]


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(UserError, match="asks for a table 'none'"):
        render("README.md", "<!-- table: none -->\n<!-- end -->", Results())


# ---------------------------------------------------------------------------------------------------- the mechanism


def test_every_table_has_its_place() -> None:
    for name in tables(Results()):
        assert sum(f"<!-- table: {name} -->" in text for text in TEXTS.values()) == 1
    assert [rounded(value) for value in (4_222_033.6, 3_037.4, 158_543, 12_420.2)] == [
        "4,220,000",
        "3,040",
        "159,000",
        "12,400",
    ]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for document, text in TEXTS.items():
        (tmp_path / document).parent.mkdir(exist_ok=True)
        (tmp_path / document).write_text(
            text.replace("| 90.16% |", "| 94.16% |").replace("| 1,480,000 |", "| 1,840,000 |")
        )
    results = Path(shutil.copytree(RESULTS, tmp_path / "benchmarks" / "results"))
    (results / "ablations-94-cpu.md").write_text("stale")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "RESULTS", results)
    assert readme.main(["--check"]) == 1
    assert "README.md does not have the figures of the results: run `make figures`" in capsys.readouterr().err
    assert readme.main([]) == 0
    assert {document: (tmp_path / document).read_text() for document in DOCUMENTS} == TEXTS
    assert (results / "ablations-94-cpu.md").read_bytes() == (RESULTS / "ablations-94-cpu.md").read_bytes()
    assert readme.main(["--check"]) == 0
