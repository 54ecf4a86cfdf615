"""Photos of three classes as they lie, and a run that learnt them in a second."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from fastres.recipe import Recipe
from fastres.training.run import train

NAMES = ("cat", "dog", "fox")
RECIPE = """
model = { blocks = [1], channels = [8], strides = [2], kernels = [3], skip_kernels = [1] }
optimizer = { name = "adamw", lr = 0.01 }
train = { epochs = 2, batch_size = 30, precision = "fp32", compile = false }
record = { report = false }
"""


def write_photos(folder: Path, parts: dict[str, int], names: Iterable[str] = NAMES) -> None:
    """JPEG and PNG files of odd sizes, so many of each class in each part: noise, brighter in the class's own channel,
    by so much that some are mistaken for another class."""
    random = np.random.default_rng(0)
    for part, count in parts.items():
        for name in names:
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 200, (*random.integers(20, 60, 2), 3))
                pixels[:, :, NAMES.index(name)] += random.integers(-10, 40)
                ending = "jpg" if number % 2 else "png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number}.{ending}")


def train_on(source: Path, out: Path, *overrides: str) -> Path:
    """The run directory `out` of RECIPE on `source`, which calls its validation folder its test set."""
    recipe = out.with_suffix(".toml")
    recipe.write_text(RECIPE)
    settings = [f"data.source={source}", "data.validation_share=0.2", *overrides]
    return train(Recipe.load(recipe, settings), out=out, device="cpu", quiet=True).run
