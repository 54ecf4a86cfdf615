"""`fastres.bench.ours`, under the name that suites import."""

from fastres.bench.ours import *  # noqa: F403
