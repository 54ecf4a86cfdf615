"""Names of before: they are the things of today."""

import subprocess
import sys

import pytest
import torch

from fastres import recipe
from fastres.augment import Augment


def test_recipe_tables() -> None:
    tables = [name for name in vars(recipe) if name.endswith("Config")]
    assert len(tables) > 30
    for name in tables:
        assert getattr(recipe, name.removesuffix("Config")) is getattr(recipe, name)
    with pytest.raises(AttributeError, match=r"module 'fastres\.recipe' has no attribute 'Agument'"):
        _ = recipe.Agument


def test_methods() -> None:
    augment = Augment(recipe.Augment(translate=4), mix=recipe.Mix())
    images, indices = torch.arange(3 * 64, dtype=torch.uint8).reshape(1, 8, 8, 3), torch.tensor([5])
    assert torch.equal(augment.unmixed(images, indices, 1), augment.augment(images, indices, 1))
    assert torch.equal(augment.plain(images), augment.normalize(images))
    assert Augment.unmixed is Augment.augment


@pytest.mark.parametrize(
    "code",
    [
        "from fastres.data.torchvision_cpu import import_torchvision as found",
        "import fastres.data.torchvision_cpu; found = fastres.data.torchvision_cpu.import_torchvision",
        "from fastres.data import torchvision_cpu; found = torchvision_cpu.import_torchvision",
    ],
)
def test_modules(code: str) -> None:
    check = "from fastres.data.compat.torchvision import import_torchvision as now; assert found is now"
    subprocess.run([sys.executable, "-W", "error", "-c", f"{code}; {check}"], check=True)
