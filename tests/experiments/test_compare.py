"""Comparing runs: what differs, groups of seeds, the Pareto front, and what is shown of them."""

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pages import Page
from PIL import Image
from rich.console import Console

from fastres.errors import UserError
from fastres.experiments.compare import figures
from fastres.experiments.compare import page as compare_page
from fastres.experiments.compare.compare import Comparison, compare, differences, facts, ranges
from fastres.recipe import Recipe
from fastres.recipe.loading import dotted
from fastres.report import document
from fastres.report.pareto import pareto_front
from fastres.report.style import png
from fastres.utils.statistics import wilson

SUMMARY: dict[str, Any] = {
    "stopped": "completed",
    "test_accuracy": 0.9,
    "test_images": 10_000,
    "parameters": 4_903_242,
    "epochs": 2,
    "seconds": 100.0,
    "images_per_second": 500.0,
    "device": "a processor",
}
ROW = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.5, "val_accuracy": 0.25, "seconds": 1.0}


def make_run(folder: Path, recipe: dict[str, Any] | None = None, rows: int = 2, **changes: Any) -> Path:
    """A run directory of two epochs; a change to None takes a key out of the summary, `summary=None` all of it."""
    folder.mkdir(parents=True)
    tables = {"train": {"epochs": 2.0}, **(recipe or {})}
    tables["train"] = {"epochs": 2.0, **tables["train"]}
    (folder / "recipe.toml").write_text(Recipe.model_validate(tables).to_toml())
    lines = [json.dumps({"epoch": epoch, **ROW, "val_loss": 1.5 / epoch}) + "\n" for epoch in range(1, rows + 1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    machine = {"device": "cpu", "cpu_model": "a processor", "gpu_name": None}
    (folder / "environment.json").write_text(json.dumps(machine))
    if changes.get("summary", True) is not None:
        summary = {key: value for key, value in (SUMMARY | changes).items() if value is not None}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def seeded(folder: Path, accuracies: list[float], **changes: Any) -> list[Path]:
    """Runs that differ in nothing but their seeds, 0, 1, …"""
    return [
        make_run(folder / f"seed{seed}", {"train": {"seed": seed}}, test_accuracy=accuracy, **changes)
        for seed, accuracy in enumerate(accuracies)
    ]


def shown(comparison: Comparison, width: int = 80) -> str:
    """What the terminal gets."""
    file = io.StringIO()
    compare_page.render(comparison, Console(file=file, width=width, highlight=False, force_terminal=False))
    return file.getvalue()


def page_of(comparison: Comparison, out: Path) -> tuple[str, Page]:
    folder = compare_page.write_page(comparison, out)
    text = (folder / "compare.html").read_text(encoding="utf-8")
    return text, Page(text)


# ---------------------------------------------------------------------------------------------------- pure functions


def test_the_pareto_front_by_hand() -> None:
    #          cost, gain: the fourth equals the second, the fifth costs more than it for less, the last ties in cost.
    points = [(1, 1), (2, 3), (4, 5), (2, 3), (3, 2), (1, 0)]
    assert pareto_front(points) == [0, 1, 3, 2]
    assert pareto_front([]) == []
    assert pareto_front([(7, 7)]) == [0]


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] >= other[1]


# Few whole numbers, so that costs, gains and whole points coincide often; and any finite ones.
NEAR = st.tuples(st.integers(0, 5), st.integers(0, 5))
FAR = st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))


@given(st.lists(NEAR, max_size=30) | st.lists(FAR, max_size=30))
def test_the_pareto_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    assert [points[index][0] for index in front] == sorted(points[index][0] for index in front)
    assert len(set(front)) == len(front)
    for index, point in enumerate(points):
        assert (index in front) == (not any(dominates(other, point) for other in points))


def test_the_differing_keys_by_hand() -> None:
    recipes = [
        {"optimizer": {"name": "sgd", "momentum": 0.9}, "mix": None, "train": {"seed": 0}, "record": {"name": "a"}},
        {"optimizer": {"name": "adam"}, "mix": {"until": 3}, "train": {"seed": 0}, "record": {"name": "b"}},
    ]
    assert dotted(recipes[1]) == {
        "optimizer.name": "adam",
        "mix.until": 3,
        "train.seed": 0,
        "record.name": "b",
    }
    # The name of the record changes no number; a table that is absent differs in its keys, not as a whole.
    assert differences([dotted(recipe) for recipe in recipes]) == {
        "optimizer.name": ["sgd", "adam"],
        "optimizer.momentum": [0.9, None],
        "mix.until": [None, 3],
    }


