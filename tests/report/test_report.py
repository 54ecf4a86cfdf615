"""The page of a run and its figures."""

import ast
import io
import itertools
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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pages import Page
from PIL import Image

import fastres
from fastres.recipe import Recipe
from fastres.report import run_figures
from fastres.report.run_page import ReportData, write_report
from fastres.report.style import png, short, sure
from fastres.runs.environment import Environment
from fastres.runs.schema import Best, Epoch, Summary
from fastres.utils.statistics import wilson

NAMES = ["samples", "class_counts", "augmented", "loss", "accuracy", "learning_rate", "confusion", "worst_mistakes"]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://example.org/x onerror=alert(1)>',
    "$\\frac{$ & </table>",
    "a very long name " * 20,
    "line\nbreak\ttab\x00nul\x1besc",
    "猫 \u202e lone \udc80",
    "",
)


def report_data(
    classes: tuple[str, ...], *, side: int = 8, test: int = 60, wrong: int = 7, val: bool = True, seed: int = 0
) -> ReportData:
    """Noise as images; the first `wrong` test images are given the next class, all others their own."""
    random = np.random.default_rng(seed)
    number = len(classes)
    labels = np.arange(test) % number
    predicted = np.where(np.arange(test) < wrong, (labels + 1) % number, labels)
    probabilities = np.full((test, number), 0.01, np.float32)
    probabilities[np.arange(test), predicted] = np.linspace(0.6, 0.99, test, dtype=np.float32)
    samples = random.integers(0, 256, (40, side, side, 3), dtype=np.uint8)
    return ReportData(
        classes=classes,
        train_labels=random.integers(0, number, 500),
        val_labels=random.integers(0, number, 50) if val else None,
        samples=samples,
        sample_labels=random.integers(0, number, 40),
        augmented=samples[:, :, ::-1].astype(np.float32) / 255,
        test_images=random.integers(0, 256, (test, side, side, 3), dtype=np.uint8),
        test_labels=labels,
        test_probabilities=probabilities,
    )


def metrics(epochs: int, *, val: bool = True) -> list[Epoch]:
    rows = []
    for epoch in range(1, epochs + 1):
        row = Epoch(epoch=epoch, step=10 * epoch, lr=0.1 / epoch, train_loss=2 / epoch, train_accuracy=0.5)
        row = row.updated(val_loss=2.5 / epoch, val_accuracy=0.45) if val else row
        rows.append(row.updated(seconds=1.5, images_per_second=1000.0))
    return rows


SUMMARY: dict[str, Any] = {
    "name": "a run",
    "recipe_hash": "0123456789ab",
    "source": "cifar10",
    "split": "holdout",
    "test_accuracy": 53 / 60,
    "test_loss": 0.4,
    "best": Best(metric="val_loss", epoch=3, value=0.8),
    "parameters": 4_903_242,
    "multiply_adds": 253_000_000,
    "epochs": 3,
    "steps": 30,
    "images_per_second": 1234.5,
    "seconds": 4000.0,
    "cold_seconds": 41.0,
    "precision": "bf16",
    "compiled": False,
    "compile_note": "no C++ compiler found",
    "device": "a processor",
    "peak_memory_bytes": 2**30,
    "expected_calibration_error": 0.021,
    "stopped": "completed",
}
MACHINE = Environment(fastres="0.1.0", commit="c" * 40, dirty=True, torch="2.13.0", python="3.11.7")


def write(run: Path, shown: ReportData, rows: list[Epoch], **changes: Any) -> tuple[str, Page]:
    summary = Summary(**SUMMARY | changes)
    path = write_report(run, recipe=Recipe(), rows=rows, summary=summary, environment=MACHINE, report_data=shown)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def drawn(figure: Figure) -> Image.Image:
    """The figure as a file would hold it; the size on the page is 1120 pixels wide."""
    image = Image.open(io.BytesIO(png(figure)))
    image.load()
    # One pixel may be lost where 7 inches of 160 pixels are rounded.
    assert abs(image.width - 1120) <= 1 and 100 <= image.height <= 3000
    return image


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


