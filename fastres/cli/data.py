"""`fastres data`."""

import json
from typing import Annotated, Literal

import typer

from fastres.cli.options import Commands, Json, Root, Size, Source, StoreKind
from fastres.cli.printing import print_json
from fastres.errors import UserError
from fastres.utils.terminal import printable

app = Commands(no_args_is_help=True, help="Prepare and look at data sets.")


@app.command()
def prepare(
    source: Source,
    store: StoreKind = "decoded",
    format_: Annotated[
        Literal["store", "beton"],
        typer.Option("--format", help="beton: also write the store in FFCV's file format, for the ffcv loader."),
    ] = "store",
    image_size: Size = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Turn a source into a store that opens at once; a damaged store is built anew."""
    from fastres.data import info as describe_store
    from fastres.data import prepare as build_store

    dataset = build_store(source, store=store, image_size=image_size, root=root)
    if format_ == "beton":
        from fastres.data.store import beton

        beton.prepare(dataset)
    facts = describe_store(source, store=store, image_size=image_size, root=root)
    if as_json:
        print_json(facts)
        return
    size = f"{dataset.image_size}×{dataset.image_size}"
    print(printable(f"{dataset.name}: {len(dataset.classes)} classes, {size}, in {dataset.path}"))
    if format_ == "beton":
        print(printable(f"for FFCV, {facts['beton']['bytes'] / 1e6:,.1f} MB in {facts['beton']['path']}"))


@app.command()
def info(
    source: Source, store: StoreKind = "decoded", image_size: Size = None, root: Root = None, as_json: Json = False
) -> None:
    """Say what a source holds."""
    from fastres.data import info as describe_store

    facts = describe_store(source, store=store, image_size=image_size, root=root)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
        print(f"{key + ':':<14}{printable(text)}")


@app.command()
def verify(
    source: Source, store: StoreKind = "decoded", image_size: Size = None, root: Root = None, as_json: Json = False
) -> None:
    """Recompute the checksums of a prepared store, of what it refers to, and of its beton if it has one."""
    from fastres.data import verify as find_problems

    problems = find_problems(source, store=store, image_size=image_size, root=root)
    if as_json:
        print_json({"source": source, "problems": problems})
    if problems and not as_json:
        raise UserError("\n".join(problems))
    if problems:
        raise typer.Exit(2)
    if not as_json:
        print(f"{source}: the store is sound")