def test_numbers_are_shortened() -> None:
    assert ranges([1, 2, 3, 5, 7, 8]) == "1–3, 5, 7, 8"
    assert ranges([]) == ""


@given(st.sets(st.integers(1, 60), max_size=30))
def test_shortened_numbers_are_the_numbers(numbers: set[int]) -> None:
    found: list[int] = []
    for part in filter(None, ranges(sorted(numbers)).split(", ")):
        first, _, last = part.partition("–")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(numbers)


# ---------------------------------------------------------------------------------------------------- reading


def test_runs_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        make_run(tmp_path / "runs" / name)
    other = make_run(tmp_path / "elsewhere" / "a")
    (tmp_path / "runs" / "notes.txt").write_text("no run")
    comparison = compare([other, tmp_path / "runs", tmp_path / "runs" / "b"])
    assert [run.path for run in comparison.runs] == [other, tmp_path / "runs" / "a", tmp_path / "runs" / "b"]
    # Two folders are called a: their paths tell them apart.
    assert [run.name for run in comparison.runs] == [str(other), str(tmp_path / "runs" / "a"), "b"]


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for paths, expected in (
        ([run, tmp_path / "none"], "none is not a run directory and holds none"),
        ([run, run / "recipe.toml"], "recipe.toml is not a run directory and holds none"),
        ([run], "run alone: comparing takes two runs or more"),
        ([run, run / ".." / "run"], "run alone: comparing takes two runs or more"),
    ):
        with pytest.raises(UserError) as caught:
            compare(paths)
        assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("summary.json", b"{", "Invalid JSON"),
        ("summary.json", b"[]", "should be an object"),
        ("summary.json", b'{"test_accuracy": 1.5}', "test_accuracy: "),
        ("summary.json", b'{"test_accuracy": NaN}', "test_accuracy: "),
        ("summary.json", b'{"test_accuracy": "0.9"}', "test_accuracy: "),
        ("summary.json", b'{"seconds": 1e999}', "seconds: "),
        ("summary.json", b'{"seconds": true}', "seconds: "),
        ("summary.json", b'{"test_images": 1' + b"0" * 400 + b"}", "test_images: "),
        ("summary.json", b'{"device": "\xff"}', "Invalid JSON"),
        ("summary.json", b"[" * 100_000, "Invalid JSON"),
        ("environment.json", b'{"device": 3}', "device: "),
        ("metrics.jsonl", b'{"epoch": 1, "train_loss": 2.0}\n{"epoch": 2, "tra', "Invalid JSON"),
        ("metrics.jsonl", b'{"epoch": 2}\n', "its epochs do not count from 1"),
        ("metrics.jsonl", b'{"train_loss": 2.0}\n', "epoch: "),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    (bad / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        compare([good, bad])
    message = str(caught.value)
    assert message.startswith(f"{bad / name} is damaged (") and expected in message
    assert message.endswith("leave the run out") and "\n" not in message and len(message) < len(str(bad)) + 250


def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    import os

    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    (bad / "metrics.jsonl").unlink()
    os.mkfifo(bad / "metrics.jsonl")
    with pytest.raises(UserError, match="no regular file"):
        compare([good, bad])


# ---------------------------------------------------------------------------------------------------- groups and sets


def test_seeds_are_grouped_with_mean_and_sd(tmp_path: Path) -> None:
    paths = [*seeded(tmp_path, [0.90, 0.92, 0.94]), make_run(tmp_path / "other", {"mix": {"mixup_alpha": 1.0}})]
    comparison = compare(paths)
    [group] = comparison.groups
    assert group.numbers == "1–3" and len(comparison.settings) == 2
    accuracy = group.sample("test_accuracy")
    assert accuracy is not None and accuracy.sd is not None
    # By hand: mean 0.92, squares 0.0004 + 0 + 0.0004, SD √(0.0008 / 2) = 0.02; a few roundings of 1e-16.
    assert (accuracy.mean, accuracy.sd) == (pytest.approx(0.92, abs=1e-15), pytest.approx(0.02, abs=1e-15))
    # t of 2 degrees of freedom at 97.5% is 4.302653 (tables, six decimals): 0.02 · 4.302653 / √3 = 0.0496828, which on
    # the logit scale is 0.0496828 / (0.92 · 0.08) = 0.6750375 about ln(0.92 / 0.08) = 2.4423470.
    assert "1–3 3 92.00 ± 2.00% 85.41–95.76% 100.0 ± 0.0 500 ± 0" in " ".join(shown(comparison).split())
    [told] = facts(comparison)["groups"]
    assert told["runs"] == [1, 2, 3] and told["seeds"] == [0, 1, 2]
    assert told["interval"] == pytest.approx((0.8541228, 0.9576042), abs=1e-7)


def test_what_is_no_sample_of_seeds_is_not_counted(tmp_path: Path) -> None:
    paths = [
        *seeded(tmp_path, [0.90, 0.92]),
        make_run(tmp_path / "again", {"train": {"seed": 1}, "record": {"name": "again"}}, test_accuracy=0.99),
        make_run(tmp_path / "unfinished", {"train": {"seed": 2}}, rows=1, summary=None),
        make_run(tmp_path / "on a GPU", {"train": {"seed": 3}}, test_accuracy=0.99, device="a GPU"),
    ]
    comparison = compare(paths)
    [group] = comparison.groups
    assert [run.number for run in group.runs] == [1, 2, 3, 4]
    assert [run.number for run in group.counted] == [1, 2]
    notes = "\n".join(compare_page.notes(comparison))
    assert "Repeated seeds: the means leave out run 3, " in notes
    assert "Different devices: seconds and images/s compare machines" in notes
    assert "run 4 (unfinished): running or interrupted, epoch 1 of 2, validation accuracy 25.00%." in notes


def test_other_test_images_are_not_ranked_together(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "small", {"data": {"source": "cifar10"}}, test_accuracy=0.8, seconds=50.0),
        make_run(tmp_path / "large", {"data": {"source": "cifar10"}, "mix": {"mixup_alpha": 1.0}}),
        make_run(tmp_path / "easy", test_accuracy=0.99, seconds=1.0),
        make_run(tmp_path / "few", {"data": {"source": "cifar10", "test_images": 100}}, test_images=100),
        make_run(tmp_path / "going", {"data": {"source": "cifar10"}}, rows=0, summary=None),
        make_run(tmp_path / "older", {"data": {"source": "cifar10"}}, test_images=None),
    ]
    comparison = compare(paths)
    told = facts(comparison)
    assert [data_set["runs"] for data_set in told["data_sets"]] == [[1, 2, 5, 6], [3], [4]]
    assert [run["data_set"] for run in told["runs"]] == [0, 0, 1, 2, 0, 0]
    assert not told["comparable"]
    # small and older are one setting with one seed, of which the first counts; easy is faster and better than all.
    assert told["data_sets"][0]["pareto_front"]["seconds"] == [[1, 5, 6], [2]]
    assert told["data_sets"][1]["pareto_front"]["seconds"] == [[3]]
    text = " ".join(shown(comparison).split())
    assert "Not comparable: the test images differ in their source or their number." in text
    assert "runs 1, 2, 5, 6: cifar10, 10,000" in text
    _, page = page_of(comparison, tmp_path / "out")
    assert "Not comparable" in " ".join(page.text)
    assert sorted(path.stem for path in (tmp_path / "out" / "figures").iterdir()) == ["accuracy", "loss", "pareto_1"]


