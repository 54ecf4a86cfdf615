"""A recipe that means the same from any folder: absolute paths, and the recipe of its teacher inside."""

from fastres.recipe import DataConfig, DistillConfig, PseudoLabelConfig, Recipe
from fastres.recipe.data import NAMED
from fastres.recipe.loading import Values
from fastres.recipe.teacher import is_recipe, read_teacher
from fastres.utils.paths import expand_home


def self_contained(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that it means the same files wherever it is run from, and with a teacher's
    recipe inside. Raises UserError where that is none."""
    data = recipe.data
    method, transfer, extra = recipe.method, recipe.transfer, data.extra
    if isinstance(method, DistillConfig):
        method = method.model_copy(update={"teacher": _teacher(method.teacher, data)})
    if isinstance(method, PseudoLabelConfig):
        method = method.model_copy(update={"unlabelled": _source(method.unlabelled)})
    if transfer is not None:
        transfer = transfer.model_copy(update={"weights": _absolute(transfer.weights)})
    if extra is not None:
        extra = extra.model_copy(update={"labels": _absolute(extra.labels), "source": _source(extra.source)})
    root = None if data.root is None else _absolute(data.root)
    data = data.model_copy(update={"source": _source(data.source), "extra": extra, "root": root})
    return recipe.model_copy(update={"data": data, "method": method, "transfer": transfer})


def _teacher(teacher: str | Values, data: DataConfig) -> str | Values:
    if not is_recipe(teacher):
        return _absolute(str(teacher))
    return self_contained(read_teacher(teacher, data)).model_dump(exclude_none=True)


def _source(source: str) -> str:
    if source in NAMED or not (path := expand_home(source)).exists():
        return source
    return str(path.absolute())


def _absolute(path: str) -> str:
    return str(expand_home(path).absolute())
