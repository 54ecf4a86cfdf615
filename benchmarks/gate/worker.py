"""One side of the regression gate: a process that runs parts of an epoch when it is asked to (gate.py asks).

    python worker.py CHECKOUT RECIPE DATA

imports fastres from the folder CHECKOUT, opens what the file RECIPE trains with stores in DATA, and writes a line of
JSON: for each part what it computed and how many images a turn of it takes. Then each line that it reads is the name of
a part, whose turn it takes, and answers with the seconds. What libraries print goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A part of an epoch."""

    turn: Callable[[], object]
    images: int
    """That a turn takes."""
    computed: list[float]
    """A few numbers of its result, which both sides have to share."""


STEPS = 4
"""Steps in a turn of the epoch."""
AUGMENTED = 4000
EPOCHS_OF_ROWS = 40
TESTED = 200


def either(thing: Any, name: str, before: str) -> Any:
    """The attribute `name`, or what it was called in commits before."""
    return getattr(thing, name) if hasattr(thing, name) else getattr(thing, before)


def parts(recipe: Any) -> dict[str, Part]:
    """The parts of an epoch of `recipe`, ready to be timed: compiled, and run twice."""
    import torch

    try:
        from fastres.training.session import Session
    except ModuleNotFoundError:  # a commit from before the package had rooms
        from fastres.start import Session  # type: ignore[import-not-found, no-redef]

    session = Session(recipe, torch.device("cpu"), quiet=True)
    data, step, size = either(session, "data_module", "feed"), session.step, recipe.train.batch_size
    loader: Any = data.train
    batch = next(iter(loader.batches(0, 0)))
    images = either(data, "augment_batch", "unmixed")(batch.source, batch.indices, 0, batch.rows)
    losses = [step(number, images, batch.labels)[0].item() for number in range(3)]
    done = 0

    def epoch() -> None:
        nonlocal done
        for _ in session.runner.epoch(0, done % (len(loader) - STEPS), STEPS):
            pass
        done += STEPS

    def augment() -> Any:
        rows = torch.arange(AUGMENTED)
        return either(data.augment, "augment", "unmixed")(batch.source, rows, 0, rows)

    def order() -> int:
        return sum(int(each.rows[0]) for number in range(EPOCHS_OF_ROWS) for each in loader.batches(number, 0))

    def evaluate() -> Any:
        return session.evaluator.logits(data.test)

    augmented, logits = augment().float(), evaluate()
    found = {
        "epoch": Part(epoch, STEPS * size, losses),
        "step": Part(lambda: step(3, images, batch.labels), size, losses),
        "augmentation": Part(augment, AUGMENTED, [augmented.mean().item(), augmented.std().item()]),
        "loader": Part(order, EPOCHS_OF_ROWS * len(loader) * size, [float(order())]),
        "evaluation": Part(evaluate, len(logits), [logits.mean().item(), logits.std().item()]),
    }
    for part in found.values():
        part.turn()
    return found


def main(checkout: str, recipe: str, data: str) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["FASTRES_DATA"] = data
    sys.path.insert(0, checkout)
    import fastres

    if Path(fastres.__file__).resolve().parents[1] != Path(checkout).resolve():
        raise SystemExit(f"fastres was imported from {fastres.__file__}, not from {checkout}")
    from fastres.recipe import Recipe

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    found = parts(Recipe.load(Path(recipe)))
    answer({name: {"images": part.images, "computed": part.computed} for name, part in found.items()})
    for line in sys.stdin:
        turn = found[line.strip()].turn
        began = time.perf_counter()
        turn()
        answer(time.perf_counter() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