# ---------------------------------------------------------------------------------------------------- what is shown


def test_the_table_and_the_page(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "slow"),
        make_run(tmp_path / "fast", {"optimizer": {"name": "sgd", "lr": 0.5}}, test_accuracy=0.85, seconds=60.0),
        make_run(tmp_path / "going", {"train": {"epochs": 10.0}}, rows=3, summary=None),
        make_run(tmp_path / "stopped", {"train": {"epochs": 9.0}}, stopped="early stopping"),
    ]
    comparison = compare(paths)
    text = shown(comparison)
    low, high = wilson(9000, 10_000)
    assert f"1 slow 90.00% {100 * low:.2f}–{high:.2%} 2 100.0 500" in " ".join(text.split())
    assert re.search(r"3 +going +– +– +3 of 10 +– +–", text)
    assert "parameters of all: 4,903,242" in text and "device of all: a processor" in text
    assert re.search(r"optimizer.lr +0.1 +1, 3, 4 *\n +0.5 +2 *\n", text)
    assert "3 (going): running or interrupted, epoch 3 of 10, validation accuracy 25.00%" in " ".join(text.split())
    assert "run 4 (stopped): early stopping, epoch 2 of 9." in " ".join(text.split())
    html, page = page_of(comparison, tmp_path / "out")
    words = " ".join(page.text)
    assert len(html) < 1_000_000
    assert len(page.images()) == 3 and all(source.startswith("data:image/png;base64,") for source in page.images())
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    for expected in ("4 runs compared", "85.00%", "4,903,242", "optimizer.lr", "0.5", "epoch 3 of 10", str(paths[3])):
        assert expected in words
    for name in ("loss", "accuracy", "pareto"):
        with Image.open(tmp_path / "out" / "figures" / f"{name}.png") as image:
            assert abs(image.width - 1120) <= 1 and 400 <= image.height <= 1500  # 7 inches of 160 pixels


