"""`fastres.bench.timing`, under the name that suites import."""

from fastres.bench.timing import *  # noqa: F403
