"""The figures that the READMEs quote are those of the committed results, and none is without one."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.published import readme
from benchmarks.published.quotes import WITHOUT_RESULT, quotes
from benchmarks.published.readme import DOCUMENTS, render, uncovered
from benchmarks.published.results import RESULTS, Quote, Results
from benchmarks.published.tables import TABLES, pictures, rounded
from fastres.errors import UserError

ROOT = Path(__file__).parents[2]

TEXTS = {document: (ROOT / document).read_text() for document in DOCUMENTS}


# ---------------------------------------------------------------------------------------------------- the checkout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_readmes_have_the_figures_of_the_results(document: str) -> None:
    assert render(document, TEXTS[document], Results()) == TEXTS[document], "run `make figures`"
    assert uncovered(document, TEXTS[document], Results()) == [], (
        "tie them to results in benchmarks/published/quotes.py"
    )


def test_what_has_no_result_is_still_said() -> None:
    for document, phrase, origin in WITHOUT_RESULT:
        assert phrase in " ".join(TEXTS[document].split()) and origin


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
        ("ablations-94-cpu.json", ["rows", 6, "accuracy", 0], ["README.md"]),
        ("step-cpu-amx.json", ["figures", "step_against_the_reports[20]", "ratio"], ["README.md"]),
        ("step-cpu-avx512.json", ["figures", "step_against_the_reports[20]", "ratio"], ["benchmarks/README.md"]),
        (
            "step-cpu-amx.json",
            ["figures", "step_against_the_matrix_units", "share_of_matrix_product"],
            ["README.md", "benchmarks/README.md"],
        ),
        (
            "loaders-cpu-amd-epyc.json",
            ["figures", "decoded[none]", "resident images/s"],
            ["README.md", "benchmarks/README.md"],
        ),
        ("loaders-cpu-amd-epyc.json", ["figures", "streaming[ffcv]", "images/s", 1], ["benchmarks/README.md"]),
        ("augment-cpu-amd-epyc.json", ["figures", "augment[simple]", "share_of_copy_rate"], ["benchmarks/README.md"]),
        ("augment-accuracy.json", ["runs", 0, "test_accuracy"], ["README.md", "benchmarks/README.md"]),
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
        ("README.md", "12.5 points", "15.2 points"),
        ("README.md", "53% to 55%", "35% to 55%"),
        ("README.md", "about 80,000 images/s", "about 90,000 images/s"),
        ("benchmarks/README.md", "1.36 times as fast", "1.63 times as fast"),
        ("benchmarks/README.md", "319,000 images/s", "391,000 images/s"),
        ("benchmarks/README.md", "| 1,480,000 |", "| 1,840,000 |"),
    ],
)
def test_a_wrong_figure_in_a_readme_is_put_right(document: str, right: str, wrong: str) -> None:
    assert TEXTS[document].count(right) == 1
    planted = TEXTS[document].replace(right, wrong)
    assert render(document, planted, Results()) == TEXTS[document]


@pytest.mark.parametrize(
    ("sentence", "figure"),
    [
        ("It is 3.2 times as fast.", "3.2 times"),
        ("It runs at 12,345 images/s.", "12,345 images/s"),
        ("It reaches\n41% of it.", "41%"),
        ("It takes 0.5 s.", "0.5 s"),
        ("It gains 2 points.", "2 points"),
        ("It is 4× as fast.", "4×"),
        ("| it | 17 |", "| it | 17 |"),
    ],
)
def test_a_figure_without_a_result_is_found(sentence: str, figure: str) -> None:
    for document, place in (("README.md", "\n## Networks\n"), ("benchmarks/README.md", "\n## Augmentation on a CPU\n")):
        planted = TEXTS[document].replace(place, f"\n{sentence}\n{place}", 1)
        assert [line.endswith(f": {figure}") for line in uncovered(document, planted, Results())] == [True]


def test_a_figure_beside_a_quoted_one_is_found() -> None:
    for document, before, after in (
        ("README.md", "with\nit (", "with\nit, 41% ("),
        ("benchmarks/README.md", "92% of it, and", "92% of it, 41% faster, and"),
    ):
        assert TEXTS[document].count(before) == 1
        found = uncovered(document, TEXTS[document].replace(before, after), Results())
        assert [line.endswith(": 41%") for line in found] == [True]


def test_what_is_no_measured_figure_is_left_alone() -> None:
    text = "On 32×32 images and 10,000 of them, 2 GB, batch 128, as `7 s` and\n\n    command --rate 3% 4 s\n"
    planted = TEXTS["README.md"].replace("\n## Networks\n", f"\n{text}\n## Networks\n", 1)
    assert uncovered("README.md", planted, Results()) == []


def test_a_phrase_that_was_rewritten_is_an_error(tmp_path: Path) -> None:
    rewritten = TEXTS["README.md"].replace("small batches", "little batches", 1)
    with pytest.raises(UserError, match="0 times, not once"):
        render("README.md", rewritten, Results())
    with pytest.raises(UserError, match="asks for a table 'none'"):
        render("README.md", "<!-- table: none -->\n<!-- end -->", Results())


# ---------------------------------------------------------------------------------------------------- the mechanism


def test_a_quote_finds_its_figures_whatever_they_are() -> None:
    quote = Quote("README.md", "at {rate:,.0f} images/s, {share:.0%} of it", {"rate": 1234.5, "share": 0.417})
    [match] = quote.pattern.finditer("runs at 9,999\nimages/s, 3% of it.")
    assert match.groups() == ("9,999", "3%") and quote.shown == ["1,234", "42%"]
    assert not quote.pattern.search("runs at nine images/s, 3% of it")


def test_every_table_has_its_place() -> None:
    for name in TABLES:
        assert sum(f"<!-- table: {name} -->" in text for text in TEXTS.values()) == 1
    assert {quote.document for quote in quotes(Results())} == set(DOCUMENTS)
    assert [rounded(value) for value in (4_222_033.6, 3_037.4, 158_543, 12_420.2)] == [
        "4,220,000",
        "3,040",
        "159,000",
        "12,400",
    ]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for document, text in TEXTS.items():
        (tmp_path / document).parent.mkdir(exist_ok=True)
        (tmp_path / document).write_text(text.replace("orthogonal updates 6.2", "orthogonal updates 6.3"))
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