def test_runs_of_older_versions_have_dashes(tmp_path: Path) -> None:
    missing: dict[str, Any] = dict.fromkeys(SUMMARY)
    paths = [make_run(tmp_path / "old", rows=0, **missing), make_run(tmp_path / "new")]
    (paths[0] / "metrics.jsonl").unlink()
    (paths[0] / "environment.json").unlink()
    comparison = compare(paths)
    assert re.search(r"1 +old +– +– +– +– +–", shown(comparison))
    _, page = page_of(comparison, tmp_path / "out")
    assert page.text.count("–") == 7  # accuracy, interval, parameters, epochs, seconds, images/s, device
    both = compare([paths[0], make_run(tmp_path / "older", rows=0, **missing)])
    page_of(both, tmp_path / "nothing")
    assert [path.name for path in (tmp_path / "nothing").iterdir()] == ["compare.html"], "there is nothing to draw"


def test_many_runs_and_keys_stay_legible(tmp_path: Path) -> None:
    for number in range(40):
        changes = {
            "data": {"source": f"/a/long/path/to/images/{number % 3}"},
            "optimizer": {"name": "sgd", "lr": 0.01 * (number + 1)},
            "model": {"name": "resnet", "channels": [8 + number, 16, 32, 64]},
            "train": {"seed": number},
        }
        make_run(tmp_path / f"quickstart-20261125-1732{number}", changes, parameters=10_000 + number)
    comparison = compare([tmp_path])
    text = shown(comparison)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text, "nothing is cut off"
    assert all(re.search(rf"^ *{number} +quickstart-", text, re.MULTILINE) for number in range(1, 41))
    assert "other keys, on the page" not in text  # four differ
    figure = figures.curves(comparison.settings, [("val_loss", "validation loss", 1.0)])
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata())]
    assert len(lines) == figures.MOST == 28
    # matplotlib tells "--" for every pattern of dashes; the pattern itself has no public name.
    looks = {f"{line.get_color()} {line._dash_pattern}" for line in lines}  # type: ignore[attr-defined]
    assert len(looks) == 28, "all can be told apart"
    _, page = page_of(comparison, tmp_path / "out")
    assert "Only the first 28 of 40 settings are shown." in " ".join(page.text)


HOSTILE = ("<script>alert(1)</script>", "$\\frac{$ & <b>", "_hidden", "\x1b[31mred\x1b[0m", "line\nbreak \x9b31m 猫")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = [name.replace("/", "∕") for name in HOSTILE]
    paths = [
        make_run(tmp_path / name, {"data": {"source": f"{name}<img src=x>"}}, test_accuracy=0.1 * place, device=name)
        for place, name in enumerate(names)
    ]
    comparison = compare(paths)
    text = shown(comparison)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "?[31mred?[0m" in text
    html, page = page_of(comparison, tmp_path / "out")
    assert "<script" not in html and "<img src=x" not in html and "<b>" not in html
    words = "".join(page.text)
    assert all(name in words for name in names)
    # Shared data: the figure of the front is drawn too, with all names in its legend.
    for path in paths:
        (path / "recipe.toml").write_text((paths[0] / "recipe.toml").read_text())
    comparison = compare(paths)
    figure = figures.pareto(comparison.data_sets[0], comparison.settings)
    png(figure)
    assert len(figure.legends[0].get_texts()) == len(names)


