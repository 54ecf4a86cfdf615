"""Arguments and options that several commands take."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fastres.utils.paths import expand_home

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML recipe.", show_default=False)]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="TABLE.KEY=VALUE", help="Change a value of the recipe; an empty value is the default."
    ),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


class Commands(typer.Typer):
    """Commands that take `~` in a path for the home folder: shells leave it as it is in `--out=~/x`."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
        """As Typer's."""
        register = super().command(*arguments, **options)

        def registered(command: Callable[..., None]) -> Callable[..., None]:
            @functools.wraps(command)
            def expanded(**values: Any) -> None:
                command(**{name: _expanded(value) for name, value in values.items()})

            register(expanded)
            return command

        return registered


def _expanded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_expanded(each) for each in value]
    return expand_home(value) if isinstance(value, Path) else value


def continued(what: str, default: str) -> Any:
    """The option of a folder that an interrupted command goes on in."""
    return typer.Option(help=f"Folder to write; one of an interrupted {what} is completed.", show_default=default)


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)]
Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="shapes10, cifar10, cifar100, an archive or a folder.", show_default=False),
]
StoreKind = Annotated[
    Literal["decoded", "encoded"],
    typer.Option(help="decoded: pixels; encoded: JPEG and PNG files left where they are (data.store in a recipe)."),
]
Size = Annotated[int | None, typer.Option(help="Side in pixels to which images are brought.", show_default="32")]
Root = Annotated[
    str | None,
    typer.Option(help="Folder of downloads and prepared stores.", show_default="$FASTRES_DATA or ~/.cache/fastres"),
]
