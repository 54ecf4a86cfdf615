"""A teacher from a recipe: what it is trained as, whole runs, interruption, what cannot be."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from test_distillation import recipe

from fastres import train
from fastres.errors import Interrupted, UserError
from fastres.evaluation.predict import evaluate
from fastres.experiments.speedrun.run import speedrun
from fastres.experiments.sweep.plan import load as load_sweep
from fastres.experiments.sweep.run import sweep
from fastres.experiments.sweep.search import load as load_search
from fastres.recipe import DataConfig, DistillConfig, Recipe
from fastres.recipe.portable import self_contained
from fastres.recipe.teacher import read_teacher
from fastres.runs import checkpoint
from fastres.training.run import resume
from fastres.training.step import Step

TEACHER = """
[model]
blocks = [1]
channels = [4]
strides = [4]

[train]
epochs = 2
batch_size = 16
compile = false
precision = "fp32"
seed = 5

[record]
report = false
"""


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.toml"
    path.write_text(TEACHER)
    return path


def student(teacher: object, **tables: Any) -> Recipe:
    return recipe(
        method={"name": "distill", "teacher": teacher if isinstance(teacher, dict) else str(teacher)}, **tables
    )


def final(run: Path) -> bytes:
    return (run / checkpoint.FINAL).read_bytes()


def test_a_recipe_teaches_as_its_run_does(teacher: Path, tmp_path: Path) -> None:
    """The teacher is an ordinary run on the student's data, the student the one that learns from that run."""
    run = train(student(teacher), out=tmp_path / "run", device="cpu", quiet=True).run
    own = Recipe.load(teacher).model_copy(update={"data": recipe().data})
    apart = train(own, out=tmp_path / "apart", device="cpu", quiet=True).run
    assert final(run / "teacher") == final(apart)
    taught = train(student(apart), out=tmp_path / "taught", device="cpu", quiet=True).run
    assert final(run) == final(taught)
    assert final(run) != final(train(recipe(), out=tmp_path / "alone", device="cpu", quiet=True).run)
    summary = json.loads((run / "summary.json").read_text())
    assert evaluate(run, device="cpu")[1].accuracy == summary["test_accuracy"]


def test_the_resolved_recipe_repeats_the_run_by_itself(teacher: Path, tmp_path: Path) -> None:
    """When the teacher's file, the run and its teacher are gone."""
    run = train(student(teacher), out=tmp_path / "run", device="cpu", quiet=True).run
    bits, text = final(run), (run / "recipe.toml").read_text()
    teacher.unlink()
    shutil.rmtree(run)
    kept = tmp_path / "kept.toml"
    kept.write_text(text)
    again = train(Recipe.load(kept), out=tmp_path / "again", device="cpu", quiet=True).run
    assert (again / "recipe.toml").read_text() == text
    assert final(again) == bits


