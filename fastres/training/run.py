"""A training from top to bottom."""

from pathlib import Path
from shlex import quote
from typing import Any

from fastres.data import Dataset
from fastres.engine.memory import StartupTimer
from fastres.engine.process import left_as_found
from fastres.errors import Interrupted, UserError
from fastres.recipe import Recipe
from fastres.recipe.portable import self_contained
from fastres.runs import directory
from fastres.runs.schema import SUMMARY, Summary
from fastres.training.loop import OnEpoch, Run, RunResult
from fastres.training.methods.base import Method
from fastres.training.methods.registry import method_of
from fastres.utils.paths import expand_home
from fastres.utils.progress import say


def train(
    recipe: Recipe | str | Path,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    name: str | None = None,
    startup_timer: StartupTimer | None = None,
    on_epoch: OnEpoch | None = None,
) -> RunResult:
    """Train `recipe`, or that at this path, into the new run directory `out` (by default runs/<name>-<time>, the name
    being `record.name` or `name`, else that of the file or "run") and test what comes out.

    `startup_timer` is given by who began before this call. `on_epoch` is called after each epoch with the rows of
    metrics.jsonl so far; a text that it returns ends the training there, as `stopped` of the summary.

    Raises UserError for what the user can put right (Diverged where the loss is not finite), Interrupted after
    SIGINT or SIGTERM, when a checkpoint has been saved. What was interrupted before leaves no folder.
    """
    if not isinstance(recipe, Recipe):
        if not isinstance(recipe, (str, Path)):
            raise TypeError(f"train takes a fastres.Recipe or the path of one, not {type(recipe).__name__}")
        name, recipe = name or Path(recipe).stem, Recipe.load(recipe)
    recipe.check_single()
    recipe, out = self_contained(recipe), out and expand_home(out)
    directory.check_free(out)
    with left_as_found(device), _Trainer(device, quiet, startup_timer, on_epoch) as trainer:
        job = method_of(recipe.method).runs(recipe, trainer, begun=False)
        folder = directory.create(out, recipe.record.name or name or "run", recipe)
        try:
            with directory.run_lock(folder):
                return RunResult(folder, job.execute(folder))
        except (KeyboardInterrupt, Interrupted):
            directory.remove_unsaved(folder)
            raise


def resume(
    run: str | Path,
    *,
    device: str = "auto",
    quiet: bool = False,
    startup_timer: StartupTimer | None = None,
    on_epoch: OnEpoch | None = None,
) -> RunResult:
    """Complete an interrupted run from its last checkpoint, to the same bits as if nothing had happened.

    A run that was interrupted before its first checkpoint starts again. Raises as `train` does.
    """
    folder = expand_home(run)
    recipe = directory.read_recipe(folder)
    recipe.check_single()
    if (folder / SUMMARY).is_file():
        raise UserError(f"{folder} is complete: look at it with `fastres eval {quote(str(folder))}`, or train again")
    with directory.run_lock(folder), left_as_found(device), _Trainer(device, quiet, startup_timer, on_epoch) as trainer:
        job = method_of(recipe.method).runs(recipe, trainer, begun=True)
        return RunResult(folder, job.execute(folder))


class _Trainer:
    """Trains for a method: see `methods.base.Trainer`. The first run's start is that of the command."""

    def __init__(self, device: str, quiet: bool, first: StartupTimer | None, on_epoch: OnEpoch | None) -> None:
        self.device, self.quiet, self.on_epoch = device, quiet, on_epoch
        self._timer, self._fresh = first or StartupTimer(), True

    def __enter__(self) -> "_Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.done()

    def say(self, text: str) -> None:
        say(text, quiet=self.quiet)

    def _start(self) -> StartupTimer:
        """The timer of a run that starts now."""
        if not self._fresh:
            self._timer.done()
            self._timer = StartupTimer()
        self._fresh = False
        return self._timer

    def single(self, recipe: Recipe, method: Method[Any] | None = None) -> Run:
        return Run(recipe, self.device, self.quiet, self._start(), self.on_epoch, method)

    def inside(self, recipe: Recipe, folder: Path, run: Path) -> Summary:
        if (folder / SUMMARY).is_file():
            return Summary.read(folder / SUMMARY)
        self._fresh = False
        self._timer.done()
        try:
            if (folder / "recipe.toml").is_file():
                return resume(folder, device=self.device, quiet=self.quiet).summary
            return train(recipe, out=folder, device=self.device, quiet=self.quiet).summary
        except Interrupted as error:  # it names the folder inside, which nobody has to know
            raise Interrupted(str(error).replace(str(folder), str(run))) from error

    def dataset_of(self, recipe: Recipe) -> Dataset:
        with StartupTimer() as timer:
            data_module = Run(recipe, self.device, True, timer).data_module
        data_module.close()
        return data_module.dataset
