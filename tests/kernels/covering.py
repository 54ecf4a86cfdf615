"""Few cases in which every combination of any few options occurs (combinatorial testing, Kuhn et al. 2004)."""

import itertools
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

ONE_IN = int(os.environ.get("FASTRES_ONE_CASE_IN", "1"))
"""How many cases there are for each that runs: see conftest.py."""


def covering(options: Mapping[str, Sequence[Any]], strength: int) -> list[dict[str, Any]]:
    """Choices of one value an option, so that any `strength` options take all combinations of their values.

    Greedy: take a combination that is missing, complete it in 30 random ways, keep the best. The same each time.
    """
    generator = random.Random(0)
    missing = dict.fromkeys(
        tuple(zip(names, values, strict=True))
        for names in itertools.combinations(options, strength)
        for values in itertools.product(*(options[name] for name in names))
    )
    chosen = []
    while missing:
        start = dict(next(iter(missing)))
        tries = [{name: start.get(name, generator.choice(options[name])) for name in options} for _ in range(30)]
        best = max(tries, key=lambda choice: len(missing.keys() & set(_combinations(choice, strength))))
        for combination in _combinations(best, strength):
            missing.pop(combination, None)
        chosen.append(best)
    return chosen


def _combinations(choice: Mapping[str, Any], strength: int) -> Any:
    return itertools.combinations(choice.items(), strength)
