"""Common parts of the HTML pages: the document around them, tables, figures, and the notation of values.

A page is one file that needs no network, no script and no other file.
"""

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple
from urllib.parse import quote

# Text at 16 px in at most 46 rem keeps lines near 80 characters and figures near 700 px wide. Figures stay on white.
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5a5a5a; --line: #d8d8d8; --back: #fff; --card: #f5f6f8;
  --link: #0b5cad; --warn: #fff3d6; --warn-line: #c98a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a8a8a8; --line: #3a3a3a; --back: #16181b;
  --card: #22252a; --link: #7fb8f0; --warn: #3a2f12; --warn-line: #d9a43a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
.soft, figcaption { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0; padding: 0; }
.tiles div { background: var(--card); border-radius: .5rem; padding: .75rem; }
.tiles dt { font-size: .85rem; color: var(--soft); }
.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 650; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tiles dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); white-space: normal; }
.warning { background: var(--warn); border-left: .25rem solid var(--warn-line); padding: .6rem 1rem; }
pre { background: var(--card); padding: .75rem 1rem; border-radius: .5rem; overflow-x: auto; font-size: .85rem;
  overflow-wrap: normal; }
figure { margin: 1.75rem 0; }
figure img { width: 100%; height: auto; display: block; background: #fff; border: 1px solid var(--line);
  border-radius: .5rem; padding: .5rem; }
figcaption { font-size: .92rem; margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, .facts td { text-align: left; white-space: normal; min-width: 7rem; }
.wrapped th, .wrapped td { text-align: left; white-space: normal; min-width: 5.5rem; vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
a { color: var(--link); }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--link); font-weight: 600; }
"""


def document(title: str, body: list[str]) -> bytes:
    """The page with the parts `body`, HTML, as a file; `title` is plain text."""
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Whatever slipped through the escaping could neither run nor load anything.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: fastres</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    # Names of files that are not UTF-8 arrive as lone surrogates, which UTF-8 cannot hold.
    return page.encode(errors="replace")


def picture(name: str, data: bytes, caption: str) -> str:
    """The PNG file `data` with its caption, inside the page; `name` is the element's id."""
    encoded = base64.b64encode(data).decode()
    alt = escape(f"Figure: {name.replace('_', ' ')}")
    return (
        f'<figure id="{name}"><img src="data:image/png;base64,{encoded}" alt="{alt}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def details(title: str, content: str) -> str:
    """HTML `content` that opens at a click on `title`."""
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


class Link(NamedTuple):
    """A cell of a table that leads to another file."""

    text: str
    path: str
    """Relative to the page."""


def table(header: list[str], lines: Sequence[Sequence[str | Link]], *, wrapped: bool = False) -> str:
    """A table of plain text; everything is escaped here. Cells of a `wrapped` one hold sentences."""

    def content(cell: str | Link) -> str:
        if isinstance(cell, Link):
            return f'<a href="{escape(quote(cell.path))}">{escape(cell.text)}</a>'
        return escape(cell)

    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{content(cell)}</td>" for cell in line) + "</tr>\n" for line in lines)
    kind = ' class="wrapped"' if wrapped else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
