"""The parts of a page, and how Markdown and HTML write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fastres.report.html import Link, details, document, picture, table

Cells = Sequence[Sequence[str | Link]]


@dataclass(frozen=True)
class Heading:
    """Of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """Of sentences; `lines` have as many cells as `header`."""

    header: list[str]
    lines: Cells


@dataclass(frozen=True)
class Picture:
    """A PNG file with its caption; `name` is that of the file."""

    name: str
    data: bytes
    caption: str


@dataclass(frozen=True)
class Verbatim:
    """Text that is shown as it is, in HTML behind its title."""

    title: str
    text: str


Part = Heading | Text | Table | Picture | Verbatim


def html(title: str, parts: list[Part]) -> bytes:
    """The parts below `title` as one file."""
    return document(title, [f"<h1>{escape(title)}</h1>", *map(_html, parts)])


def _html(part: Part) -> str:
    if isinstance(part, Heading):
        return f"<h2>{escape(part.text)}</h2>"
    if isinstance(part, Text):
        return f'<p class="warning">{escape(part.text)}</p>' if part.warning else f"<p>{escape(part.text)}</p>"
    if isinstance(part, Table):
        return table(part.header, part.lines, wrapped=True)
    if isinstance(part, Picture):
        return picture(part.name, part.data, part.caption)
    return details(part.title, f"<pre>{escape(part.text)}</pre>")


def markdown(title: str, parts: list[Part], pictures: str = "figures/") -> str:
    """The parts below `title` as Markdown, whose pictures are files in the folder `pictures`, relative to the page."""
    blocks = [f"# {title}"]
    for part in parts:
        if isinstance(part, Heading):
            blocks.append(f"## {part.text}")
        elif isinstance(part, Text):
            blocks.append(f"**{part.text}**" if part.warning else part.text)
        elif isinstance(part, Table):
            blocks.append(markdown_table(part.header, part.lines))
        elif isinstance(part, Picture):
            blocks.append(f"![{part.name.replace('_', ' ')}]({pictures}{part.name}.png)\n\n{part.caption}")
        else:
            blocks.append(f"```\n{part.text}\n```")
    return "\n\n".join(blocks) + "\n"


def markdown_table(header: Sequence[str], lines: Cells) -> str:
    """A table in Markdown, without a line break at its end."""
    rows = [header, ["---"] * len(header), *([_cell(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(cell: str | Link) -> str:
    if isinstance(cell, Link):
        return f"[{cell.text}]({cell.path})"
    return cell.replace("|", "\\|").replace("\n", " ")
