"""`fastres reproduce`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastres.cli.options import Device, Json, Overrides
from fastres.cli.printing import print_json

OUT = Path("runs/reproduce")


def reproduce(
    claims: Annotated[
        list[str] | None,
        typer.Argument(metavar="CLAIM", help="Claims, or subjects of several; by default all.", show_default=False),
    ] = None,
    recipes: Annotated[Path, typer.Option(help="Folder of the report's recipes.")] = Path("recipes"),
    out: Annotated[Path, typer.Option(help="Folder to write; what is there already is picked up.")] = OUT,
    source: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Images.", show_default="that of the recipes, cifar10")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each recipe.")] = 3,
    scale: Annotated[float, typer.Option(help="Fraction of epochs times images, for a machine without a GPU.")] = 1.0,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    workers: Annotated[
        int | None, typer.Option(help="Runs side by side.", show_default="1 on a CPU, 4 on a GPU")
    ] = None,
    device: Device = "auto",
    list_: Annotated[bool, typer.Option("--list", help="Only say what would be trained.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the claims of the report: table with verdicts, page, figures."""
    options: dict[str, Any] = {"recipes": recipes, "out": out, "source": source, "settings": set_}
    options |= {"seeds": seeds, "scale": scale}
    if list_:
        from fastres.experiments.reproduce import listing
        from fastres.experiments.reproduce.plan import make

        plan = make(claims or [], **options)
        if as_json:
            print_json(listing.facts(plan).to_json())
            return
        print(listing.claims(plan).for_terminal())
        print()
        print(listing.runs(plan).for_terminal())
        print(f"\n{listing.total(plan)}")
        return
    from fastres.experiments.reproduce.page import counts
    from fastres.experiments.reproduce.run import reproduce as measure_all
    from fastres.report.document import Table

    result = measure_all(claims or [], **options, device=device, workers=workers, quiet=quiet)
    if as_json:
        print_json({"out": str(result.folder), **result.facts.to_json()})
        return
    lines = [[row.name, row.figure, row.measured, str(row.seeds), row.verdict] for row in result.facts.claims]
    print(Table(["claim", "report", "measured, mean ± SD", "seeds", "verdict"], lines, text_columns=3).for_terminal())
    print(f"\n{counts(result.facts)}")
    print(f"page {result.folder / 'report.html'}")
