"""`fastres train`, `speedrun` and `sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from fastres.cli.options import Device, Json, Overrides, RecipeFile, continued
from fastres.cli.printing import print_json
from fastres.engine.memory import StartupTimer
from fastres.errors import UserError


def train(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="TOML recipe.", show_default=False)] = None,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="New run directory.", show_default="runs/<name>-<time>")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Complete an interrupted run instead.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe into a run directory; test and report what comes out."""
    if (recipe is None) == (resume is None):
        raise UserError("give either a RECIPE to train or --resume RUN to complete")
    if resume is not None and (set_ or out is not None):
        raise UserError("--resume goes on with the run's own recipe in its own folder: leave out --set and --out")
    with StartupTimer() as startup_timer:  # Python's own start, with Typer 0.1 s, came before
        from fastres.training import run as training

        if resume is not None:
            result = training.resume(resume, device=device, quiet=quiet, startup_timer=startup_timer)
        else:
            from fastres.recipe import Recipe

            assert recipe is not None
            loaded, name = Recipe.load(recipe, set_), recipe.stem
            result = training.train(loaded, out=out, device=device, quiet=quiet, name=name, startup_timer=startup_timer)
    summary = result.summary
    if as_json:
        print_json({"run": str(result.run), **summary.to_json()})
        return
    from fastres.utils.statistics import wilson

    images = summary.test_images or 0
    low, high = wilson(round(result.test_accuracy * images), images)
    print(f"test accuracy {result.test_accuracy:.2%} (95% interval of the test sample {low:.2%} to {high:.2%})")
    speed = f"{summary.images_per_second or 0:,.0f} images/s"
    print(f"{summary.seconds:.1f} s, {speed}, {summary.parameters:,} parameters")
    print(f"run directory {result.run}")


def speedrun(
    recipe: RecipeFile,
    runs: Annotated[int, typer.Option(help="How many; fixed before the first.", show_default=False)],
    set_: Overrides = [],  # noqa: B006 - typer copies it
    target: Annotated[float, typer.Option(help="Accuracy that the mean is compared with, as a share.")] = 0.94,
    device: Device = "auto",
    out: Annotated[Path | None, continued("speedrun", "runs/<name>-speedrun-<time>")] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe many times, compiled once: time of a run, mean accuracy, its interval and significance."""
    from fastres.experiments.speedrun.results import describe
    from fastres.experiments.speedrun.run import speedrun as run_all
    from fastres.recipe import Recipe

    loaded = Recipe.load(recipe, set_)
    result = run_all(loaded, runs, target=target, out=out, device=device, name=recipe.stem)
    if as_json:
        print_json({"out": str(result.folder), **result.facts.to_json()})
        return
    print(describe(result.facts))
    print(f"speedrun folder {result.folder}")


def sweep(
    recipe: RecipeFile,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    out: Annotated[Path | None, continued("sweep", "runs/<name>-sweep-<time>")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share a search.")] = 1,
    as_json: Json = False,
) -> None:
    """Train every point of a recipe that is a sweep, or search for the best; table and page of what differs."""
    from fastres.experiments.sweep.results import means_table, notes, table
    from fastres.recipe import Recipe

    about = Recipe.load(recipe, set_).sweep
    if about is not None and about.search is not None:
        from fastres.experiments.sweep import search

        plan = search.load(recipe, set_)
        result = search.search(plan, out=out, device=device, workers=workers, name=recipe.stem)
    else:
        from fastres.experiments.sweep import plan as sweeps
        from fastres.experiments.sweep.run import sweep as train_all

        if workers != 1:
            raise UserError("--workers is for a [sweep.search]: the points of a grid are trained one after the other")
        result = train_all(sweeps.load(recipe, set_), out=out, device=device, name=recipe.stem)
    if as_json:
        print_json({"out": str(result.folder), **result.facts.to_json()})
        return
    print(table(result.facts).for_terminal())
    if result.facts.means:
        print()
        print(means_table(result.facts).for_terminal())
    for note in notes(result.facts):
        print(f"\n{note}")
    print(f"\nsweep folder {result.folder}")
