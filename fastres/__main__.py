"""`python -m fastres` is the `fastres` command."""

from fastres.cli.app import main

main()
