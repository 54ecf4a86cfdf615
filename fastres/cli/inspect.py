"""`fastres show` and `doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from fastres.cli.options import Device, Json, Overrides, RecipeFile, Root
from fastres.cli.printing import print_json
from fastres.errors import UserError
from fastres.utils.format import plural
from fastres.utils.terminal import printable


def show(
    recipe: RecipeFile,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    augment: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw training images before and after augmentation, and stop.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the resolved recipe and the network's layers with shapes, parameters and multiply-adds."""
    from dataclasses import asdict

    from fastres.models import build, count_parameters, layers
    from fastres.recipe import Recipe
    from fastres.report.document import Table
    from fastres.training.data import shape_of

    loaded = Recipe.load(recipe, set_)
    if augment is not None:
        from fastres.training.page import draw_augmented

        shown = draw_augmented(loaded, augment)
        if as_json:
            print_json({"out": str(augment), "images": shown})
        else:
            print(f"{shown} training images before and after augmentation in {augment}")
        return
    classes, size, known = shape_of(loaded.data)
    network = build(loaded.model, classes, size)
    network_layers = layers(network, size)
    parameters, products = count_parameters(network), sum(layer.multiply_adds for layer in network_layers)
    points = []
    if loaded.sweep is not None and loaded.sweep.search is None:
        from fastres.experiments.sweep.plan import load

        points = load(recipe, set_).points
    if as_json:
        print_json(
            {
                "recipe": loaded.model_dump(exclude_none=True),
                "recipe_hash": loaded.hash(),
                "layers": [asdict(layer) for layer in network_layers],
                "parameters": parameters,
                "multiply_adds": products,
                **({"points": {point.name: point.settings for point in points}} if points else {}),
            }
        )
        return
    print(loaded.to_toml())
    rows = [
        [layer.name, layer.kind, "×".join(map(str, layer.output)), f"{layer.parameters:,}", f"{layer.multiply_adds:,}"]
        for layer in network_layers
    ]
    rows.append(["total", "", "", f"{parameters:,}", f"{products:,}"])
    print(Table(["layer", "kind", "output", "parameters", "multiply-adds"], rows, text_columns=3).for_terminal())
    work = f"{6 * products / 1e9:.2f} GFLOP to train on an image"
    print(f"\n{classes} classes of {size}×{size} images, {parameters:,} parameters, {work}")
    if not known:
        print(f"{loaded.data.source} is not prepared yet: ten classes are assumed")
    if points:
        from fastres.experiments.sweep import results

        keys = results.labels([*points[0].settings])
        print(f"\n{len(points)} points, for `fastres sweep`; the layers above are those of the recipe without a point")
        cells = [[point.name, *(results.shown(point.settings[key]) for key in keys)] for point in points]
        print(Table(["point", *keys.values()], cells).for_terminal())


def doctor(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE", help="TOML recipe, for --numerics.", show_default="the defaults: a ResNet-18"),
    ] = None,
    numerics: Annotated[
        bool, typer.Option("--numerics", help="Compare what this machine computes of a recipe with fp64, and stop.")
    ] = False,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Say what this machine has and what is missing, with the line that installs it."""
    if numerics:
        _numerics(recipe, set_, device, as_json)
        return
    if recipe is not None or set_:
        raise UserError("a recipe is for its numerics: add --numerics")
    from fastres.cli import doctor as examination

    facts = examination.examine(root)
    if as_json:
        print_json(facts.to_json())
        return
    examination.render(facts)


def _numerics(recipe: Path | None, settings: list[str], device: str, as_json: bool) -> None:
    """Exit code 1 where something is wrong."""
    from fastres.bench import numerics
    from fastres.bench.training import load_recipe
    from fastres.engine.device import choose_device
    from fastres.report.document import Table

    result = numerics.numerics(load_recipe(recipe, settings), choose_device(device))
    if as_json:
        print_json({**result.to_json(), "sound": result.sound})
    else:
        print(Table(numerics.HEADER, numerics.lines(result)).for_terminal())
        print(f"\n{result.precision} on {result.device}, batches of {result.batch}, torch {result.torch}")
        for reason in result.left_out:
            print(printable(f"not compared: {reason}"))
        wrong = sum(not finding.sound for finding in result.findings)
        if wrong:
            print(
                f"{plural(wrong, 'line is', 'lines are')} beyond rounding: a run on this machine trains something else"
            )
    if not result.sound:
        raise typer.Exit(1)
