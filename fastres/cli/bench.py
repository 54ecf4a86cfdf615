"""`fastres bench`."""

from pathlib import Path
from typing import Annotated

import typer

from fastres.cli.options import Commands, Device, Json, Overrides, continued
from fastres.cli.printing import print_json
from fastres.utils.terminal import printable

app = Commands(no_args_is_help=True, help="Measure recipes against each other, and a step against the machine.")


@app.command()
def pareto(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE", help="TOML recipes.", show_default=False)],
    runs: Annotated[int, typer.Option(help="Seeds of each recipe.")] = 3,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    out: Annotated[Path | None, continued("command", "runs/pareto-<time>")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Train recipes to their end: accuracy against images/s and against seconds, beside published results."""
    from fastres.experiments.pareto import page
    from fastres.experiments.pareto.run import pareto as train_all

    result = train_all(recipes, seeds=runs, settings=set_, out=out, device=device, quiet=quiet)
    if as_json:
        print_json({"out": str(result.folder), **result.facts.to_json()})
        return
    print(page.table(result.facts).for_terminal())
    for warning in page.warnings(result.facts):
        print(f"\n{printable(warning)}")
    print()
    print(printable(f"page {result.folder / page.MARKDOWN}"))


@app.command()
def roofline(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="TOML recipe.", show_default="the defaults: a ResNet-18")
    ] = None,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="New folder to write.", show_default="runs/roofline-<time>")] = None,
    as_json: Json = False,
) -> None:
    """Time a training step and its parts against what this machine's memory and arithmetic allow."""
    from fastres.bench import roofline_page
    from fastres.bench.roofline import roofline as measure

    result = measure(recipe, settings=set_, out=out, device=device)
    if as_json:
        print_json({"out": str(result.folder), **result.facts.to_json()})
        return
    for line in roofline_page.ceilings(result.facts):
        print(line)
    print()
    print(roofline_page.table(result.facts).for_terminal())
    for warning in roofline_page.warnings(result.facts):
        print(f"\n{printable(warning)}")
    print()
    print(printable(f"page {result.folder / roofline_page.MARKDOWN}"))
