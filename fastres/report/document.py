"""The parts of a page, and how HTML, Markdown and a terminal write them.

A paragraph is a string. Text is plain and comes from anywhere: page.html, Jinja's template of the HTML, escapes all of
it. An HTML page is one file that needs no network, no script and no other file.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fastres.utils.files import write_bytes
from fastres.utils.terminal import printable

if TYPE_CHECKING:
    from jinja2 import Template


class Link(NamedTuple):
    """A cell of a table that leads to another file."""

    text: str
    path: str
    """Relative to the page."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Heading:
    """Of a section."""

    text: str


@dataclass(frozen=True)
class Note:
    """A paragraph that stands out as a warning, or stands back as a subtitle."""

    text: str
    kind: Literal["warning", "soft"] = "warning"


@dataclass(frozen=True)
class Tiles:
    """The figures that matter most: name, value and a remark of each."""

    tiles: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """Its `lines` have as many cells as `header`, which may be empty."""

    header: Sequence[str]
    lines: Sequence[Sequence[str | Link]]
    text_columns: int = 1
    """The first columns, which hold text and stand to the left; others hold numbers and stand to the right."""

    def markdown(self) -> str:
        """Without a line break at its end."""
        header = self.header or [""] * len(self.lines[0])
        rows = [header, ["---"] * len(header), *([_cell(cell) for cell in line] for line in self.lines)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def for_terminal(self) -> str:
        """For a terminal: columns as wide as their widest cell."""
        rows = [self.header, *([printable(str(cell)) for cell in line] for line in self.lines)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [f"{{:{'<' if index < self.text_columns else '>'}{width}}}" for index, width in enumerate(widths)]
        return "\n".join("  ".join(aligned).format(*row).rstrip() for row in rows)


@dataclass(frozen=True)
class Picture:
    """A PNG file with its caption; `name` is that of the file."""

    name: str
    data: bytes
    caption: str


@dataclass(frozen=True)
class Details:
    """A table, or text that is shown as it is; in HTML behind its title, if it has one."""

    title: str
    content: Table | str


Part = str | Heading | Note | Tiles | Table | Picture | Details


def write(folder: Path, names: Sequence[str], title: str, parts: Sequence[Part], figures: str = "figures/") -> None:
    """Write the page as files `names` of `folder`, `.html` or `.md`, after its pictures, which go into `figures`."""
    for part in parts:
        if isinstance(part, Picture):
            write_bytes(folder / figures / f"{part.name}.png", part.data)
    for name in names:
        text = html(title, parts) if name.endswith(".html") else markdown(title, parts, figures)
        # Names of files that are not UTF-8 arrive as lone surrogates, which UTF-8 cannot hold.
        write_bytes(folder / name, text.encode(errors="replace"))


def html(title: str, parts: Sequence[Part]) -> str:
    """The page as HTML."""
    return _template().render(title=title, parts=parts)


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # so that a terminal's table does without

    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["kind"] = lambda part: type(part).__name__
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("page.html")


def markdown(title: str, parts: Sequence[Part], figures: str = "figures/") -> str:
    """The page as Markdown, whose pictures are files in the folder `figures`, relative to the page."""
    return "\n\n".join([f"# {title}", *(_markdown(part, figures) for part in parts)]) + "\n"


def _markdown(part: Any, figures: str) -> str:
    match part:
        case Heading(text):
            return f"## {text}"
        case Note(text, kind):
            return f"**{text}**" if kind == "warning" else text
        case Tiles(tiles):
            return Table([], tiles).markdown()
        case Table():
            return part.markdown()
        case Picture(name, _, caption):
            return f"![{name.replace('_', ' ')}]({figures}{name}.png)\n\n{caption}"
        case Details(_, content):
            return content.markdown() if isinstance(content, Table) else f"```\n{content}\n```"
    return str(part)


def _cell(cell: str | Link) -> str:
    if isinstance(cell, Link):
        return f"[{cell.text}]({cell.path})"
    return cell.replace("|", "\\|").replace("\n", " ")
