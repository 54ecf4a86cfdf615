"""`fastres.bench.ceilings`, under the name that suites import."""

from fastres.bench.ceilings import *  # noqa: F403
