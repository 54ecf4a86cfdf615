"""Sweeps: which points a recipe makes, what is refused before the first run, the table, the figure."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib.colors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fastres.errors import UserError
from fastres.experiments.sweep import page as sweep_page
from fastres.experiments.sweep import results
from fastres.experiments.sweep.plan import load
from fastres.experiments.sweep.results import means_table, notes, read_point, shown, summarise, table
from fastres.recipe import Recipe
from fastres.runs.schema import METRICS, SUMMARY, Best, Epoch, Point, Summary, Sweep
from fastres.utils.json_files import write_lines
from fastres.utils.statistics import Sample


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "recipe.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


GRID = '[sweep.grid]\n"train.seed" = [3, 4]\n"optimizer.lr" = [0.1, 0.2, 0.3]\n'


# ---------------------------------------------------------------------------------------------------- points


def test_a_grid_is_every_combination(write: Any) -> None:
    points = load(write(GRID)).points
    expected = [(seed, lr) for seed in (3, 4) for lr in (0.1, 0.2, 0.3)]
    assert [(point.recipe.train.seed, point.recipe.optimizer.lr) for point in points] == expected
    assert [point.name for point in points] == [f"seed={seed},lr={lr}" for seed, lr in expected]
    assert points[0].settings == {"train.seed": 3, "optimizer.lr": 0.1}
    assert all(point.recipe.sweep is None for point in points)


def test_keys_of_a_grid_need_no_quotes(write: Any) -> None:
    plain = load(write("[sweep.grid]\ntrain.seed = [3, 4]\noptimizer.lr = [0.1, 0.2, 0.3]\n"))
    assert plain == load(write(GRID, "quoted.toml"))


def test_points_change_keys_together_and_meet_the_grid(write: Any) -> None:
    path = write(
        '[optimizer]\nname = "sgd"\nmomentum = 0.8\n'
        '[[sweep.points]]\nname = "slow"\nset = { "optimizer.lr" = 0.01 }\n'
        '[[sweep.points]]\nname = "adamw"\nset.optimizer = { name = "adamw", lr = 0.003 }\n'
        '[sweep.grid]\n"train.seed" = [0, 1]\n'
    )
    points = load(path).points
    assert [point.name for point in points] == ["slow,seed=0", "slow,seed=1", "adamw,seed=0", "adamw,seed=1"]
    assert [point.recipe.optimizer.name for point in points] == ["sgd", "sgd", "adamw", "adamw"]
    assert [point.recipe.optimizer.lr for point in points] == [0.01, 0.01, 0.003, 0.003]
    assert points[0].recipe.optimizer.momentum == 0.8
    assert points[2].settings == {"optimizer.lr": 0.003, "optimizer.name": "adamw", "train.seed": 0}
    assert [point.point for point in points] == ["slow", "slow", "adamw", "adamw"]


def test_an_empty_value_is_the_default(write: Any) -> None:
    path = write('[train]\ngrad_clip = 1.0\n[sweep.grid]\n"train.grad_clip" = ["", 2.0]\n')
    points = load(path).points
    assert [point.recipe.train.grad_clip for point in points] == [None, 2.0]
    assert [point.name for point in points] == ["grad_clip=default", "grad_clip=2.0"]


def test_overrides_hold_for_all_points_and_can_change_the_sweep(write: Any) -> None:
    path = write(GRID)
    assert {point.recipe.train.epochs for point in load(path, ["train.epochs=3"]).points} == {3}
    seeds = load(path, ["sweep.grid.train.seed=[7]"]).points
    assert [point.recipe.train.seed for point in seeds] == [7, 7, 7]
    assert seeds[0].settings == {"optimizer.lr": 0.1}, "what all points share does not tell them apart"
    assert len(load(path, ["sweep.grid.optimizer.lr="]).points) == 2
    assert len(load(path, ["sweep.grid.train.batch_size=[8, 16]"]).points) == 12


def test_a_sweep_is_inherited_and_extended(write: Any) -> None:
    write(GRID, "base.toml")
    path = write('extends = "base.toml"\n[sweep.grid]\n"train.seed" = [9]\n')
    assert [point.recipe.train.seed for point in load(path).points] == [9, 9, 9]


def test_a_point_is_the_recipe_that_its_overrides_make(write: Any) -> None:
    path, plain = write("[model]\nblocks = [1, 1]\n" + GRID), write("[model]\nblocks = [1, 1]\n", "plain.toml")
    for point in load(path).points:
        settings = [f"{key}={value}" for key, value in point.settings.items()]
        assert point.recipe == Recipe.load(plain, settings)
        assert Recipe.load(write(point.recipe.to_toml(), "again.toml")) == point.recipe


def test_a_sweep_changes_no_hash(write: Any) -> None:
    """Runs of recipes from before there were sweeps can still be resumed."""
    assert Recipe.load(write(GRID)).hash() == Recipe.load(write("", "plain.toml")).hash()


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)


@given(st.lists(TEXTS, min_size=2, max_size=4, unique=True))
def test_names_of_points_are_plain_and_different(values: list[str]) -> None:
    from tempfile import TemporaryDirectory

    import tomli_w

    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        values = [value for value in values if value]
        if not values:
            return
        path.write_text(tomli_w.dumps({"sweep": {"grid": {"data.source": values}}}))
        names = [point.name for point in load(path).points]
        assert len(set(names)) == len(values)
        for name in names:
            # 255 bytes are a file name's limit; a name with an equals sign is no file of the sweep's own.
            assert len(name) <= 130 and "=" in name and not set(name) & set("/\\ \0\n") and name.isascii()


# ---------------------------------------------------------------------------------------------------- refusals


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, list(overrides))
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["has no [sweep]", "fastres train"]),
        ("[sweep]\n", ["sweep: a sweep needs points"]),
        ("[sweep.grid]\n'train.seed' = []\n", ["'sweep.grid.train.seed'", "at least 1 item"]),
        ("[sweep.grid]\n'train.seed' = 3\n", ["'sweep.grid.train.seed'", "valid list"]),
        ("[sweep]\ngird.train.seed = [1]\n", ["'sweep.gird'", "did you mean 'sweep.grid'"]),
        ("[sweep.grid]\n'train.sed' = [1]\n", ["point sed=1", "unknown key 'train.sed'", "mean 'train.seed'"]),
        ("[sweep.grid]\n'train.seed' = [1, -1]\n", ["point seed=-1", "'train.seed' is -1"]),
        ("[sweep.grid]\n'train.seed' = [1, 1]\n", ["the points seed=1 and seed=1-2 are the same recipe"]),
        ("[sweep.grid]\n'train.seed' = [0, '']\n", ["the points seed=0 and seed=default are the same recipe"]),
        ("[[sweep.points]]\nname = 'a'\n[[sweep.points]]\nname = 'a'\n", ["two points are named 'a'"]),
        ("[[sweep.points]]\nname = '../a'\n", ["'sweep.points.0.name' is '../a'"]),
        ("[[sweep.points]]\nname = 'sweep.json'\n", ["'sweep.points.0.name' is 'sweep.json'"]),
        ("[[sweep.points]]\nname = 'a'\nset.train = 3\n", ["point a", "'train' must be a table"]),
        (
            "[[sweep.points]]\nname = 'a'\nset = { 'train.seed' = 1, 'train' = '' }\n",
            ["point a", "'train' is set beside keys of its own"],
        ),
        (
            "[[sweep.points]]\nname = 'a'\nset = { 'train' = '', 'train.seed' = 1 }\n",
            ["point a", "'train.seed' is set beside 'train', which holds it"],
        ),
        (
            "[[sweep.points]]\nname = 'a'\nset = { 'train.seed' = 1 }\n[sweep.grid]\n'train.seed' = [1, 2]\n",
            ["'train.seed' is in sweep.grid and in the point a"],
        ),
        (
            "[data]\nsplit = 'none'\n[sweep]\nmetric = 'val_loss'\ngrid.train.seed = [1]\n",
            ["point seed=1", "needs validation images", "'holdout'"],
        ),
    ],
)
def test_what_makes_no_points_is_one_line(text: str, expected: list[str], write: Any) -> None:
    said = message(write(text))
    for part in expected:
        assert part in said


def test_an_override_that_every_point_undoes_is_refused(write: Any) -> None:
    path = write('[[sweep.points]]\nname = "a"\nset = { "optimizer.name" = "adam" }\n' + GRID)
    assert "change it there, with --set sweep.grid.train.seed=[…]" in message(path, "train.seed=5")
    assert "set 'optimizer.name' themselves: leave it out" in message(path, "optimizer.name=adamw")
    assert "set 'optimizer.name' themselves" in message(path, "optimizer=")


# ---------------------------------------------------------------------------------------------------- the table


def row(name: str, value: float | None, **settings: Any) -> Point:
    seconds = None if value is None else 1234.56
    state: Any = "diverged" if value is None else "complete"
    return Point(name=name, point="", settings=settings, state=state, test_accuracy=value, seconds=seconds, leaky=False)


def test_best_first_and_diverged_last() -> None:
    rows = [row("a", 0.5), row("b", None), row("c", 0.9), row("d", 0.7)]
    assert [one.name for one in summarise(rows, "test_accuracy", source="x").points] == ["c", "d", "a", "b"]
    rows = [one.updated(test_loss=one.test_accuracy) for one in rows]
    assert [one.name for one in summarise(rows, "test_loss", source="x").points] == ["a", "d", "c", "b"]


def test_means_over_seeds() -> None:
    values = {0.1: [0.5, 0.6, 0.7], 0.2: [0.8, None, 0.9], 0.3: [None, None, None]}
    rows = [
        row(f"{lr}-{seed}", value, **{"optimizer.lr": lr, "train.seed": seed})
        for lr, group in values.items()
        for seed, value in enumerate(group)
    ]
    means = summarise(rows, "test_accuracy", source="x").means
    assert [group["settings"] for group in means] == [{"optimizer.lr": lr} for lr in (0.2, 0.1, 0.3)]
    assert [(group["points"], group["diverged"]) for group in means] == [(3, 1), (3, 0), (3, 3)]
    assert means[1]["mean"] == pytest.approx(0.6)
    assert means[1]["sd"] == pytest.approx(0.1)
    assert (means[1]["interval_low"], means[1]["interval_high"]) == Sample.of([0.5, 0.6, 0.7]).interval(low=0, high=1)
    assert means[2]["mean"] is None and means[2]["interval_low"] is None
    assert 0 < (means[0]["interval_low"] or 0) < 0.8 < 0.9 < (means[0]["interval_high"] or 2) < 1
    said = "".join(notes(summarise(rows, "test_accuracy", source="x")))
    assert "Student's t on the logit scale" in said and "two seeds say little" in said
    losses = [one.updated(test_loss=one.test_accuracy) for one in rows]
    [_, low, *_] = [mean["interval_low"] for mean in summarise(losses, "test_loss", source="x").means]
    assert low is not None and low > 0, "no loss is negative"
    assert "| 0.2 | 3 (1 diverged) | 85.00% |" in means_table(summarise(rows, "test_accuracy", source="x")).markdown()


def test_the_table_has_what_differs(write: Any) -> None:
    rows = [row("a|b", 0.5, **{"optimizer.name": "sgd", "optimizer.lr": 0.1}), row("c", None)]
    rows[1] = rows[1].updated(settings={"optimizer.name": "adam", "optimizer.lr": None})
    summary = summarise(rows, "test_accuracy", source="x")
    shown_table = table(summary)
    assert shown_table.header == ["point", "optimizer.name", "lr", "test accuracy", "parameters", "images/s", "seconds"]
    assert shown_table.lines == [
        ["a|b", "sgd", "0.1", "50.00%", "–", "–", "1,234.6"],
        ["c", "adam", "–", "diverged", "–", "–", "–"],
    ]
    assert "| a\\|b | sgd | 0.1 | 50.00% | – | – | 1,234.6 |" in shown_table.markdown()
    assert "first by its test images, so its result is optimistic" in "".join(notes(summary))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (True, "true"),
        (1e-5, "1e-05"),
        (0.1 + 0.2, "0.3"),
        ("x", "x"),
        ([1, 2.0], "1,2"),
        ({"p": 0.3, "value": None}, "p=0.3"),
    ],
)
def test_values_are_short(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_the_kept_epoch_is_the_best_or_the_last(tmp_path: Path) -> None:
    write_lines(
        tmp_path / METRICS, [Epoch(epoch=epoch, val_loss=loss) for epoch, loss in enumerate([1.0, 0.5, 0.7], 1)]
    )
    for best, loss in ((None, 0.7), (Best(metric="val_loss", epoch=2, value=0.5), 0.5)):
        Summary(stopped="completed", test_accuracy=0.5, best=best).write(tmp_path / SUMMARY)
        point = read_point(tmp_path, "run", "", {})
        assert point is not None and point.val_loss == loss


def test_a_damaged_run_is_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert read_point(run, "run", "", {}) is None
    run.mkdir()
    for content in ("{", "[]", "{}"):
        (run / "summary.json").write_text(content)
        with pytest.raises(UserError, match=r"damaged .*: remove .*run, and it is trained again"):
            read_point(run, "run", "", {})
    Summary(test_accuracy=0.5, stopped="completed").write(run / SUMMARY)
    for content in (None, "{", ""):
        if content is not None:
            (run / "metrics.jsonl").write_text(content)
        with pytest.raises(UserError, match="damaged"):
            read_point(run, "run", "", {})


# ---------------------------------------------------------------------------------------------------- the figure


def drawn(rows: list[Point], keys: list[str], metric: str = "test_accuracy") -> tuple[Figure, list[Any], list[str]]:
    """The figure, the lines of its points (25 places a gap between two axes), and its texts."""
    figure = sweep_page.parallel(summarise(rows, metric, source="x").points, keys, metric)
    [axes] = figure.axes
    return figure, [line for line in axes.lines if len(line.get_xdata()) > 2], [text.get_text() for text in axes.texts]


def test_lines_go_from_value_to_value() -> None:
    rows = [
        row(f"{lr}-{kind}", value, **{"optimizer.lr": lr, "optimizer.name": kind})
        for (lr, kind), value in zip(itertools.product([0.1, 0.2], ["sgd", "adam"]), [0.5, 0.6, 0.9, None], strict=True)
    ]
    _, lines, texts = drawn(rows, ["optimizer.lr", "optimizer.name"])
    assert {"lr", "optimizer.name", "test accuracy", "0.1", "0.2", "sgd", "adam", "50.00%", "90.00%"} <= set(texts)
    ends = [(line.get_ydata()[0], line.get_ydata()[25], line.get_ydata()[-1]) for line in lines]
    # Drawn worst first. Two values stand at a quarter and three quarters; the metric's axis spans 50% to 90%.
    assert [end[0] for end in ends] == [0.75, 0.25, 0.25, 0.75]
    assert ends[0][1] == ends[2][1] != ends[1][1] == ends[3][1]
    assert [end[2] for end in ends] == pytest.approx([-0.15, 0, 0.25, 1])
    assert "no result" in texts and "pruned" not in texts
    assert matplotlib.colors.to_hex(lines[-1].get_color()) == sweep_page.BLACK


def test_a_loss_has_its_lowest_at_the_top() -> None:
    rows = [row(str(loss), 0.5, **{"train.seed": seed}).updated(test_loss=loss) for seed, loss in enumerate([2.0, 1.0])]
    _, lines, _ = drawn(rows, ["train.seed"], "test_loss")
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx([0, 1])


def test_pruned_trials_stretch_no_axis() -> None:
    rows = [row(str(seed), accuracy, **{"train.seed": seed}) for seed, accuracy in enumerate([0.5, 0.6, 0.01])]
    rows[2] = rows[2].updated(state="pruned")
    _, lines, texts = drawn(rows, ["train.seed"])
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx([-0.08, 0, 1])
    assert "pruned" in texts and "no result" not in texts and "1.00%" not in texts


def test_many_numbers_stand_on_a_scale() -> None:
    """Twenty rates over two decades: on a logarithmic one, so that the geometric mean is in the middle."""
    rates = [10 ** (-3 + 2 * index / 20) for index in range(21)]
    rows = [row(str(rate), rate, **{"optimizer.lr": rate}) for rate in rates]
    _, lines, texts = drawn(rows, ["optimizer.lr"])
    # Rounding of 10**x and log is below 1e-15 each.
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([index / 20 for index in range(21)], abs=1e-12)
    assert {"0.001", "0.01", "0.1"} <= set(texts)


def test_names_of_points_are_an_axis(tmp_path: Path, write: Any) -> None:
    """In place of the keys that they set; the page has figure, table and recipe."""
    recipe = load(
        write(
            '[[sweep.points]]\nname = "a"\nset = { "optimizer.lr" = 0.5 }\n'
            + GRID.splitlines()[0]
            + '\n"train.seed" = [0, 1]\n'
        )
    ).recipe
    rows = [row(f"a,seed={seed}", 0.5, **{"train.seed": seed}).updated(point="a") for seed in (0, 1)]
    summary = summarise(rows, "test_accuracy", source="<b>")
    sweep_page.write_results(tmp_path, summary, recipe)
    page = (tmp_path / "sweep.html").read_text()
    assert "data:image/png;base64," in page and "&lt;b&gt;" in page and "<b>" not in page
    assert "Means over seeds" in page and "optimizer.lr" in page
    written = (tmp_path / "sweep.md").read_text()
    assert table(summary).markdown() in written and means_table(summary).markdown() in written
    assert all(note in written for note in notes(summary))
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert Sweep.read(tmp_path / results.SWEEP).points == rows


@pytest.mark.parametrize("values", [[0.5], [None], [0.5, 0.5], [None, None]])
def test_any_number_of_points_can_be_drawn(values: list[float | None], tmp_path: Path) -> None:
    rows = [row(str(index), value) for index, value in enumerate(values)]
    figure, lines, texts = drawn(rows, [])
    assert len(lines) == len(values) and set("01"[: len(values)]) <= set(texts)
    assert sweep_page.png(figure).startswith(b"\x89PNG")
