"""What the entry points refuse: the same in training, evaluation and mixing, and in words that name the argument."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from policies import MEAN, STD

from fastres import recipe
from fastres.augment import Augment, AugmentModule, mix_batch

POLICY, MIX = recipe.AugmentConfig(translate=1), recipe.MixConfig(mixup_alpha=1.0)
RIGHT: dict[str, Any] = {
    "images": torch.zeros(3, 8, 8, 3, dtype=torch.uint8),
    "rows": torch.tensor([0, 2]),
    "indices": torch.tensor([5, 2**32 - 1]),
    "labels": torch.tensor([1, 0]),
    "epoch": 2,
    "step": torch.tensor([4]),
}
WRONG: dict[str, list[Any]] = {
    "images": [
        *(RIGHT["images"].float() / 255, RIGHT["images"].long(), RIGHT["images"][0], RIGHT["images"][..., :1]),
        *(RIGHT["images"].numpy(), RIGHT["images"].to("meta"), None),
    ],
    "rows": [RIGHT["rows"].float(), RIGHT["rows"] > 0, RIGHT["rows"][None], [0, 2]],
    "indices": [
        *(RIGHT["indices"].float(), torch.tensor([-1, 0]), torch.tensor([0, 2**32]), torch.tensor([7])),
        *(torch.tensor([[0, 1]]), np.array([0, 1]), torch.tensor([True, False])),
    ],
    "labels": [torch.tensor([1]), torch.tensor([1, 0, 2]), torch.tensor([0.5, 1.0]), torch.tensor([[1], [0]]), [1, 0]],
    "epoch": [-1, 2**32, 1.5, "1", None, torch.tensor(1.0), torch.tensor([1, 2]), float("nan")],
    "step": [-1, 2**32, 2.0, torch.tensor([0.5]), torch.tensor([1, 2])],
    "seed": [-1, 2**32, 1.5, None, "seed"],
}


def call(**given: Any) -> Any:
    return Augment(POLICY, MEAN, STD, mix=MIX)(**given)


def only_augment(**given: Any) -> Any:
    return Augment(POLICY, MEAN, STD).augment(**{k: v for k, v in given.items() if k not in ("labels", "step")})


def normalize(**given: Any) -> Any:
    return Augment(POLICY, MEAN, STD).normalize(given["images"], given["rows"])


def module(training: bool, **given: Any) -> Any:
    made = AugmentModule(Augment(POLICY, MEAN, STD, mix=MIX)).train(training)
    made.start_epoch(given["epoch"])
    images = given["images"]
    images = images[:2] if isinstance(images, torch.Tensor) and images.dim() == 4 else images
    return made(images, given["indices"], given["labels"])


def mixing(**given: Any) -> Any:
    numbers = {name: given[name] for name in ("epoch", "step") if name in given}
    return mix_batch(torch.zeros(2, 3, 4, 4), given["labels"], MIX, **numbers)


ENTRIES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "call": (call, tuple(RIGHT)),
    "augment": (only_augment, ("images", "rows", "indices", "epoch")),
    "normalize": (normalize, ("images", "rows")),
    "module in training": (lambda **given: module(True, **given), ("images", "indices", "labels", "epoch")),
    "module in evaluation": (lambda **given: module(False, **given), ("images", "indices", "labels", "epoch")),
    "mix_batch": (mixing, ("labels", "epoch", "step")),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_argument_is_looked_at(entry: str) -> None:
    function, names = ENTRIES[entry]
    function(**RIGHT)
    for name in names:
        for wrong in WRONG[name]:
            if wrong is None and name in ("indices", "labels"):
                continue
            with pytest.raises(ValueError, match=name):
                function(**RIGHT | {name: wrong})


def test_rows_that_are_not_there() -> None:
    for row in (-1, 3):
        for function in (call, only_augment, normalize):
            with pytest.raises(IndexError, match="rows must be within the 3 images"):
                function(**RIGHT | {"rows": torch.tensor([0, row])})


def test_the_constructor_and_what_draws() -> None:
    right = Augment(POLICY, MEAN, STD, mix=MIX)
    for seed in WRONG["seed"]:
        for function in (lambda seed: Augment(POLICY, seed=seed), right.reseed, mixing_by):
            with pytest.raises(ValueError, match="seed"):
                function(seed)
    for wrong in ({"mean": (0.5, 0.5)}, {"std": (1.0, 1.0, float("nan"))}, {"std": (1.0, 1.0, -1.0)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Augment(POLICY, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype"):
        Augment(POLICY, dtype=torch.float64)
    with pytest.raises(ValueError, match="step"):
        right.draw_mix(0, -1, (8, 8))
    with pytest.raises(ValueError, match="indices"):
        right.draw(torch.tensor([-1]), 0, (8, 8))
    with pytest.raises(ValueError, match="labels"):
        right(RIGHT["images"], None, torch.arange(3), 0)  # type: ignore[arg-type]


def mixing_by(seed: Any) -> Any:
    return mix_batch(torch.zeros(2, 3, 4, 4), torch.arange(2), MIX, seed=seed)


def test_only_float_batches_are_mixed() -> None:
    for batch in (RIGHT["images"], torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 4, dtype=torch.float64), [[0.0]]):
        with pytest.raises(ValueError, match="batch"):
            mix_batch(batch, torch.arange(2), MIX)  # type: ignore[arg-type]


def test_what_is_refused_leaves_the_counters_alone() -> None:
    made = AugmentModule(Augment(POLICY, MEAN, STD))
    with pytest.raises(ValueError, match="labels"):
        made(RIGHT["images"], labels=torch.arange(2))
    assert made.get_extra_state() == {"epoch": 0, "step": 0, "seen": 0}


def test_whole_numbers_of_other_types_are_as_good() -> None:
    """NumPy's, and integers of 32 bits, as other libraries give them."""
    expected = call(**RIGHT)
    given = {name: value.int() for name, value in RIGHT.items() if name in ("rows", "labels")}
    found = call(**RIGHT | given | {"epoch": np.int64(2), "step": 4})
    assert torch.equal(found.images, expected.images) and torch.equal(found.weight, expected.weight)
