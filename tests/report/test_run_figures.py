"""The figures of a run."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fastres.report import run_figures
from fastres.report.style import short, sure
from fastres.runs.schema import Best, Epoch
from tests.report.shown_runs import drawn, metrics, report_data


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
