"""fastres: train small-image ResNets fast and report honestly.

`fastres.Recipe.load(path, overrides)` reads a recipe, `fastres.train(recipe)` runs it, and `fastres.load(run)` is what
came out, ready for images. `fastres.data` opens data sets, `fastres.augment` augments, `fastres.models` builds
networks. Nothing heavy is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

from fastres._version import __version__

if TYPE_CHECKING:
    from fastres import augment, data, kernels, layers, models, optim, recipe
    from fastres.errors import UserError
    from fastres.evaluation.predictions import Prediction, Predictions
    from fastres.evaluation.trained import TrainedModel, load
    from fastres.recipe import Recipe
    from fastres.training.loop import RunResult
    from fastres.training.run import resume, train

__all__ = ["Prediction", "Predictions", "Recipe", "RunResult", "TrainedModel", "UserError", "__version__"]
__all__ += ["augment", "data", "kernels", "layers", "load", "models", "optim", "recipe", "resume", "train"]

_HOMES = {
    "Prediction": "fastres.evaluation.predictions",
    "Predictions": "fastres.evaluation.predictions",
    "Recipe": "fastres.recipe",
    "RunResult": "fastres.training.loop",
    "TrainedModel": "fastres.evaluation.trained",
    "UserError": "fastres.errors",
    "load": "fastres.evaluation.trained",
    "resume": "fastres.training.run",
    "train": "fastres.training.run",
}


def __dir__() -> list[str]:
    """The names that there are, whether they have been imported or not."""
    return __all__


def __getattr__(name: str) -> Any:
    """Import a part when it is first asked for."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"fastres.{name}")
    raise AttributeError(f"module 'fastres' has no attribute '{name}'")
