"""One run from top to bottom."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from fastres.engine.memory import StartupTimer
from fastres.errors import Interrupted, UserError
from fastres.recipe import DistillConfig, PseudoLabelConfig, Recipe, SupervisedConfig
from fastres.recipe.portable import self_contained
from fastres.recipe.teacher import FOLDER as TEACHER
from fastres.recipe.teacher import read_teacher, trains_teacher
from fastres.runs import directory
from fastres.training.loop import OnEpoch, Run, RunResult
from fastres.utils.progress import say


def train(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    name: str = "run",
    startup_timer: StartupTimer | None = None,
    on_epoch: OnEpoch | None = None,
) -> RunResult:
    """Train `recipe` into the new run directory `out` (by default runs/<name>-<time>) and test what comes out.

    `startup_timer` is given by who began before this call. `on_epoch` is called after each epoch with the rows of
    metrics.jsonl so far; a text that it returns ends the training there, as `stopped` of the summary.

    Raises UserError for what the user can put right (Diverged where the loss is not finite), Interrupted after
    SIGINT or SIGTERM, when a checkpoint has been saved.
    """
    recipe.check_single()
    recipe = self_contained(recipe)
    directory.check_free(out)
    if isinstance(recipe.method, PseudoLabelConfig) or trains_teacher(recipe):
        return _runs_in(recipe, out, device, quiet, startup_timer, on_epoch, recipe.record.name or name)
    with startup_timer or StartupTimer() as startup_timer:
        run = Run(recipe, device, quiet, startup_timer, on_epoch)
        folder = directory.create(out, recipe.record.name or name, recipe)
        with directory.run_lock(folder):
            return run.execute(folder, [])


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
    folder = Path(run)
    recipe = directory.read_recipe(folder)
    recipe.check_single()
    if (folder / "summary.json").is_file():
        raise UserError(f"{folder} is complete: look at it with `fastres eval {folder}`, or train again")
    if isinstance(recipe.method, PseudoLabelConfig) or trains_teacher(recipe):
        return _runs_in(recipe, folder, device, quiet, startup_timer, on_epoch)
    with directory.run_lock(folder), startup_timer or StartupTimer() as startup_timer:
        resumed = Run(recipe, device, quiet, startup_timer, on_epoch)
        return resumed.execute(folder, resumed.restore(folder))


def _runs_in(
    recipe: Recipe,
    out: str | Path | None,
    device: str,
    quiet: bool,
    startup_timer: StartupTimer | None,
    on_epoch: OnEpoch | None,
    name: str | None = None,
) -> RunResult:
    """Several runs inside of the new run directory `out`, or without `name` of one that was begun."""
    if startup_timer is not None:
        startup_timer.done()  # each of them has one of its own
    if isinstance(recipe.method, PseudoLabelConfig):
        return _rounds(recipe, out, device, quiet, name)
    return _taught(recipe, out, device, quiet, on_epoch, name)


def _rounds(recipe: Recipe, out: str | Path | None, device: str, quiet: bool, name: str | None) -> RunResult:
    """Pseudo-labelling in the new run directory `out`, or without `name` in one that was begun: runs in a run."""
    from fastres.training.methods.pseudo_label import Rounds

    rounds = Rounds.open(recipe, quiet=quiet)
    folder = Path(str(out)) if name is None else directory.create(out, name, recipe)

    def one(recipe: Recipe, run: Path) -> dict[str, Any]:
        return _complete(recipe, run, device, quiet)

    with directory.run_lock(folder):
        try:
            return RunResult(folder, rounds.execute(folder, one, partial(say, quiet=quiet), device))
        except UserError:
            if not (folder / "rounds").exists():  # the first round could not even begin: leave nothing behind
                shutil.rmtree(folder)
            raise


def _taught(
    recipe: Recipe, out: str | Path | None, device: str, quiet: bool, on_epoch: OnEpoch | None, name: str | None
) -> RunResult:
    """Distillation by a recipe in the new run directory `out`, or without `name` in one that was begun: the teacher's
    run lies in it, and comes first."""
    assert isinstance(recipe.method, DistillConfig)
    teacher = read_teacher(recipe.method.teacher, recipe.data)
    if name is not None:
        _check_both(teacher, recipe.model_copy(update={"method": SupervisedConfig()}), device)
    folder = Path(str(out)) if name is None else directory.create(out, name, recipe)
    with directory.run_lock(folder):
        teacher_folder = folder / TEACHER
        try:
            say(f"the teacher, in {teacher_folder}", quiet=quiet)
            _complete(teacher, teacher_folder, device, quiet)
        except Interrupted as error:  # it names the teacher's folder, which nobody has to know
            raise Interrupted(str(error).replace(str(teacher_folder), str(folder))) from error
        say("the student", quiet=quiet)
        with StartupTimer() as startup_timer:
            student = Run(recipe, device, quiet, startup_timer, on_epoch, teacher_folder)
            return student.execute(folder, student.restore(folder))


def _check_both(teacher: Recipe, student: Recipe, device: str) -> None:
    """Raise UserError for what is wrong with either: of the student it would else come out after hours of teaching."""
    from fastres.training.methods.distillation import check_fits

    with StartupTimer() as startup_timer:
        feeds = [Run(recipe, device, True, startup_timer).data_module for recipe in (teacher, student)]
    for data_module in feeds:
        data_module.close()
    dataset = feeds[0].dataset
    check_fits(dataset.source, dataset.classes, dataset.image_size, feeds[1].dataset)


def _complete(recipe: Recipe, run: Path, device: str, quiet: bool) -> dict[str, Any]:
    """The summary of a run that is a part of another one: a finished one's, else after training or resuming it."""
    if (run / "summary.json").is_file():
        return json.loads((run / "summary.json").read_text())
    begun = (run / "recipe.toml").is_file()
    options: dict[str, Any] = {"device": device, "quiet": quiet}
    return (resume(run, **options) if begun else train(recipe, out=run, **options)).summary
