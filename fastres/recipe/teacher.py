"""A teacher that is given as a recipe: it is trained first, as an ordinary run inside of the student's."""

from pathlib import Path

from fastres.errors import UserError
from fastres.recipe import DataConfig, Recipe
from fastres.recipe.loading import Layer, Values, layers, resolve
from fastres.utils.paths import expand_home

FOLDER = "teacher"
"""Folder of the teacher's run in the student's run directory."""


def read_teacher(teacher: str | Values, data: DataConfig) -> Recipe:
    """The recipe of a teacher, from its file or its table; `data` is the student's, which it has without one of its
    own. Raises UserError where it is no recipe, or not of a single training."""
    path = expand_home(teacher) if isinstance(teacher, str) else Path("method.teacher")
    entries: list[Layer] = layers(path, []) if isinstance(teacher, str) else [(str(path), teacher)]
    if not any("model" in layer for _, layer in entries):  # such as --set method.teacher.train.epochs=3 beside a path
        raise UserError(f"{path} has no [model]: a teacher's recipe says which network it is; change it in its file")
    recipe: Recipe = resolve(Recipe, entries, path)
    if recipe.sweep is not None or recipe.method.name != "supervised":
        what = "is a sweep" if recipe.sweep is not None else f"has method.name = '{recipe.method.name}'"
        raise UserError(f"{path} {what}: a teacher is one training with labels; train it first, and name its folder")
    return recipe if any("data" in layer for _, layer in entries) else recipe.model_copy(update={"data": data})


def is_recipe(teacher: str | Values) -> bool:
    """Whether `method.teacher` is a recipe, not the folder of a run."""
    return isinstance(teacher, dict) or teacher.endswith(".toml")