# ---------------------------------------------------------------------------------------------------- figures


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def visible_ticks(figure: Figure) -> list[float]:
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    return [tick for tick in axes.get_xticks() if low <= tick <= high]


def test_the_loss_is_the_reports_figure_4() -> None:
    figure = run_figures.loss(metrics(7), best=Best(metric="val_loss", epoch=5, value=0.5))
    drawn(figure)
    axes = figure.axes[0]
    train, val, mark = axes.get_lines()
    red, green, blue = to_rgb(train.get_color())
    assert blue > 2 * max(red, green * 0.9)
    red, green, blue = to_rgb(val.get_color())
    assert red > 2 * max(green, blue)
    assert train.get_linestyle() != val.get_linestyle()  # told apart without colour too
    np.testing.assert_array_equal(train.get_xdata(), range(1, 8))
    np.testing.assert_array_equal(val.get_ydata(), [2.5 / epoch for epoch in range(1, 8)])
    assert set(mark.get_xdata()) == {5}
    assert legend(figure) == ["training", "validation", "epoch 5, the chosen one"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "cross-entropy loss (nats an image)")
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 2.5


@pytest.mark.parametrize("epochs", [1, 2, 3, 9, 50, 200])
def test_epochs_are_whole_numbers_from_one(epochs: int) -> None:
    for figure in (run_figures.loss(metrics(epochs)), run_figures.learning_rate(metrics(epochs))):
        FigureCanvasAgg(figure).draw()
        ticks = visible_ticks(figure)
        assert ticks and all(tick == round(tick) and tick >= 1 for tick in ticks)
        assert len(ticks) <= 12


def test_a_leak_has_its_own_name_in_the_figures() -> None:
    rows = metrics(2)
    for figure in (
        run_figures.loss(rows, leak=True),
        run_figures.accuracy(rows, leak=True),
        run_figures.class_counts(np.array([0, 1]), np.array([1]), ("a", "b"), leak=True),
    ):
        assert any("leaky validation" in name for name in legend(figure)) and "validation" not in legend(figure)
    assert "trained on" in legend(run_figures.loss(rows, leak=True))[1]


def test_a_single_epoch_can_be_seen() -> None:
    for figure in (
        run_figures.loss(metrics(1)),
        run_figures.accuracy(metrics(1)),
        run_figures.learning_rate(metrics(1)),
    ):
        assert all(line.get_marker() == "o" and line.get_markersize() > 0 for line in figure.axes[0].get_lines())


def test_figures_without_any_number_are_empty_but_there() -> None:
    rows = [Epoch(epoch=1, lr=None, train_loss=None, train_accuracy=None)]
    for figure in (
        run_figures.loss(rows),
        run_figures.accuracy(rows),
        run_figures.learning_rate(rows),
        run_figures.loss([]),
    ):
        drawn(figure)
        assert figure.axes[0].get_xlabel() == "epoch"


def test_accuracy_is_in_percent_and_shows_the_data() -> None:
    rows = [Epoch(epoch=epoch, train_accuracy=0.9 + epoch / 100) for epoch in range(1, 6)]
    figure = run_figures.accuracy(rows, test_accuracy=0.93)
    low, high = figure.axes[0].get_ylim()
    assert 88 <= low <= 91 and 95 <= high <= 97  # the data run from 91 to 95
    assert figure.axes[0].get_ylabel() == "accuracy (%)"
    assert legend(figure) == ["training", "test at the end, 93.00%"]


def test_class_counts_are_written_out() -> None:
    figure = run_figures.class_counts(np.array([0, 0, 1]), np.array([1, 1, 1, 1]), ("cat", "$dog$"))
    drawn(figure)
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [2, 1, 0, 4]
    assert [text.get_text() for text in axes.texts] == ["2", "1", "0", "4"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "$dog$"]
    assert legend(figure) == ["training", "validation"]
    many = run_figures.class_counts(np.arange(100), None, tuple(map(str, range(100))))
    assert drawn(many).height < 800 and len(many.axes[0].patches) == 100 and not many.axes[0].texts


