"""`fastres eval RUN --shift` on a tiny run."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastres.data import open_dataset
from fastres.evaluation.corrupted import FIGURE, FILE
from fastres.evaluation.corruptions.registry import KINDS, SEVERITIES, corrupt
from fastres.evaluation.trained import TrainedModel


@pytest.fixture
def run(fastres: Any, tiny: Path, tmp_path: Path) -> Path:
    assert fastres("train", tiny, "--out", tmp_path / "run", "--quiet")[0] == 0
    return tmp_path / "run"


def test_clean_and_75_shifted_sets(fastres: Any, run: Path) -> None:
    plain = json.loads(fastres("eval", run, "--json")[1])
    code, out, err = fastres("eval", run, "--shift", "--json")
    assert code == 0, err
    assert "shifted test sets: 75 of 75, done in " in err
    found = json.loads(out)
    shifted = found.pop("shift")
    assert found == plain, "what eval says without --shift"
    assert json.loads((run / FILE).read_text()) == shifted
    assert Image.open(io.BytesIO((run / FIGURE).read_bytes())).width == 1120
    assert not list(run.rglob("*.tmp"))

    table = np.array([shifted["accuracy"][kind] for kind in KINDS])
    assert list(shifted["accuracy"]) == list(KINDS) and shifted["severities"] == [1, 2, 3, 4, 5]
    assert shifted["clean_accuracy"] == plain["accuracy"] and shifted["test_images"] == 100
    # Means in fp64, in whatever order.
    assert shifted["mean_corruption_accuracy"] == pytest.approx(table.mean(), abs=1e-12)
    assert shifted["drop"] == pytest.approx(plain["accuracy"] - table.mean(), abs=1e-12)
    assert list(shifted["mean_by_kind"].values()) == pytest.approx(table.mean(axis=1).tolist(), abs=1e-12)
    assert shifted["mean_by_severity"] == pytest.approx(table.mean(axis=0).tolist(), abs=1e-12)
    assert "photographs" in shifted["notes"][0]

    kept, test = TrainedModel.load(run), open_dataset("shapes10").test
    assert test is not None and test.labels is not None
    images, labels = np.array(test.images[:100]), test.labels[:100]
    for kind, severity in (("gaussian_noise", 5), ("contrast", 3)):
        predicted = kept.logits(corrupt(images, kind, severity)).argmax(1).numpy()
        assert shifted["accuracy"][kind][SEVERITIES.index(severity)] == (predicted == labels).mean()


def test_some_kinds_and_severities_leave_a_larger_measurement_alone(fastres: Any, run: Path) -> None:
    chosen = ["--shift-kinds", "contrast,fog", "--shift-severities", "5,1"]
    code, out, err = fastres("eval", run, *chosen)
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    header = lines.index(["shift", "severity", "1", "severity", "5", "mean"])
    assert [line[0] for line in lines[header + 1 : header + 4]] == ["fog", "contrast", "mean"]
    summary = json.loads((run / FILE).read_text())
    assert list(summary["accuracy"]) == ["fog", "contrast"] and summary["severities"] == [1, 5]
    assert summary["notes"] == []
    assert f"mean corruption accuracy {summary['mean_corruption_accuracy']:.2%} (4 shifted sets)" in out

    before = (run / FILE).read_bytes()
    code, _, err = fastres("eval", run, "--shift-kinds=fog")
    assert code == 0 and f"{run / FILE} stays as it is" in err
    assert (run / FILE).read_bytes() == before
    (run / FILE).write_text("[]")
    assert fastres("eval", run, *chosen)[0] == 0
    assert (run / FILE).read_bytes() == before, "what is no measurement is replaced"


def test_a_run_that_is_not_ours_to_write_is_measured(fastres: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As os.access says it: root may write anywhere, so that permissions alone would prove nothing here."""
    before = sorted(path.name for path in run.rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    code, out, err = fastres("eval", run, "--shift-kinds=contrast", "--json")
    assert code == 0, err
    assert f"{run / FILE} is not written: no right to write there" in err
    assert len(json.loads(out)["shift"]["accuracy"]["contrast"]) == 5
    assert sorted(path.name for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--shift-kinds", "fog,brightnes"], "no kind of shift is called 'brightnes'; did you mean 'brightness'?"),
        (["--shift-kinds", ""], "no kind of shift is called ''; there are"),
        (["--shift-severities", "1,6"], "severity 6: they go from 1 to 5; the nearest is 5"),
        (["--shift-severities", "one"], "give numbers from 1 to 5 with commas between"),
    ],
)
def test_what_there_is_not_is_one_line(fastres: Any, tmp_path: Path, options: list[str], expected: str) -> None:
    code, out, err = fastres("eval", tmp_path, *options)
    assert (code, out) == (2, "")
    assert expected in err and err.count("\n") == 1
