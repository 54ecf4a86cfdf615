"""`python -m benchmarks.readme` is `python -m benchmarks.published.readme`."""

import sys

from benchmarks.published.readme import main

if __name__ == "__main__":
    sys.exit(main())
