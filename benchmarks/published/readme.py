"""The figures of README.md and benchmarks/README.md, written anew from benchmarks/results/.

    python -m benchmarks.published.readme            # tables, figures in sentences, pictures (make figures)
    python -m benchmarks.published.readme --check    # changes nothing; status 1 and a list where they disagree

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, and is one of tables.py. A figure in a sentence
is one of quotes.py, which has the sentence with a field in its place. In the sections of MEASURED, nothing else
may look like a measured figure.
"""

import argparse
import re
import sys
from collections.abc import Iterator

from benchmarks.published.results import NUMBER, RESULTS, ROOT, Quote, Results
from fastres.errors import UserError
from fastres.utils.files import write_bytes, write_text

DOCUMENTS = ("README.md", "benchmarks/README.md")
MEASURED = {
    "README.md": ("Measured",),
    "benchmarks/README.md": (
        "Loaders on a CPU",
        "Augmentation on a CPU",
        "Augmentation's accuracy",
        "Where a step's time goes on a CPU",
        "A step on a CPU's roofline",
    ),
}
"""Sections whose every figure comes from the results."""

_TABLE = re.compile(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
_CODE = re.compile(r"```[\s\S]*?```|^    .*$|`[^`\n]*`", re.MULTILINE)
_FIGURE = re.compile(rf"{NUMBER}(?:%|\s+(?:images/s|s|ms|µs|seconds?|minutes?|points?|times|[TGM]FLOP/s)\b|\s*×(?!\d))")
_ROW = re.compile(r"^\|.*\d.*\|$", re.MULTILINE)


def render(document: str, text: str, results: Results) -> str:
    """`text` of `document` with its tables and quoted figures as `results` have them.

    Raises UserError for a table that nobody makes and for a phrase that is not there exactly once.
    """
    from benchmarks.published.tables import TABLES

    def table(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise UserError(f"{document} asks for a table '{match[1]}', which tables.py does not have")
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]](results)}\n<!-- end -->"

    text = _TABLE.sub(table, text)
    for quote, match in _quoted(document, text, results):
        for group, shown in reversed([*enumerate(quote.shown, 1)]):
            first, last = match.span(group)
            text = text[:first] + shown + text[last:]
    return text


def _quoted(document: str, text: str, results: Results) -> Iterator[tuple[Quote, re.Match[str]]]:
    """The quotes of `document` with their places in `text`, the last one first."""
    from benchmarks.published.quotes import quotes

    found = []
    for quote in (quote for quote in quotes(results) if quote.document == document):
        matches = [*quote.pattern.finditer(text)]
        if len(matches) != 1:
            raise UserError(
                f"{document} has the phrase “{quote.phrase}” {len(matches)} times, not once: "
                "change benchmarks/published/quotes.py as well"
            )
        found.append((quote, matches[0]))
    return iter(sorted(found, key=lambda pair: pair[1].start(), reverse=True))


def uncovered(document: str, text: str, results: Results) -> list[str]:
    """Figures in the sections of MEASURED, and rows of tables, that no result stands behind."""
    from benchmarks.published.quotes import WITHOUT_RESULT

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    spans = [match.span() for _, match in _quoted(document, text, results)]
    for phrase in (phrase for where, phrase, _ in WITHOUT_RESULT if where == document):
        pattern = r"\s+".join(map(re.escape, phrase.split()))
        spans += [match.span() for match in re.finditer(pattern, text)]
    text = _CODE.sub(blank, _TABLE.sub(blank, text))  # first: a line that begins with blanks would look like code
    for first, last in spans:
        text = text[:first] + re.sub(r"[^\n]", " ", text[first:last]) + text[last:]
    found = []
    for section in MEASURED[document]:
        match = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        if match is None:
            raise UserError(
                f"{document} has no section '{section}': change MEASURED in benchmarks/published/readme.py as well"
            )
        found += [f"{document}, {section}: {figure[0]}" for figure in _FIGURE.finditer(match[1])]
        found += [f"{document}, {section}: {row[0]}" for row in _ROW.finditer(match[1])]
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    from benchmarks.published.tables import pictures

    parser = argparse.ArgumentParser(description="Write the figures of the READMEs anew from benchmarks/results/.")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 where they disagree")
    options = parser.parse_args(arguments)
    results, wrong = Results(RESULTS), []
    try:
        for document in DOCUMENTS:
            text = (ROOT / document).read_text()
            new = render(document, text, results)
            wrong += uncovered(document, new, results)
            if new != text and options.check:
                wrong.append(f"{document} does not have the figures of the results: run `make figures`")
            elif new != text:
                write_text(ROOT / document, new)
        if not options.check:
            for name, data in pictures(results):
                write_bytes(RESULTS / name, data)
    except UserError as error:
        wrong.append(str(error))
    for line in wrong:
        print(f"readme: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