def test_the_confusion_matrix_is_normalised_by_row() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    predicted = np.array([0, 0, 0, 1, 1, 1])
    figure = run_figures.confusion(labels, predicted, ("cat", "dog", "never seen"))
    drawn(figure)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[75, 25, 0], [0, 100, 0], [0, 0, 0]])
    assert {text.get_text() for text in axes.texts} == {"75.0\n(3)", "25.0\n(1)", "100.0\n(2)"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "never seen"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert figure.axes[1].get_ylabel() == "share of the true class (%)"


@pytest.mark.parametrize(("number", "texts"), [(10, 10), (20, 20), (21, 0), (100, 0)])
def test_the_confusion_matrix_has_numbers_while_they_fit(number: int, texts: int) -> None:
    labels = np.arange(number)
    figure = run_figures.confusion(labels, labels, tuple(f"class {label}" for label in labels))
    drawn(figure)
    assert len(figure.axes[0].texts) == texts


def test_names_in_cells_do_not_overlap() -> None:
    names = ("automobile", "airplane", "aquarium_fish", "pickup_truck", "sweet_pepper", "palm_tree", "cat", "dog")
    images = np.zeros((8, 32, 32, 3), np.uint8)
    figure = run_figures.samples(images, np.arange(8), names)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert len(boxes) == 8
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[0].x0 >= 0 and boxes[-1].x1 <= figure.bbox.width


def test_the_worst_mistakes_come_first_and_say_what_they_are() -> None:
    shown = report_data(("cat", "dog", "bird"), test=60, wrong=20)
    figure = run_figures.worst_mistakes(shown.test_images, shown.test_labels, shown.test_probabilities, shown.classes)
    drawn(figure)
    captions = [text.get_text() for text in figure.texts]
    assert len(captions) == len(figure.axes) == 15
    # Certainty rises with the index: the 20 mistakes end at index 19, true class 19 % 3 = 1, and 0.6 + 0.39·19/59.
    assert captions[0] == "dog →\nbird, 73%"
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), shown.test_images[19])
    assert captions[1] == "cat →\ndog, 72%"


def test_without_a_mistake_the_figure_says_so() -> None:
    shown = report_data(("cat", "dog"), wrong=0)
    figure = run_figures.worst_mistakes(shown.test_images, shown.test_labels, shown.test_probabilities, shown.classes)
    drawn(figure)
    assert [text.get_text() for text in figure.texts] == ["No test image was given a wrong class."]


def test_augmented_images_stand_below_their_originals() -> None:
    shown = report_data(("cat", "dog"), side=4)
    figure = run_figures.samples(shown.samples, shown.sample_labels, shown.classes, shown.augmented)
    drawn(figure)
    assert len(figure.axes) == 32  # sixteen pairs
    before, after = figure.axes[:2]
    np.testing.assert_array_equal(before.images[0].get_array(), shown.samples[0])
    np.testing.assert_array_equal(after.images[0].get_array(), shown.augmented[0])
    above, below = before.get_position(), after.get_position()
    assert above.x0 == below.x0 and below.y1 < above.y0


@given(st.text(max_size=60), st.integers(1, 30))
def test_short_names_fit_and_print(name: str, limit: int) -> None:
    result = short(name, limit)
    assert len(result) <= limit and all(letter.isprintable() for letter in result)
    if name.isprintable() and len(name) <= limit:
        assert result == name


@pytest.mark.parametrize(("value", "text"), [(1.0, "100%"), (0.9999, ">99%"), (0.994, "99%"), (0.5, "50%")])
def test_only_certainty_is_100_percent(value: float, text: str) -> None:
    assert sure(value) == text
