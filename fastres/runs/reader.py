"""Run directories as they are found, finished or not, of this version or an older one: what they say of a run.

They come from anywhere, so their JSON is checked against the tables below before anything believes it. Nothing here
imports torch; `directory.py` makes run directories.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastres.errors import UserError
from fastres.recipe import Recipe
from fastres.utils.statistics import wilson
from fastres.utils.untrusted import read_regular

_LIMIT = 64 << 20  # bytes of a file that is believed: 100,000 epochs take some 25 MB

# Bounds far beyond any run, below which sums and axes stay finite.
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Loss = Annotated[float, Field(ge=-1e300, le=1e300)]


class _File(BaseModel):
    """Keys that are read of a file in a run directory; others are ignored, those of another version may be missing."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class Round(_File):
    """A round of pseudo-labelling in summary.json."""

    test_accuracy: Share


class Summary(_File):
    """summary.json; units are those of `results.summarise`."""

    stopped: str | None = None
    test_accuracy: Share | None = None
    test_images: Count | None = None
    parameters: Count | None = None
    epochs: Amount | None = None
    seconds: Amount | None = None
    images_per_second: Amount | None = None
    cold_seconds: Amount | None = None
    warm_seconds: Amount | None = None
    device: str | None = None
    rounds: tuple[Round, ...] = ()


class Corruptions(_File):
    """shift.json."""

    accuracy: dict[str, list[Share]]
    severities: list[int]
    mean_corruption_accuracy: Share


class Epoch(_File):
    """A line of metrics.jsonl; a number that was not finite is None."""

    epoch: Count
    train_loss: Loss | None = None
    val_loss: Loss | None = None
    val_accuracy: Share | None = None


class _Machine(_File):
    """environment.json."""

    device: str | None = None
    cpu_model: str | None = None
    gpu_name: str | None = None


AnyFile = TypeVar("AnyFile", bound=_File)


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
    summary = read_json(folder / "summary.json", Summary)
    machine = read_json(folder / "environment.json", _Machine) or _Machine()
    device = machine.gpu_name if machine.device == "cuda" else machine.cpu_model
    finished, summary = summary is not None, summary or Summary()
    epochs = _read_epochs(folder / "metrics.jsonl")
    return Run(number, folder, name, recipe, epochs, finished, summary, summary.device or device)


def read_json(path: Path, kind: type[AnyFile]) -> AnyFile | None:
    """The JSON object at `path`, checked; None where there is no file. Raises UserError where it is damaged."""
    data = _contents(path)
    return None if data is None else _checked(path, kind, data)


def _read_epochs(path: Path) -> tuple[Epoch, ...]:
    rows = tuple(_checked(path, Epoch, line) for line in (_contents(path) or b"").splitlines())
    if [row.epoch for row in rows] != list(range(1, len(rows) + 1)):
        raise _damaged(path, "its epochs do not count from 1")
    return rows


def _contents(path: Path) -> bytes | None:
    if not path.exists():
        return None
    return read_regular(path, _LIMIT, "it is none that fastres wrote; leave the run out")


def _checked(path: Path, kind: type[AnyFile], data: bytes) -> AnyFile:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = f"{fault['loc'][0]}: " if fault["loc"] else ""
        raise _damaged(path, f"{key}{fault['msg']}") from error


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged ({what}): restore it, train again, or leave the run out")
