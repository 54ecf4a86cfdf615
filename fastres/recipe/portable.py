"""A recipe that means the same from any folder: absolute paths, and the recipe of its teacher inside."""

from pathlib import Path
from typing import Any

from fastres.recipe import DataConfig, DistillConfig, PseudoLabelConfig, Recipe
from fastres.recipe.data import NAMED
from fastres.recipe.teacher import is_recipe, read_teacher


def self_contained(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that it means the same files wherever it is run from, and with a teacher's
    recipe inside. Raises UserError where that is none."""
    data = recipe.data
    changes: dict[str, Any] = {}
    others: dict[str, Any] = {}
    if isinstance(recipe.method, DistillConfig):
        others["method"] = recipe.method.model_copy(update={"teacher": _teacher(recipe.method.teacher, recipe.data)})
    if isinstance(recipe.method, PseudoLabelConfig):
        others["method"] = recipe.method.model_copy(update={"unlabelled": _source(recipe.method.unlabelled)})
    if recipe.transfer is not None:
        others["transfer"] = recipe.transfer.model_copy(update={"weights": _absolute(recipe.transfer.weights)})
    changes["source"] = _source(data.source)
    if data.extra is not None:
        extra = data.extra.model_copy(update={"labels": _absolute(data.extra.labels)})
        changes["extra"] = extra.model_copy(update={"source": _source(extra.source)})
    if data.root is not None:
        changes["root"] = _absolute(data.root)
    return recipe.model_copy(update={"data": data.model_copy(update=changes), **others})


def _teacher(teacher: str | dict[str, Any], data: DataConfig) -> str | dict[str, Any]:
    if not is_recipe(teacher):
        return _absolute(str(teacher))
    return self_contained(read_teacher(teacher, data)).model_dump(exclude_none=True)


def _source(source: str) -> str:
    return str(Path(source).absolute()) if source not in NAMED and Path(source).exists() else source


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
