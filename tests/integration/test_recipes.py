"""Every recipe of the repository trains, and every point of its sweep: a few steps on a CPU, on few images, with its
own options and its own network, narrower."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from fastres.data.sources import shapes10
from fastres.experiments.sweep.plan import load
from fastres.models import build, count_parameters
from fastres.recipe import Recipe
from fastres.training.run import train

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


def trainings() -> list[tuple[str, Recipe]]:
    """Each recipe, and each point of those with a sweep."""
    found = []
    for name in RECIPES:
        recipe = Recipe.load(FOLDER / name)
        if recipe.sweep is None:
            found.append((name, recipe))
        else:
            found += [(f"{name} {point.name}", point.recipe) for point in load(FOLDER / name).points]
    return found


ALL = dict(trainings())


def narrow(recipe: Recipe) -> str:
    """An override that makes a ResNet a sixteenth as wide."""
    return f"model.channels={[max(1, width // 16) for width in getattr(recipe.model, 'channels', [])]}"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for recipes that start from one, or learn from one."""
    recipe = Recipe.load(FOLDER / "report_best.toml", [*FEW, narrow(ALL["report_best.toml"])])
    return train(recipe, out=tmp_path_factory.mktemp("before") / "run", device="cpu", quiet=True).run


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images in the form of the challenge's pickle."""
    images, _ = shapes10.draw(20, part="test")
    path = tmp_path_factory.mktemp("unlabelled") / "cifar_test_nolabels.pkl"
    path.write_bytes(pickle.dumps({b"data": images.transpose(0, 3, 1, 2).reshape(20, -1), b"ids": np.arange(20)}))
    return path


@pytest.mark.parametrize("name", ALL)
def test_a_few_steps(name: str, before: Path, unlabelled: Path, tmp_path: Path, one_thread: None) -> None:
    recipe = ALL[name]
    (tmp_path / "whole.toml").write_text(recipe.to_toml())
    changes = ["model.whiten_images=20" if recipe.model.name == "speednet" else narrow(recipe)]
    changes += [f"transfer.weights={before}"] if recipe.transfer is not None else []
    changes += {
        "supervised": [],
        "distill": [f"method.teacher={before}"],
        "pseudo_label": [f"method.unlabelled={unlabelled}", "method.rounds=1"],
        "dino": ["schedule.warmup_epochs=0.5", "method.prototypes=64"],
        "emp_ssl": ["method.hidden=64", "method.dimension=32"],
    }[recipe.method.name]
    few = Recipe.load(tmp_path / "whole.toml", [*FEW, *changes])
    result = train(few, out=tmp_path / "run", device="cpu", quiet=True)
    assert 0 <= result.test_accuracy <= 1
    assert result.summary["steps"] in (2, 3), "40 to 60 images, as the recipe divides them"


@pytest.mark.parametrize("name", ALL)
def test_networks_keep_to_their_limit(name: str) -> None:
    model = ALL[name].model
    assert count_parameters(build(model, 10, 32)) <= (model.max_parameters or 20_000_000)


def test_the_reports_architectures_have_its_parameters() -> None:
    """As counted from the report's code."""
    points = load(FOLDER / "report" / "architectures.toml").points
    counts = {point.name: count_parameters(build(point.recipe.model, 10, 32)) for point in points}
    assert counts == {"resnet18": 11_173_962, "one-block": 4_903_242, "halved": 2_797_610, "notebook": 1_247_530}


def test_the_uniform_stride_of_the_text() -> None:
    """Maps of 32, 11, 4, 2 and 1 pixels a side, and 64·64 weights and 2·64 of BN on the first stage's skip."""
    from fastres.models import layers

    code, text = load(FOLDER / "report" / "strides.toml").points
    networks = [build(point.recipe.model, 10, 32) for point in (code, text)]
    sides = {layer.name: layer.output[-1] for layer in layers(networks[1], 32)}
    assert [sides[name] for name in ("conv1", *(f"layer{stage}.0.conv2" for stage in (1, 2, 3, 4)))] == [
        32,
        11,
        4,
        2,
        1,
    ]
    assert count_parameters(networks[1]) - count_parameters(networks[0]) == 64 * 64 + 2 * 64