def test_an_interrupted_run_goes_on_where_it_was(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the teacher, of eight steps, then of the student: a finished teacher is not trained again."""
    straight = train(student(teacher), out=tmp_path / "straight", device="cpu", quiet=True).run
    run, take = tmp_path / "run", Step.__call__

    def at(last: int) -> Any:
        seen: list[int] = []

        def interrupted(step: Step, number: int, *batch: Any) -> Any:
            seen.append(number)
            if len(seen) == last:
                signal.raise_signal(signal.SIGINT)
            return take(step, number, *batch)

        return interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", at(6))
        with pytest.raises(Interrupted, match=rf"--resume {run}`"):
            train(student(teacher), out=run, device="cpu", quiet=True)
    assert not (run / "teacher" / "summary.json").exists()
    moved = run.rename(tmp_path / "moved")  # and its teacher with it
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", at(3 + 2))
        with pytest.raises(Interrupted, match=rf"--resume {moved}`"):
            resume(moved, device="cpu", quiet=True)
    before = (moved / "teacher" / "summary.json").stat().st_mtime_ns
    resume(moved, device="cpu", quiet=True)
    assert (moved / "teacher" / "summary.json").stat().st_mtime_ns == before
    assert final(moved) == final(straight)
    with pytest.raises(UserError, match="is complete"):
        resume(moved, device="cpu", quiet=True)


def test_whose_data_it_is_trained_on(tmp_path: Path, teacher: Path) -> None:
    """Its own where its recipe, or one that it extends, has a table for them; else the student's."""
    data = DataConfig(train_images=64, split="none")
    assert read_teacher(str(teacher), data).data == data
    own = tmp_path / "own.toml"
    own.write_text(TEACHER + "[data]\ntrain_images = 100\n")
    assert read_teacher(str(own), data).data == DataConfig(train_images=100)
    (tmp_path / "child.toml").write_text('extends = "own.toml"\n[train]\nseed = 7\n')
    assert read_teacher(str(tmp_path / "child.toml"), data).data == DataConfig(train_images=100)


def test_what_changes_nothing_in_the_teacher_changes_no_hash(teacher: Path) -> None:
    first = self_contained(student(teacher))
    assert isinstance(first.method, DistillConfig) and isinstance(first.method.teacher, dict)
    assert self_contained(first) == first

    def changed(table: str, **values: Any) -> str:
        assert isinstance(first.method, DistillConfig) and isinstance(first.method.teacher, dict)
        table_of = {**first.method.teacher[table], **values}
        return student({**first.method.teacher, table: table_of}).hash()

    assert changed("record", report=True, tensorboard=True) == first.hash()
    assert changed("train", seed=6) != first.hash()


def test_each_point_of_a_sweep_has_its_teacher(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(student(teacher, sweep={"grid": {"train.seed": [0, 1]}}).to_toml())
    plan = load_sweep(path)
    out = sweep(plan, out=tmp_path / "out", device="cpu", quiet=True).folder
    assert final(out / "seed=0" / "teacher") == final(out / "seed=1" / "teacher"), "its seed is its own"
    assert final(out / "seed=0") != final(out / "seed=1")
    again = sweep(plan, out=out, device="cpu", quiet=True)
    assert [row["state"] for row in again.facts["points"]] == ["complete", "complete"]


def test_what_cannot_be_leaves_nothing_behind(teacher: Path, tmp_path: Path) -> None:
    def written(text: str) -> Path:
        path = tmp_path / f"wrong-{len(list(tmp_path.iterdir()))}.toml"
        path.write_text(text)
        return path

    other = tmp_path / "images"
    for part in ("train", "test"):
        for name in "ab":
            (other / part / name).mkdir(parents=True)
            for number in range(8):
                _picture(other / part / name / f"{number}.png", number)
    images = f'[data]\nsource = "{other}"\nsplit = "none"\n'
    wrong: list[tuple[object, dict[str, Any], str]] = [
        (tmp_path / "none.toml", {}, "no such recipe"),
        (written(TEACHER + "[modle]\n"), {}, "unknown key 'modle'"),
        (written(TEACHER + '[method]\nname = "distill"\nteacher = "x"\n'), {}, "has method.name = 'distill'"),
        (written(TEACHER + '[method]\nname = "pseudo_label"\nunlabelled = "x"\n'), {}, "'pseudo_label': a teacher is"),
        (written(TEACHER + '[sweep.grid]\n"train.seed" = [0]\n'), {}, "is a sweep: a teacher is one training"),
        ({"train": {"epochs": 3.0}}, {}, r"method.teacher has no \[model\]"),
        ({"model": {"blocks": [1], "chanels": [4]}}, {}, "method.teacher: unknown key 'model.chanels'"),
        (written(TEACHER + images), {}, r"knows other classes \(a, b"),
        (written(TEACHER + "[optimizer]\nname = 'sgd'\n" + images.replace(str(other), "nowhere")), {}, "nowhere"),
        (teacher, {"train": {"batch_size": 100}}, "is larger than the 64 images"),
    ]
    for given, tables, said in wrong:
        with pytest.raises(UserError, match=said) as error:
            train(student(given, **tables), out=tmp_path / "run", device="cpu", quiet=True)
        assert len(str(error.value).splitlines()) <= 2
        assert not (tmp_path / "run").exists(), said


def _picture(path: Path, number: int) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), (number * 30, 90, 30)).save(path)


def test_what_trains_once_refuses_it(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a speedrun trains once"):
        speedrun(student(teacher), 2, out=tmp_path / "run", device="cpu", quiet=True)
    path = tmp_path / "search.toml"
    search = {"search": {"parameters": {"optimizer.lr": {"low": 0.01, "high": 0.1}}}}
    path.write_text(student(teacher, sweep=search, data={"split": "holdout"}).to_toml())
    with pytest.raises(UserError, match="a trial is one run, and a teacher"):
        load_search(path)


def test_a_teacher_of_another_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[method]\nname = "distill"\nteacher = 5\n')
    with pytest.raises(UserError, match=r"'method\.teacher' is 5: "):
        Recipe.load(path)
