"""Recipes shortened by `--scale`: a pure function.

A run's cost is epochs times images. At scale s both are multiplied by √s: with epochs alone, small scales would leave
less than one, with images alone, too few to train on. The schedule is a function of train.epochs and shrinks with it.
"""

import math

from pydantic import ValidationError

from fastres.errors import UserError
from fastres.recipe import DataConfig, Recipe

STEPS = 10
"""Steps an epoch has at least, as far as there are images: fewer would measure little but the start."""
TESTED = 1000
"""Test images that stay at least: an accuracy of 1,000 has an error of up to 1.6 points, of 100 one of 5."""


def scaled(recipe: Recipe, scale: float, train_images: int, test_images: int, *, timed: bool = False) -> Recipe:
    """`recipe` at `scale` (above 0, up to 1) on a set of so many training and test images; at 1 it stays as it is.

    Epochs are whole numbers from 1 on. Images to train on after the split fill whole batches, so that nothing compiles
    for a partial one. With `timed` the epochs stay, as there are only a few and the first starts the workers. Raises
    UserError where what is left is no valid recipe.
    """
    if scale == 1:
        return recipe
    factor, data, train = math.sqrt(scale), recipe.data, recipe.train
    whole = min(train_images, data.train_images or train_images)
    tested = min(test_images, data.test_images or test_images)
    steps = max(STEPS, round(factor * _after_split(data, whole) / train.batch_size))
    changes = {
        "data": {
            "train_images": _before_split(data, steps * train.batch_size, whole),
            "test_images": min(tested, max(TESTED, round(factor * tested))),
        },
        "train": {} if timed else {"epochs": float(max(1, round(factor * train.epochs)))},
    }
    values = recipe.model_dump()
    for table, content in changes.items():
        values[table] |= content
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(f"--scale {scale:g} leaves no valid recipe: {error.errors()[0]['msg']}") from error


def trained_images(recipe: Recipe, train_images: int) -> int:
    """Images that an epoch of `recipe` trains on, of a set of `train_images`."""
    return _after_split(recipe.data, min(train_images, recipe.data.train_images or train_images))


def _after_split(data: DataConfig, count: int) -> int:
    """Of `count` training images those that are trained on."""
    return count if data.split == "none" else count - round(count * data.validation_share)


def _before_split(data: DataConfig, wanted: int, most: int) -> int:
    """The fewest training images, up to `most`, of which `wanted` are trained on."""
    # One image more leaves one more to train on or none, so no number is passed over.
    return next((count for count in range(wanted, most) if _after_split(data, count) == wanted), most)
