"""An AugmentModule without indices, in several processes: each draws for itself, and says so."""

import warnings
from typing import Any

import pytest
import torch
from policies import EVERYTHING, MEAN, STD

from fastres import recipe
from fastres.augment import Augment, AugmentModule, ops

# One image over and over, so that what differs are the draws.
IMAGES = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8).expand(8, -1, -1, -1)
LABELS = torch.arange(8)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    ops._warn_of_shards.cache_clear()
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def module() -> AugmentModule:
    return AugmentModule(Augment(EVERYTHING, MEAN, STD, mix=recipe.MixConfig(mixup_alpha=1.0)))


def distinct(batches: list[torch.Tensor]) -> int:
    return len({image.numpy().tobytes() for batch in batches for image in batch})


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int, how: str) -> None:
    if how == "variables":
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
    else:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)


@pytest.mark.parametrize("how", ["variables", "torch.distributed"])
def test_every_rank_draws_for_itself(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images of all steps and ranks differ, and so do the weights of mixing; given indices decide as ever."""
    augmented, weights, given = [], [], []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3, how)
        plain, mixing = module(), module()
        with pytest.warns(UserWarning, match=f"without indices in process {rank + 1} of 3.*give indices"):
            augmented += [plain(IMAGES) for _ in range(4)]
        weights += [float(mixing(IMAGES, labels=LABELS).weight) for _ in range(4)]
        given.append(plain(IMAGES, LABELS))
    assert distinct(augmented) == 3 * 4 * 8
    assert len(set(weights)) == 3 * 4
    assert torch.equal(given[0], given[1]) and torch.equal(given[0], given[2])


def test_a_process_of_its_own_draws_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Augment(EVERYTHING, MEAN, STD).augment(IMAGES, LABELS, 0)
    for rank, ranks in (("0", "1"), ("", ""), ("x", "4"), ("2", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", ranks)
        assert torch.equal(module()(IMAGES), expected)


class Augmented(torch.utils.data.Dataset[Any]):
    """Batches augmented where they are read."""

    def __init__(self) -> None:
        self.module = module()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, step: int) -> torch.Tensor:
        warnings.simplefilter("ignore")
        return self.module(IMAGES)


def test_every_worker_of_every_rank_draws_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2, "variables")
        loader = torch.utils.data.DataLoader(
            Augmented(), batch_size=None, num_workers=2, multiprocessing_context="fork", generator=torch.Generator()
        )
        found += [batch.clone() for batch in loader]
    assert distinct(found) == 2 * 6 * 8