def test_warnings_about_validation_and_choice(tmp_path: Path) -> None:
    leaky = make_run(tmp_path / "leaky", {"data": {"split": "report"}})
    chosen = make_run(tmp_path / "chosen", {"train": {"best": "test_accuracy"}, "eval": {"test_every": 1}})
    comparison = compare([leaky, chosen])
    notes = "\n".join(compare_page.notes(comparison))
    assert "Leaky validation: run 1 had" in notes and "Chosen on the test images: run 2 kept" in notes
    figure = figures.curves(comparison.settings, [("val_loss", "validation loss", 1.0)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1  leaky (leaky validation)", "2  chosen"]


# ---------------------------------------------------------------------------------------------------- figures


def test_seeds_share_a_colour_and_curves_are_the_metrics(tmp_path: Path) -> None:
    paths = [*seeded(tmp_path, [0.90, 0.92]), make_run(tmp_path / "other", {"mix": {"mixup_alpha": 1.0}}, rows=1)]
    figure = figures.curves(compare(paths).settings, [("train_loss", "loss", 1.0), ("val_loss", "loss", 2.0)])
    FigureCanvasAgg(figure).draw()
    above, below = figure.axes
    lines = [line for line in below.get_lines() if len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2], [1, 2], [1]]
    assert [line.get_ydata().tolist() for line in lines] == [[3.0, 1.5], [3.0, 1.5], [3.0]]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert lines[2].get_markersize() > 0, "a single epoch can be seen"
    assert (above.get_xlabel(), below.get_xlabel()) == ("", "epoch")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1, 2  seed0 …", "3  other"]


def test_the_front_is_drawn_where_it_is(tmp_path: Path) -> None:
    places = {"a": (0.90, 100.0), "b": (0.95, 300.0), "c": (0.85, 200.0)}  # c is slower and worse than a
    for name, (accuracy, seconds) in places.items():
        recipe = {"optimizer": {"name": "sgd", "lr": ord(name) / 1000}}
        make_run(tmp_path / name, recipe, test_accuracy=accuracy, seconds=seconds, images_per_second=1e4 / seconds)
    comparison = compare([tmp_path])
    figure = figures.pareto(comparison.data_sets[0], comparison.settings)
    FigureCanvasAgg(figure).draw()
    speed, time = figure.axes
    assert (speed.get_xlabel(), time.get_xlabel()) == ("training speed (images/s)", "time of the whole run (s)")
    assert speed.get_ylabel() == "test accuracy (%)"
    points = {
        float(line.get_xdata()[0]): line
        for line in time.get_lines()
        if len(line.get_xdata()) == 1 and line.get_marker() == "o"
    }
    filled = {x: line.get_markerfacecolor() != "white" for x, line in points.items()}
    assert filled == {100.0: True, 200.0: False, 300.0: True}
    [front] = [line for line in time.get_lines() if line.get_drawstyle() == "steps-post"]
    assert front.get_xydata()[1:3].tolist() == [[100.0, 90.0], [300.0, 95.0]]
    [front] = [line for line in speed.get_lines() if line.get_drawstyle() == "steps-pre"]
    # 95% at up to 10,000 / 300 images/s, 90% up to 100.
    assert front.get_xydata()[1:3].tolist() == [[pytest.approx(100 / 3), 95.0], [100.0, 90.0]]
    for axes in figure.axes:
        assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
        inside = axes.get_window_extent()
        boxes = [text.get_window_extent() for text in axes.texts]
        assert all(inside.contains(*box.min) and inside.contains(*box.max) for box in boxes)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_times_far_apart_are_on_a_logarithmic_axis(tmp_path: Path) -> None:
    for name, seconds in (("a", 1.0), ("b", 5000.0)):
        make_run(tmp_path / name, {"optimizer": {"name": "sgd", "lr": seconds}}, seconds=seconds)
    comparison = compare([tmp_path])
    speed, time = figures.pareto(comparison.data_sets[0], comparison.settings).axes
    assert (speed.get_xscale(), time.get_xscale()) == ("linear", "log")


# ---------------------------------------------------------------------------------------------------- writing


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = compare([make_run(tmp_path / "a"), make_run(tmp_path / "b")])
    write = document.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".html":
            raise UserError("the disk is full")
        write(path, data)

    monkeypatch.setattr(document, "write_bytes", full)
    with pytest.raises(UserError, match="the disk is full"):
        compare_page.write_page(comparison, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_stands_in_the_way_stays(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        compare_page.write_page(compare([a, b]), a)
    assert sorted(tmp_path.rglob("*")) == before
