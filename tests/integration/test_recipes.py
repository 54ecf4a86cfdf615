"""Every recipe of the repository trains: a few steps on a CPU, on few images, with its own network and options."""

from pathlib import Path

import pytest

import fastres

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.toml"))
FEW = [
    "data.source=shapes10",
    "data.train_images=60",
    "data.test_images=20",
    "eval.batch_size=20",
    "train.batch_size=20",
    "train.epochs=1",
    "train.drop_last=true",
    "train.compile=false",
    "train.precision=fp32",
    "record.report=false",
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_few_steps(name: str, tmp_path: Path) -> None:
    recipe = fastres.Recipe.load(FOLDER / name, FEW)
    if recipe.model.name == "speednet":
        recipe = fastres.Recipe.load(FOLDER / name, [*FEW, "model.whiten_images=20"])
    result = fastres.train(recipe, out=tmp_path / "run", device="cpu", quiet=True)
    assert 0 <= result.test_accuracy <= 1
    assert result.summary["steps"] in (2, 3), "40 to 60 images, as the recipe divides them"
    assert result.summary["parameters"] <= (recipe.model.max_parameters or 20_000_000)
