"""The tables and pictures of README.md and benchmarks/README.md, written anew from benchmarks/results/.

    python -m benchmarks.published.readme            # writes them (make figures)
    python -m benchmarks.published.readme --check    # changes nothing; status 1 and a list where they disagree

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, and is one of tables.md.
"""

import argparse
import re
import sys

from benchmarks.published.tables import RESULTS, ROOT, TABLE, Results, pictures, tables
from fastres.errors import UserError
from fastres.utils.files import write_bytes, write_text

DOCUMENTS = ("README.md", "benchmarks/README.md")


def render(document: str, text: str, results: Results) -> str:
    """`text` of `document` with its tables as `results` have them. Raises UserError for a table that nobody makes."""

    known = tables(results)

    def table(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise UserError(f"{document} asks for a table '{match[1]}', which tables.md does not have")
        return f"<!-- table: {match[1]} -->\n{known[match[1]]}\n<!-- end -->"

    return TABLE.sub(table, text)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the tables of the READMEs anew from benchmarks/results/.")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 where they disagree")
    options = parser.parse_args(arguments)
    results, wrong = Results(RESULTS), []
    try:
        for document in DOCUMENTS:
            text = (ROOT / document).read_text()
            new = render(document, text, results)
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
