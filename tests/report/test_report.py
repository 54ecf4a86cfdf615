"""The page of a run."""

import ast
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape
from pages import Page
from PIL import Image

import fastres
from fastres.recipe import Recipe
from fastres.report import run_figures
from fastres.report.run_page import write_report
from fastres.report.style import png
from fastres.runs.schema import Summary
from fastres.utils.statistics import wilson
from tests.report.shown_runs import HOSTILE, MACHINE, NAMES, metrics, report_data, write

# ---------------------------------------------------------------------------------------------------- Wilson


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I, method 3: four decimals.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_newcombes_method_3(correct: int, total: int, low: float, high: float) -> None:
    # Half a unit of the fourth decimal, which is printed.
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_the_reports_early_result_by_hand() -> None:
    # p = 0.918, n = 10,000, z² = 3.841459: centre (0.918 + 0.0001920729) / 1.0003841459 = 0.9178395,
    # reach 1.959964 √(0.918·0.082 / 10,000 + 3.841459 / 4e8) / 1.0003841459 = 0.0053788. Seven decimals by hand.
    assert wilson(9180, 10_000) == pytest.approx((0.9124607, 0.9232183), abs=1e-7)


@given(st.integers(1, 10**6).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_bounds_solve_the_score_equation(pair: tuple[int, int]) -> None:
    correct, total = pair
    share = correct / total
    low, high = wilson(correct, total)
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        # (p - x)² n = z² x (1 - x), the definition; both sides are below 4 and lose at most some 1e-16 · n of that.
        assert (share - bound) ** 2 * total == pytest.approx(1.959964**2 * bound * (1 - bound), rel=1e-6, abs=1e-9)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


# ---------------------------------------------------------------------------------------------------- the page


def test_the_page_holds_all_and_needs_nothing_else(tmp_path: Path) -> None:
    text, page = write(tmp_path, report_data(("cat", "dog", "bird")), metrics(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.html"]
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == sorted(NAMES)
    assert len(page.images()) == len(NAMES)
    assert all(source.startswith("data:image/png;base64,") for source in page.images())
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    words = " ".join(page.text)
    low, high = wilson(53, 60)
    for expected in (
        "88.33%",
        f"95% interval {low:.2%} to {high:.2%}",
        "covers the choice of the test images only",
        "4,903,242",
        "1 h 7 min",
        "fastres train recipe.toml",
        "commit cccccccccccc with changes",
        "no: no C++ compiler found",
        "epoch 3, by val_loss = 0.8",
        'split = "holdout"',
    ):
        assert expected in words
    assert "Leaky" not in words
    # Three rows of epochs, three classes, one header each, and eleven facts.
    assert [tag for tag, _ in page.tags].count("tr") == 3 + 3 + 2 + 11


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    shown = report_data(("cat", "dog"))
    assert write(tmp_path / "a", shown, metrics(2))[0] == write(tmp_path / "b", shown, metrics(2))[0]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(2)</script>"
    # Where the font lacks a script the figure has boxes, without a warning: warnings are errors here.
    text, page = write(
        tmp_path, report_data(HOSTILE), metrics(1), name=evil, source=evil, compile_note=evil, device=evil, stopped=evil
    )
    assert "<script" not in text and "<img src=http" not in text
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert len(page.images()) == len(NAMES)
    cells = "".join(page.text)
    for name in (*HOSTILE[:4], evil):
        assert name in cells
        assert escape(name) in text


def test_the_leak_is_said_wherever_validation_is_shown(tmp_path: Path) -> None:
    _, page = write(tmp_path, report_data(("cat", "dog")), metrics(2), split="report")
    words = " ".join(page.text)
    assert "Leaky validation." in words and "Leaky validation loss" in words
    assert words.count("no estimate for new images") == 2  # under the loss and under the accuracy


def test_a_choice_by_the_test_images_is_said(tmp_path: Path) -> None:
    best = {"metric": "test_accuracy", "epoch": 1, "value": 0.9}
    _, page = write(tmp_path, report_data(("cat", "dog")), metrics(1), best=best)
    assert "optimistic" in " ".join(page.text)


@pytest.mark.parametrize(
    ("classes", "side", "epochs", "val", "wrong"),
    [(2, 4, 1, False, 0), (100, 33, 1, False, 7), (21, 224, 2, True, 60)],
    ids=["tiny and perfect", "hundred classes", "large and all wrong"],
)
def test_unusual_runs_have_a_page(tmp_path: Path, classes: int, side: int, epochs: int, val: bool, wrong: int) -> None:
    shown = report_data(tuple(f"class {label}" for label in range(classes)), side=side, val=val, wrong=wrong)
    accuracy = 1 - wrong / 60
    _, page = write(
        tmp_path,
        shown,
        metrics(epochs, val=val),
        test_accuracy=accuracy,
        best=None,
        images_per_second=None,
        peak_memory_bytes=None,
        device=None,
        split="holdout" if val else "none",
    )
    words = " ".join(page.text)
    assert f"{accuracy:.2%}" in words
    assert ("no validation" in words) == (not val)
    for name in NAMES:
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert abs(image.width - 1120) <= 1 and 100 <= image.height <= 3000


def test_a_run_that_diverged_has_a_page(tmp_path: Path) -> None:
    shown = report_data(("cat", "dog"))
    shown = replace(shown, test_probabilities=np.full_like(shown.test_probabilities, np.nan))
    rows = [row.updated(train_loss=None, val_loss=None) for row in metrics(2)]
    _, page = write(tmp_path, shown, rows, test_accuracy=0.5, test_loss=None, best=None)
    assert "Test loss –" in " ".join(page.text)


def test_drawing_touches_nothing_global() -> None:
    # Reading rcParams["backend"] imports pyplot by itself.
    what = (
        "import sys, matplotlib as m, fastres.report.run_figures as f; from fastres.runs.schema import Epoch\n"
        "read = lambda: {key: m.rcParams[key] for key in m.rcParams if key != 'backend'}\n"
        "before = read(); f.style.png(f.loss([Epoch(epoch=1, train_loss=1.0)]))\n"
        "assert read() == before and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", what], cwd=Path(fastres.__file__).parent.parent, check=True)


# Settings that change a figure, one for each way in which matplotlib takes them up.
USERS: dict[str, Any] = {
    "text.usetex": True,
    "font.family": ["serif"],
    "font.size": 30.0,
    "mathtext.default": "bf",
    "axes.grid": True,
    "axes.formatter.use_locale": True,
    "axes.unicode_minus": False,
    "axes.xmargin": 0.4,
    "axes.edgecolor": "red",
    "figure.dpi": 30.0,
    "figure.constrained_layout.h_pad": 0.5,
    "savefig.dpi": 30.0,
    "savefig.bbox": "tight",
    "savefig.facecolor": "black",
    "savefig.transparent": True,
    "image.interpolation": "bicubic",
    "image.origin": "lower",
    "lines.linewidth": 9.0,
    "lines.antialiased": False,
    "hatch.linewidth": 5.0,
    "xtick.major.size": 20.0,
    "legend.frameon": True,
    "path.simplify": False,
    "path.sketch": (1.0, 100.0, 2.0),
}


def test_figures_do_not_depend_on_the_users_settings(tmp_path: Path) -> None:
    data = report_data(("cat", "$dog$"))

    def drawn_by_all() -> dict[str, bytes]:
        write(tmp_path, data, metrics(3))
        return {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}

    ours = drawn_by_all()
    with matplotlib.rc_context(USERS):
        assert drawn_by_all() == ours
        assert {key: matplotlib.rcParams[key] for key in USERS} == USERS, "and they come back"


def test_threads_that_draw_at_once_give_settings_back() -> None:
    with matplotlib.rc_context({"font.size": 30.0}), ThreadPoolExecutor(4) as pool:
        drawn_by = [pool.submit(lambda: png(run_figures.learning_rate(metrics(1)))) for _ in range(8)]
        assert len({future.result() for future in drawn_by}) == 1
        assert matplotlib.rcParams["font.size"] == 30.0


def test_every_figure_is_made_under_own_settings() -> None:
    root = Path(fastres.__file__).parents[1]
    undecorated = [
        f"{path.relative_to(root)}: {node.name}"
        for top in ("fastres", "benchmarks")
        for path in (root / top).rglob("*.py")
        if path.name != "style.py"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        if node.returns is not None and ast.unparse(node.returns) == "Figure"
        if not any("own_settings" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert not undecorated


def test_a_backend_that_is_not_installed_costs_no_page() -> None:
    """A notebook sets MPLBACKEND for every process, in whatever environment that runs."""
    what = (
        "import os\n"
        "from fastres.report import any_backend\n"
        "with any_backend(): from fastres.report import run_figures as f\n"
        "from fastres.runs.schema import Epoch\n"
        "f.style.png(f.loss([Epoch(epoch=1, train_loss=1.0)]))\n"
        "import matplotlib\n"
        "wanted = os.environ['MPLBACKEND']\n"
        "assert wanted != 'svg' or matplotlib.rcParams['backend'] == 'svg', 'a program has its own'\n"
    )
    root = Path(fastres.__file__).parent.parent
    for backend, alone in (("nowhere.to.be.found", 1), ("svg", 0)):
        environment = os.environ | {"MPLBACKEND": backend}
        plain = subprocess.run([sys.executable, "-c", "import matplotlib"], env=environment, capture_output=True)
        assert plain.returncode == alone, "what matplotlib does by itself"
        subprocess.run([sys.executable, "-c", what], cwd=root, env=environment, check=True)


# ---------------------------------------------------------------------------------------------------- incomplete runs


def test_a_run_that_is_not_complete_has_a_page(tmp_path: Path) -> None:
    shown = replace(report_data(("cat", "dog")), test_probabilities=None)
    about = {"name": "a run", "source": "cifar10", "split": "holdout", "epochs": 2, "steps": 20}
    options: dict[str, Any] = {"recipe": Recipe(), "rows": metrics(2), "environment": MACHINE}
    path = write_report(tmp_path, summary=Summary(**about), report_data=shown, **options)
    words = " ".join(Page(path.read_text()).text)
    assert "Not complete: 2 of 20 epochs are done, and nothing has been tested." in words
    assert "45.00%" in words and "Test accuracy" not in words and "Accuracy by class" not in words
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {*NAMES} - {"confusion", "worst_mistakes"}
    # Without its data, and before its first epoch.
    options |= {"rows": [], "notes": ["Images and tests are left out: they are gone"]}
    path = write_report(tmp_path / "bare", summary=Summary(**about), report_data=None, **options)
    words = " ".join(Page(path.read_text()).text)
    assert "0 of 20 epochs" in words and "they are gone" in words
    assert {path.stem for path in (tmp_path / "bare/figures").iterdir()} == {"loss", "accuracy", "learning_rate"}


def test_a_single_class_is_warned_of(tmp_path: Path) -> None:
    _, page = write(tmp_path, report_data(("cat",), wrong=0), metrics(1), test_accuracy=1.0)
    assert "an accuracy of 100% says nothing" in " ".join(page.text)
