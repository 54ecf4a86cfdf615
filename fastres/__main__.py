"""`python -m fastres` is the `fastres` command."""

from fastres.cli import main

main()
