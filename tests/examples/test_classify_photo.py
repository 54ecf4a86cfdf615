"""Five lines, as a script and as a notebook, train on 300 photos and say of one what `fastres eval` says of it."""

import ast
import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import fastres
from fastres.evaluation.predict import evaluate
from tests.photos import RECIPE, write_photos

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With 300 photos, one more, and a recipe that takes a second."""
    write_photos(tmp_path / "photos", {"train": 80, "val": 20})
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.toml").write_text(RECIPE)
    shutil.copy(tmp_path / "photos" / "val" / "fox" / "7.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(run: Path, folder: Path) -> str:
    """What the run says of the photo, which agrees with `evaluate`, also once it was moved and its photos are gone."""
    evaluate(run, device="cpu", predictions="eval.csv")
    with Path("eval.csv").open(newline="") as file:
        [row] = [row for row in csv.DictReader(file) if row["file"] == "val/fox/7.jpg"]
    shutil.rmtree(folder / "photos")
    moved = shutil.move(run, folder / "elsewhere")
    answer = fastres.load(moved, device="cpu")("photo.jpg")
    assert answer.label == row["class"]
    # fp32: a batch of one may sum in another order than the 60 of the test.
    assert answer.probability == pytest.approx(float(row["probability"]), abs=1e-4)
    padded = fastres.load(moved, device="cpu")("photo.jpg", padded=True)
    assert np.float32(padded.probability) == np.float32(row["probability"]), "the same bits in a batch of the test"
    return str(answer)


def test_the_script(working_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = EXAMPLES / "classify_photo.py"
    assert len(ast.parse(script.read_text()).body[1:]) == 5
    monkeypatch.setattr(sys, "argv", [str(script), "recipes/quickstart.toml", "photos", "photo.jpg"])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    [run] = Path("runs").iterdir()
    assert printed == check(run, working_folder) + "\n"


def test_the_notebook(working_folder: Path) -> None:
    notebook = json.loads((EXAMPLES / "classify_photo.ipynb").read_text())
    [lines] = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    *statements, last = ast.parse("".join(lines)).body
    assert len(statements) == 4
    names: dict[str, object] = {}
    for statement in statements:
        exec(ast.unparse(statement), names)
    assert repr(eval(ast.unparse(last), names)) == check(Path("runs/photos"), working_folder)
