"""Run directories as they are found, finished or not, of this version or an older one: what they say of a run.

Nothing here imports torch; `directory.py` makes run directories.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastres.errors import UserError
from fastres.recipe import Recipe
from fastres.runs.environment import Environment
from fastres.runs.schema import ENVIRONMENT, SUMMARY, Epoch, Summary, read_epochs
from fastres.utils.statistics import wilson


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory, finished or not."""

    number: int
    """Its place in the comparison, from 1; tables and figures call it by that."""
    path: Path
    name: str
    """Name of the folder, or its path where two folders have the same name."""
    recipe: Recipe
    epochs: tuple[Epoch, ...]
    """The finished epochs."""
    finished: bool
    """Whether it has a summary."""
    summary: Summary
    """Without any value while it has none."""
    device: str | None
    """Model of the CPU or GPU."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of the test accuracy, by the choice of the test images (Wilson 1927)."""
        accuracy, images = self.summary.test_accuracy, self.summary.test_images
        return None if accuracy is None or not images else wilson(round(accuracy * images), images)

    @property
    def progress(self) -> str:
        """Epochs trained, "3 of 10" where that is not what the recipe asked for; a dash where it is not known."""
        planned, done = self.recipe.train.epochs, self.epochs_done
        if done is None:
            return "–"
        # The last epoch ends with a whole step: 1.4 may be all that is meant by 1.5.
        return f"{round(done, 2):g}" if self.status == "completed" else f"{round(done, 2):g} of {planned:g}"

    @property
    def epochs_done(self) -> float | None:
        """Epochs trained so far, whole ones while the run is not finished; None where a finished run does not say."""
        return self.summary.epochs if self.finished else len(self.epochs)

    @property
    def status(self) -> str:
        """`completed`, or why not."""
        return (self.summary.stopped or "completed") if self.finished else "running or interrupted"


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run directories that `paths` are or directly hold, each once; those of a folder in the order of their names.

    Raises UserError for a path that neither is a run nor holds one.
    """
    unique: dict[Path, Path] = {}
    for path in paths:
        try:
            if _is_run(path):
                runs = [path]
            else:
                runs = sorted(filter(_is_run, path.iterdir())) if path.is_dir() else []
        except PermissionError as error:
            raise UserError(f"{error.filename}: no right to read it; change its permissions") from error
        if not runs:
            raise UserError(
                f"{path} is not a run directory and holds none: a run has a recipe.toml; "
                "give folders that `fastres train` made"
            )
        for run in runs:
            unique.setdefault(run.resolve(), run)
    return list(unique.values())


def _is_run(path: Path) -> bool:
    return (path / "recipe.toml").is_file()


def read_run(number: int, folder: Path, name: str) -> Run:
    """The run in `folder`. Raises UserError for a recipe that does not load and a file that is damaged."""
    recipe = Recipe.load(folder / "recipe.toml")
    summary = Summary.read_if_there(folder / SUMMARY)
    machine = Environment.read_if_there(folder / ENVIRONMENT) or Environment()
    finished, summary = summary is not None, summary or Summary()
    epochs = tuple(read_epochs(folder))
    return Run(number, folder, name, recipe, epochs, finished, summary, summary.device or machine.device_name)
