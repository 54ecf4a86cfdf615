"""Which samples come when: pure functions of the seed, so that every loader agrees and resuming costs nothing."""

import numpy as np
from numpy.typing import NDArray

from fastres.errors import UserError
from fastres.recipe import DataConfig

_SHUFFLE, _SPLIT = 0, 1


def _generator(seed: int, purpose: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, purpose, epoch))))


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The permutation of `count` samples in epoch `epoch` (counted from 0): int64 [count]."""
    return _generator(seed, _SHUFFLE, epoch).permutation(count)


def epoch_rows(
    subset: NDArray[np.int64], seed: int | None, epoch: int, rank: int = 0, ranks: int = 1
) -> NDArray[np.int64]:
    """The rows of `subset`, int64 [N], that `rank` of `ranks` delivers in `epoch`: int64 [N // ranks].

    Shuffled by (seed, epoch), or in the order of `subset` where `seed` is None. Shards take turns, so that step by
    step they deliver together what a single rank delivers in batches `ranks` times as large.
    """
    order = subset if seed is None else subset[epoch_order(seed, epoch, len(subset))]
    return order[rank : len(order) // ranks * ranks : ranks]


def split(data: DataConfig, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide `count` training images: indices to train on and to validate on, int64, ascending.

    `report` is the split of the report's code, leak included: it validates on the first images of the set while it
    trains on a random share of all of them. Raises UserError where a part would be empty.
    """
    everything = np.arange(count)
    if data.split == "none":
        return everything, everything[:0]
    held = round(count * data.validation_share)
    if not 0 < held < count:
        raise UserError(
            f"data.validation_share = {data.validation_share} of {count} training images leaves a part empty: "
            "change it, or set data.split to 'none'"
        )
    shuffled = _generator(seed, _SPLIT, 0).permutation(count)
    train, validation = np.sort(shuffled[held:]), np.sort(shuffled[:held])
    return (train, everything[:held]) if data.split == "report" else (train, validation)
