"""Every recipe of the repository trains: a few steps on a CPU, on few images, with its own network and options."""

import pickle
from pathlib import Path

import numpy as np
import pytest

import fastres
from fastres.data import shapes10

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


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for recipes that start from one, or learn from one."""
    recipe = fastres.Recipe.load(FOLDER / "report_best.toml", FEW)
    return fastres.train(recipe, out=tmp_path_factory.mktemp("before") / "run", device="cpu", quiet=True).run


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images in the form of the challenge's pickle."""
    images, _ = shapes10.draw(20, part="test")
    path = tmp_path_factory.mktemp("unlabelled") / "cifar_test_nolabels.pkl"
    path.write_bytes(pickle.dumps({b"data": images.transpose(0, 3, 1, 2).reshape(20, -1), b"ids": np.arange(20)}))
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_a_few_steps(name: str, before: Path, unlabelled: Path, tmp_path: Path) -> None:
    recipe = fastres.Recipe.load(FOLDER / name, FEW)
    changes = ["model.whiten_images=20"] if recipe.model.name == "speednet" else []
    changes += [f"transfer.weights={before}"] if recipe.transfer is not None else []
    changes += {
        "supervised": [],
        "distill": [f"method.teacher={before}"],
        "pseudo_label": [f"method.unlabelled={unlabelled}", "method.rounds=1"],
    }[recipe.method.name]
    recipe = fastres.Recipe.load(FOLDER / name, [*FEW, *changes])
    result = fastres.train(recipe, out=tmp_path / "run", device="cpu", quiet=True)
    assert 0 <= result.test_accuracy <= 1
    assert result.summary["steps"] in (2, 3), "40 to 60 images, as the recipe divides them"
    assert result.summary["parameters"] <= (recipe.model.max_parameters or 20_000_000)
