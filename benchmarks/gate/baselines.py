"""Figures that are stored for a class of machines, in results/baselines/<class>.json: only within a class are seconds
comparable, and even there a few percent apart.

    python -m benchmarks.stored

measures the parts of an epoch with this checkout and stores them.
"""

import json
import re
from pathlib import Path
from typing import Any

from fastres.utils.files import write_json
from fastres.utils.machine import environment_facts, facts_to_publish

FOLDER = Path(__file__).parents[1] / "results" / "baselines"


def machine_class() -> str:
    """Facts that must agree for seconds to be comparable: processor, cores, what torch uses of them, torch."""
    facts = environment_facts()
    words = [facts["cpu_model"], f"{facts['usable_cores']}-cores", facts["torch_isa"], f"torch-{facts['torch']}"]
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(map(str, words)).lower().partition("+")[0]).strip("-")


def beside(part: str, images_per_second: float, folder: Path = FOLDER) -> dict[str, Any]:
    """What is stored of `part` for this class of machines, and what `images_per_second` is of it; {} without."""
    try:
        known = json.loads((folder / f"{machine_class()}.json").read_text())["images_per_second"][part]
    except (OSError, KeyError):
        return {}
    return {"stored_images_per_second": known, "of_the_stored": images_per_second / known}


def main(folder: Path = FOLDER) -> Path:
    """Measure and store: medians of 20 turns of each part."""
    import statistics

    from benchmarks.gate import gate
    from benchmarks.suites.bench_step import paper_configuration
    from fastres.recipe import Recipe

    rates = {}
    recipe = Recipe.load(gate.RECIPE, gate.SETTINGS)
    with gate.open_sides(recipe, gate.ROOT) as (tree,):
        for part in gate.PARTS:
            seconds = statistics.median(tree.turn(part) for _ in range(20))
            rates[part] = tree.parts[part]["images"] / seconds
        ratio = gate.against_rival(tree, paper_configuration(recipe, tree.parts["step"]["images"]).run)
    machine = facts_to_publish()
    path = folder / f"{machine_class()}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"images_per_second": rates, "plain_pytorch_over_ours": ratio, "machine": machine})
    return path


if __name__ == "__main__":
    print(main())
