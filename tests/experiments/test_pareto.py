"""`fastres bench pareto`: which runs it plans, and what it shows of them beside published results."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fastres.errors import UserError
from fastres.experiments.pareto import page
from fastres.experiments.pareto.published import CLASSES, RECORDS
from fastres.experiments.pareto.run import pixels_of, plan
from fastres.experiments.pareto.schema import Means, Pareto, RecipeFacts, RunFacts
from fastres.recipe import Recipe
from fastres.report import pareto
from fastres.runs.environment import Environment

TINY = """
[data]
source = "shapes10"
[model]
blocks = [1, 1]
channels = [4, 8]
"""


def recipes(folder: Path, **texts: str) -> list[Path]:
    paths = [folder / f"{name}.toml" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TINY + text)
    return paths


# ---------------------------------------------------------------------------------------------------- the plan


def test_each_recipe_is_planned_with_its_seeds(tmp_path: Path) -> None:
    slow = "[train]\nseed = 7\nepochs = 9\n"
    entries = plan(recipes(tmp_path, fast="", slow=slow), 2, ["optimizer.lr=0.3"])
    names = [[point.name for point in entry.points] for entry in entries]
    assert names == [["fast,seed=0", "fast,seed=1"], ["slow,seed=7", "slow,seed=8"]]
    for entry in entries:
        for point in entry.points:
            assert point.recipe.optimizer.lr == 0.3
            assert point.name.endswith(f"={point.recipe.train.seed}")
    assert entries[1].points[0].recipe.train.epochs == 9


def test_recipes_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    first, second = recipes(tmp_path / "a", one=""), recipes(tmp_path / "b", one="[optimizer]\nlr = 0.3\n")
    assert [entry.name for entry in plan([*first, *second], 1)] == ["a-one", "b-one"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    def refused(paths: list[Path], seeds: int = 1, *settings: str) -> str:
        with pytest.raises(UserError) as caught:
            plan(paths, seeds, settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    [plain] = recipes(tmp_path, plain="")
    assert "plain and twin are the same recipe" in refused([plain, *recipes(tmp_path, twin="")])
    assert "two recipes have the name" in refused([plain, plain])
    assert "from 1 to 1000" in refused([plain], 0)
    others = recipes(tmp_path, few="[data]\nsource='shapes10'\ntest_images = 100\n".replace("[data]\n", ""))
    others[0].write_text(TINY.replace("[model]", "test_images = 100\n[model]"))
    assert "plain and few are tested on different images" in refused([plain, *others])
    # What is set for all makes them comparable, if nothing else differs.
    [third] = recipes(tmp_path, third="[optimizer]\nlr = 0.3\n")
    assert len(plan([third, others[0]], 1, ["data.test_images=50"])) == 2
    [swept] = recipes(tmp_path, swept='[sweep.grid]\n"train.seed" = [0, 1]\n')
    assert "fastres sweep" in refused([swept])


# ---------------------------------------------------------------------------------------------------- records


def test_records_are_published_results_on_cifar10() -> None:
    assert len({record.name for record in RECORDS}) == len(RECORDS) <= 26, "they are told apart by letters"
    for record in RECORDS:
        assert 0.9 < record.accuracy < 1 and record.seconds > 0 and record.device
        assert record.source.startswith("https://")
    assert tuple(sorted(CLASSES)) == CLASSES and len(CLASSES) == 10


def test_records_are_for_cifar10_alone(data_root: Path) -> None:
    data = Recipe.model_validate({"data": {"source": "shapes10"}}).data
    assert pixels_of(data) is None
    assert pixels_of(Recipe.model_validate({"data": {"source": "cifar10"}}).data) == "original"
    assert pixels_of(Recipe.model_validate({"data": {"source": "cifar100"}}).data) is None


def test_a_copy_of_cifar10_is_known_by_its_classes_and_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = Recipe.model_validate({"data": {"source": "shapes10"}}).data
    facts: dict[str, Any] = {
        "classes": [*CLASSES],
        "image_size": 32,
        "parts": {"train": {"images": 50_000}, "test": {"images": 10_000}},
    }
    for changes, found in (
        ({}, "copy"),
        ({"image_size": 64}, None),
        ({"classes": [*CLASSES[:9], "car"]}, None),
        ({"parts": {"train": {"images": 50_000}, "test": {"images": 9_999}}}, None),
    ):
        monkeypatch.setattr("fastres.experiments.pareto.run.info", lambda *_, told=facts | changes, **__: told)
        assert pixels_of(data) == found


# ---------------------------------------------------------------------------------------------------- what is shown


def run_of(name: str, seed: int, accuracy: float, seconds: float, speed: float) -> RunFacts:
    run: dict[str, Any] = {"run": f"{name},seed={seed}", "seed": seed, "state": "complete", "error": None}
    run |= {"test_accuracy": accuracy, "test_images": 10_000, "parameters": 1_000_000, "seconds": seconds}
    run |= {"images_per_second": speed, "cold_seconds": 30.0, "warm_seconds": 4.0, "device": "a processor"}
    return RunFacts.model_validate(run)


def entry_of(name: str, runs: list[RunFacts], front: list[str]) -> RecipeFacts:
    done = [run for run in runs if run.state == "complete"]
    return RecipeFacts(
        name=name,
        chosen_on_test=False,
        runs=runs,
        parameters=1_000_000 if done else None,
        mean=Means(**{key: sum(run[key] for run in done) / len(done) if done else None for key in Means.model_fields}),
        sd_test_accuracy=0.02 if len(done) > 1 else None,
        front=front,
    )


def facts(pixels: str | None = "copy", **changes: Any) -> Pareto:
    def lost(name: str, seed: int) -> RunFacts:
        error = "the loss is not finite at step 3"
        return RunFacts(run=f"{name},seed={seed}", seed=seed, state="diverged", error=error, test_images=10_000)

    entries = [
        entry_of("quick", [run_of("quick", 0, 0.7, 100, 1500)], ["seconds", "images_per_second"]),
        entry_of("good", [run_of("good", seed, 0.9 + 0.04 * seed, 700, 500) for seed in (0, 1)], ["seconds"]),
        entry_of("poor", [run_of("poor", 0, 0.6, 900, 400), lost("poor", 1)], []),
        entry_of("lost", [lost("lost", 0)], []),
    ]
    about: dict[str, Any] = {"recipes": [], "runs": 2, "set": [], "command": "fastres bench pareto …"}
    about |= {"entries": entries, "source": "cifar10-jpeg.tar.xz", "test_images": 10_000, "pixels": pixels}
    about |= {"records": [*RECORDS] if pixels else [], "devices": ["a processor"], "environment": Environment()}
    return Pareto(**about | changes)


def test_the_page(tmp_path: Path) -> None:
    page.write(tmp_path, facts())
    text = (tmp_path / "pareto.md").read_text()
    assert "| good | 92.00 ± 2.00% | 2 | 500 | 700.0 | 30.0 | 4.0 | 1,000,000 | time |" in text
    assert "| quick | 70.00% | 1 | 1,500 | 100.0 | 30.0 | 4.0 | 1,000,000 | time and speed |" in text
    assert "| poor | 60.00% | 1 (1 diverged) |" in text and "| lost | – | 0 (1 diverged) | – |" in text
    assert "two seeds say little" in text
    assert "poor,seed=1: diverged: the loss is not finite at step 3" in text
    assert "**The published results were measured on other devices (A100 or V100)" in text
    assert "lossy copy of CIFAR-10" in text
    assert all(record.source in text and record.name in text for record in RECORDS)
    assert (tmp_path / "pareto.png").read_bytes() == page.picture(facts()), "the same facts, the same bytes"
    assert {path.name for path in tmp_path.iterdir()} == {"pareto.md", "pareto.png", "pareto.json"}


def test_the_warnings_are_those_that_apply() -> None:
    assert "lossy copy" not in "".join(page.warnings(facts("original")))
    assert "published" not in "".join(page.warnings(facts(None))) + page.caption(facts(None))
    few = "Tested on 100 of the 10,000 test images"
    assert few in "".join(page.warnings(facts(test_images=100)))
    assert few not in "".join(page.warnings(facts(None, test_images=100)))
    several = facts(None, devices=["one", "other"])
    assert "different devices (one, other)" in "".join(page.warnings(several))


def test_nothing_is_drawn_where_nothing_was_finished(tmp_path: Path) -> None:
    page.write(tmp_path, facts(entries=facts().entries[-1:]))
    assert not (tmp_path / "pareto.png").exists() and "pareto.png" not in (tmp_path / "pareto.md").read_text()


def test_records_are_on_the_panel_of_times_with_letters() -> None:
    told = facts()
    marks = [page.mark_of(entry, place) for place, entry in enumerate(told.entries[:3])]
    figure = pareto.pareto(marks, RECORDS)
    FigureCanvasAgg(figure).draw()
    speed, time = figure.axes
    assert (speed.get_xscale(), time.get_xscale()) == ("linear", "log"), "2 s to 900 s"

    def stars(axes: Any) -> list[list[float]]:
        return [
            line.get_xydata().tolist()[0]
            for line in axes.get_lines()
            if line.get_marker() == "*" and len(line.get_xdata())
        ]

    assert stars(speed) == []
    assert stars(time) == [[record.seconds, 100 * record.accuracy] for record in RECORDS]
    assert all(line.get_markerfacecolor() == "white" for line in time.get_lines() if line.get_marker() == "*")
    assert [text.get_text() for text in speed.texts] == ["quick", "good", "poor"]
    assert [text.get_text() for text in time.texts] == ["quick", "good", "poor", *"abcdef"]
    inside = time.get_window_extent()
    boxes = [text.get_window_extent() for text in time.texts]
    assert all(inside.contains(*box.min) and inside.contains(*box.max) for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    above, below = figure.legends
    assert [text.get_text() for text in above.get_texts()] == ["quick", "good (2 seeds)", "poor"]
    assert "other devices" in below.get_title().get_text() and "original pixels" in below.get_title().get_text()
    assert "b  airbench94_muon: 94.0%, 2.59 s, A100" in [text.get_text() for text in below.get_texts()]
    # No record dominates anything: the front is that of the recipes.
    [front] = [line for line in time.get_lines() if line.get_drawstyle() == "steps-post"]
    assert front.get_xydata()[1:-1].tolist() == [[100.0, 70.0], [700.0, 92.0]]
