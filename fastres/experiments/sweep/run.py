"""Sweeps: the points of a recipe with `[sweep]`, checked before the first run and trained one after the other.

Each point is an ordinary run directory. The same command goes on: it picks up finished runs, resumes interrupted ones.
"""

from pathlib import Path
from shlex import quote

import torch

from fastres.engine.device import choose_device
from fastres.errors import Diverged, Interrupted, UserError
from fastres.experiments.sweep.page import write_results
from fastres.experiments.sweep.plan import SweepPlan, SweepPoint
from fastres.experiments.sweep.results import DIVERGED, SWEEP, read_point, summarise
from fastres.models import build, layers
from fastres.recipe import Recipe
from fastres.recipe.portable import self_contained
from fastres.runs import directory
from fastres.runs.directory import PLAN
from fastres.runs.many import Results, continued_folder
from fastres.runs.schema import Failure, Point, Sweep
from fastres.training.data import shape_of
from fastres.training.loop import OnEpoch
from fastres.training.run import resume, train
from fastres.utils.files import write_text
from fastres.utils.format import duration
from fastres.utils.progress import say


def sweep(
    plan: SweepPlan, *, out: str | Path | None = None, device: str = "auto", quiet: bool = False, name: str = "recipe"
) -> Results[Sweep]:
    """Train the points of `plan` into run directories of the folder `out` (by default runs/<name>-sweep-<time>), and
    write the table and the page.

    A point that is finished there is picked up, an interrupted one is resumed; a point whose loss is not finite is
    kept as diverged, and the others go on. Raises UserError for what the user can put right, Interrupted after Ctrl-C
    or SIGTERM, when everything can be resumed.
    """
    choose_device(device)
    work = [work_of(point) for point in plan.points]
    with continued_folder(out, f"{name}-sweep", PLAN) as folder:
        for point in plan.points:
            check_folder(folder / point.name, point.recipe)
        write_text(folder / PLAN, plan.recipe.to_toml())
        (folder / SWEEP).unlink(missing_ok=True)  # its presence says that all points are done
        rows = complete(folder, plan.points, work, device, quiet)
        assert plan.recipe.sweep is not None
        summary = summarise(rows, plan.recipe.sweep.by, source=plan.recipe.data.source)
        write_results(folder, summary, plan.recipe)
    return Results(folder, summary)


def work_of(point: SweepPoint) -> float:
    """Multiply-adds of the point's training on one image of the set. Raises UserError where its network cannot be."""
    classes, size, _ = shape_of(point.recipe.data)
    try:
        network = build(point.recipe.model, classes, size)
    except UserError as error:
        raise UserError(f"point {point.name}: {error}") from error
    return point.recipe.train.epochs * sum(layer.multiply_adds for layer in layers(network, size))


def check_folder(run: Path, recipe: Recipe) -> None:
    """Raise UserError where `run` is begun with another recipe."""
    if (run / "recipe.toml").is_file() and directory.read_recipe(run) != self_contained(recipe):
        raise UserError(f"{run} was trained with another recipe: give another --out, or remove that folder")


def complete(folder: Path, points: list[SweepPoint], work: list[float], device: str, quiet: bool) -> list[Point]:
    """Train what is missing of `points`, each into a run directory of its name in `folder`; returns their rows
    (`read_point`). `work` says how the time of each compares with the others'. Raises Interrupted after Ctrl-C or
    SIGTERM, when everything can be resumed."""
    rows: list[Point] = []
    trained = 0
    try:
        for number, point in enumerate(points, 1):
            run = folder / point.name
            row = read_point(run, point.name, point.point, point.settings)
            if row is None:
                before = f"  {number - 1} were finished before" if number > 1 and not trained else ""
                left = _left(rows, work)
                ends = f"  {duration(left)} left" if left else ""
                say(f"point {number}/{len(points)}: {point.name}{before}{ends}", quiet=quiet)
                train_run(run, point.recipe, device, quiet)
                trained += 1
                row = read_point(run, point.name, point.point, point.settings)
                assert row is not None, "a run that ends without an error has a summary"
            rows.append(row)
    except (KeyboardInterrupt, Interrupted) as stop:
        how = f"{str(stop).partition(';')[0]} of {point.name}" if isinstance(stop, Interrupted) else "interrupted"
        raise Interrupted(
            f"{how}; {len(rows)} of {len(points)} points are finished; "
            f"the same command with --out {quote(str(folder))} goes on"
        ) from None
    return rows


def _left(rows: list[Point], work: list[float]) -> float | None:
    """Seconds that the points without a row take, in proportion to their work; None before anything is measured."""
    measured = [(row.seconds, done) for row, done in zip(rows, work, strict=False) if row.seconds is not None]
    done = sum(amount for _, amount in measured)
    return sum(work[len(rows) :]) * sum(seconds for seconds, _ in measured) / done if done else None


def train_run(run: Path, recipe: Recipe, device: str, quiet: bool, on_epoch: OnEpoch | None = None) -> None:
    """Train or resume one of many runs to its end, be it a divergence."""
    torch.compiler.reset()  # what earlier points compiled counts against a limit of recompilations, and holds memory
    try:
        if (run / "recipe.toml").is_file():
            resume(run, device=device, quiet=quiet, on_epoch=on_epoch)
        else:
            train(recipe, out=run, device=device, quiet=quiet, on_epoch=on_epoch)
    except Diverged as error:
        say(f"{run.name}: {error}", quiet=quiet)
        Failure(error=str(error)).write(run / DIVERGED)
