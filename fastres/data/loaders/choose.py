"""Which loader reads a data set, why, and from what.

| loader | decoded store | encoded store |
|---|---|---|
| `resident` | the arrays, on the device or memory-mapped | – |
| `ffcv` | a beton of raw images, prepared beside the store | a beton of JPEG images |
| `dali` | the arrays | the files |
| `torch` | the arrays | the files |
"""

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastres.data.loaders.base import LOADERS, Loader
from fastres.data.store.decoded import Dataset, Part
from fastres.errors import UserError
from fastres.recipe.data import LOADER_NAMES
from fastres.utils.machine import usable_memory

KINDS = tuple(name for name in LOADER_NAMES if name != "auto")
MEMORY_SHARE = 0.5
"""The part of the device's free memory, or of the machine's, that a resident set may take: the network, its
activations and other processes need the rest."""


class Choice(NamedTuple):
    """A loader, by name."""

    name: str
    """One of LOADER_NAMES, not "auto"."""
    reason: str
    """For people: one clause."""


def loader_of(kind: str) -> type[Loader]:
    """The loader that is registered as `kind`, by the module of that name in this package unless one is already. Raises
    LookupError where none is."""
    module = f"{__package__}.{kind}"
    if kind not in LOADERS and importlib.util.find_spec(module) is not None:
        importlib.import_module(module)
    return LOADERS[kind]


def choose(dataset: Dataset, wanted: str = "auto", device: torch.device | str = "cpu") -> Choice:
    """The loader for `dataset`: `wanted`, or for "auto" the first that will do.

    That is `resident` where the pixels are decoded and fit into MEMORY_SHARE of the memory, else ffcv, else DALI, where
    they are installed, else torch. Raises UserError for a loader that cannot read this store.
    """
    decoded, device = is_decoded(dataset), torch.device(device)
    if wanted != "auto":
        if not decoded and not loader_of(wanted).reads_encoded:
            raise UserError(
                f"data.loader = '{wanted}' reads decoded images, and data.store is 'encoded': set data.store to "
                "'decoded', or data.loader to 'auto'"
            )
        return Choice(wanted, "as the recipe says")
    if decoded:
        size, memory = decoded_bytes(dataset), memory_bytes(device)
        memory_name = f"the free memory of {device}" if device.type == "cuda" else "this machine's memory"
        limit = f"{MEMORY_SHARE:.0%} of {memory_name}, {_size(memory)}"
        if size <= MEMORY_SHARE * memory:
            return Choice("resident", f"{_size(size)} of images fit into {limit}")
        because = f"{_size(size)} of images do not fit into {limit}"
    else:
        because = "the images are encoded"
    missing: list[str] = []
    for kind in (name for name in KINDS if loader_of(name).package is not None):
        if installed(kind):
            return Choice(kind, because + _without(missing))
        missing.append(kind)
    return Choice("torch", because + _without(missing))


def _without(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    names = " and ".join(missing)
    return f"; {names} {'is' if len(missing) == 1 else 'are'} not installed: pip install 'fastres[{','.join(missing)}]'"


def installed(kind: str) -> bool:
    """Whether the package that the loader `kind` needs is installed."""
    with suppress(ImportError, ValueError):  # for want of a parent package, or where a test hides it
        package = loader_of(kind).package
        return package is None or importlib.util.find_spec(package) is not None
    return False


def is_decoded(dataset: Dataset) -> bool:
    """Whether the images are arrays of pixels, rather than JPEG or PNG files."""
    return all(isinstance(part.images, np.ndarray) for part in dataset.parts.values())


def decoded_bytes(dataset: Dataset) -> int:
    """Bytes of the pixels of all labelled images, decoded."""
    return sum(int(np.prod(part.images.shape)) for part in dataset.parts.values())


def memory_bytes(device: torch.device) -> int:
    """Free memory of a GPU; of a CPU, what `usable_memory` says."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else usable_memory()


def open_pixels(
    kind: str, dataset: Dataset, device: torch.device | str = "cpu", *, quiet: bool = False
) -> dict[str, Any]:
    """Pixels as the loader `kind` reads them, by the name of the part; loaders of one part share it.

    For "ffcv" the beton is prepared if there is none. Raises UserError where a package is missing.
    """
    return loader_of(kind).open_pixels(dataset, device, quiet=quiet)


def build(kind: str, pixels: Any, *arguments: Any, **options: Any) -> Loader:
    """The loader `kind` over `pixels`, which `open_pixels` gave; the other arguments are those of `Loader`, and
    `workers`, threads or processes that read ahead."""
    make: Any = loader_of(kind)
    return make(pixels, *arguments, **options)


def make_loader(
    dataset: Dataset,
    part: str = "train",
    *,
    batch_size: int,
    loader: str = "auto",
    subset: NDArray[np.int64] | None = None,
    seed: int | None = None,
    drop_last: bool = False,
    rank: int = 0,
    ranks: int = 1,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    quiet: bool = True,
) -> Loader:
    """A loader over the part "train" or "test" of an opened data set.

    Args:
        dataset: as `fastres.data.open_dataset` gives it.
        loader: one of KINDS, or "auto"; see `choose`. All deliver the same batches.
        subset: int64 [N], which images, in their order; all by default.
        seed: shuffles each epoch by (seed, epoch); by default nothing is shuffled.
        workers: threads or processes that read ahead; by default one a core.
        quiet: show no progress where a beton has to be prepared.

    The other arguments are those of `Loader`. Raises UserError for a part that is not there or has no labels, for a
    loader that is not installed or cannot read the store, ValueError for arguments that no data set could have.
    """
    if loader not in LOADER_NAMES:
        raise ValueError(f"loader is {loader!r}: choose one of {', '.join(LOADER_NAMES)}")
    if part not in ("train", "test"):
        raise ValueError(f"part is {part!r}: choose 'train' or 'test'")
    split: Part | None = getattr(dataset, part)
    if split is None or split.labels is None:
        raise UserError(f"{dataset.source} has no {part} images with labels: give a source with train and test parts")
    kind = choose(dataset, loader, device).name
    rows = np.arange(len(split.images)) if subset is None else np.asarray(subset, dtype=np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() >= len(split.images)):
        raise ValueError(f"subset leaves the {len(split.images)} images of {part}")
    pixels = open_pixels(kind, dataset, device, quiet=quiet)[part]
    options: dict[str, Any] = {"seed": seed, "drop_last": drop_last, "rank": rank, "ranks": ranks, "device": device}
    return build(kind, pixels, split.labels, rows, batch_size, workers=workers, **options)


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
