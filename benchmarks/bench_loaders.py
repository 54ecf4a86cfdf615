"""Loaders on the CPU: images a second by turns in one process, against bare FFCV, a bare gather and ImageFolder.

A turn is an epoch, or as many as fill a tenth of a second, of CIFAR-10 (JPEG, from FASTRES_TEST_DATA; else shapes10),
shuffled, in batches of 512 whose pixels are gathered into memory of their own: `resident` yields rows, so that here it
is followed by the gather that the augmentation otherwise does as it reads. All loaders have as many threads or
processes as there are cores.
"""

import itertools
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.harness import note
from benchmarks.streaming import run, synthetic_store
from fastres import recipe
from fastres.augment import Augment
from fastres.data import Dataset, open_dataset
from fastres.data.loaders import Batch, Loader, choose, make_loader
from fastres.data.store import open_store
from fastres.memory import keep_freed_memory

BATCH, ROUNDS, LARGE = 512, 7, 2_000_000_000
CORES = len(os.sched_getaffinity(0))
KINDS = [kind for kind in choose.KINDS if choose.installed(kind)]
SIMPLE = recipe.Augment(translate=4, padding="zero")

Turn = Callable[[int], int]
"""Goes through the epoch of that number, and returns how many images it saw."""

keep_freed_memory()  # as `fastres train` does


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(os.environ.get("FASTRES_TEST_DATA") or "shapes10", root=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training and test images as files in folders."""
    archive = os.environ.get("FASTRES_TEST_DATA")
    if archive is None:
        pytest.skip("FASTRES_TEST_DATA is not set to an archive of CIFAR-10 as JPEG files")
    path = tmp_path_factory.mktemp("files")
    with tarfile.open(archive) as tar:
        tar.extractall(path, filter="data")
    return path


def plain(batch: Batch, epoch: int) -> None:
    """The batch's pixels in memory of their own."""
    if len(batch.source) != len(batch.rows):
        torch.index_select(batch.source, 0, batch.rows)


def augmented() -> Callable[[Batch, int], None]:
    augment = Augment(SIMPLE, (0.5,) * 3, (0.25,) * 3, dtype=torch.bfloat16)

    def use(batch: Batch, epoch: int) -> None:
        augment.unmixed(batch.source, batch.indices, epoch, batch.rows)

    return use


def through(loader: Loader, use: Callable[[Batch, int], None]) -> Turn:
    def turn(epoch: int) -> int:
        count = 0
        for batch in loader.batches(epoch):
            use(batch, epoch)
            count += len(batch.rows)
        return count

    return turn


def bare_gather(images: torch.Tensor) -> Turn:
    """torch.index_select alone: rows known beforehand, no labels."""
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(BATCH)

    def turn(epoch: int) -> int:
        return sum(len(torch.index_select(images, 0, part)) for part in rows)

    return turn


def bare_ffcv(path: Path) -> Turn:
    """FFCV as its documentation uses it, with its own shuffling."""
    from fastres.data.ffcv_import import import_ffcv

    import_ffcv()
    threads = torch.get_num_threads()
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader as TheirLoader
    from ffcv.loader import OrderOption

    loader = TheirLoader(
        str(path),
        batch_size=BATCH,
        num_workers=CORES,
        order=OrderOption.RANDOM,
        drop_last=False,
        os_cache=True,
        pipelines={"image": [SimpleRGBImageDecoder()]},
    )
    torch.set_num_threads(threads)

    def turn(epoch: int) -> int:
        count = sum(len(images) for images, _ in loader)
        torch.set_num_threads(threads)
        return count

    return turn


def image_folder(folder: Path, workers: int) -> Turn:
    """torchvision's ImageFolder behind a DataLoader, decoding with Pillow."""
    from fastres.data.torchvision_cpu import import_torchvision

    import_torchvision()
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    images = ImageFolder(str(folder), transform=PILToTensor())
    loader: Any = torch.utils.data.DataLoader(images, BATCH, shuffle=True, num_workers=workers)

    def turn(epoch: int) -> int:
        return sum(len(batch) for batch, _ in loader)

    return turn


def by_turns(
    turns: dict[str, Turn], benchmark: Any, request: pytest.FixtureRequest, rounds: int = ROUNDS
) -> dict[str, float]:
    """Each in turn, `rounds` times; figures are medians in images a second, the first epoch's apart.

    The first epoch of each is its cold one: it starts threads, processes and compiled code.
    """
    rates: dict[str, list[float]] = {name: [] for name in turns}
    cold: dict[str, float] = {}

    def one(name: str, epoch: int) -> float:
        began, count = time.perf_counter(), 0
        while count == 0 or (epoch and time.perf_counter() - began < 0.1):
            count += turns[name](epoch)
        return count / (time.perf_counter() - began)

    for name in turns:
        cold[name] = one(name, 0)

    numbers = itertools.count(1)

    def everything() -> None:
        epoch = next(numbers)
        # Who comes first changes, so that nobody always follows the one that leaves the caches in the worst state.
        first = epoch % len(turns)
        for name in [*turns, *turns][first : first + len(turns)]:
            rates[name].append(one(name, epoch))
            time.sleep(0.02)  # idle OpenMP threads spin for some milliseconds after their last work

    benchmark.pedantic(everything, rounds=rounds, iterations=1)
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    note(
        request,
        benchmark,
        **{f"{name} images/s": rate for name, rate in medians.items()},
        **{f"{name} first epoch": rate for name, rate in cold.items()},
        threads=torch.get_num_threads(),
    )
    return medians


@pytest.mark.parametrize("augmentation", ["none", "flip+translate"])
def test_decoded(augmentation: str, dataset: Dataset, benchmark: Any, request: pytest.FixtureRequest) -> None:
    """Every loader on the decoded store."""
    loaders = {kind: make_loader(dataset, loader=kind, batch_size=BATCH, seed=0) for kind in KINDS}
    use = plain if augmentation == "none" else augmented()
    turns = {kind: through(loader, use) for kind, loader in loaders.items()}
    if augmentation == "none":
        turns["index_select alone"] = bare_gather(loaders["resident"].source)  # type: ignore[attr-defined]
        if "ffcv" in KINDS:
            from fastres.data import beton

            turns["bare FFCV"] = bare_ffcv(beton.open_beton(dataset).folder / "train.beton")
    medians = by_turns(turns, benchmark, request)
    for loader in loaders.values():
        loader.close()
    if augmentation == "none":
        assert medians["resident"] > 0.6 * medians["index_select alone"], "the loader costs more than its gather"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = synthetic_store(tmp_path_factory.mktemp("streaming"), LARGE)
    if "ffcv" in KINDS:
        from fastres.data import beton

        beton.prepare(open_store(store, "synthetic"), quiet=True)
    return store


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "resident"])
def test_streaming(kind: str, large: Path, benchmark: Any, request: pytest.FixtureRequest) -> None:
    """2 GB of images, from the disk on, then with what the page cache has kept; in any memory and in 1 GB of it.

    Takes four epochs of 650,000 images; asked for with `-m slow`.
    """
    free = benchmark.pedantic(lambda: run(large, kind, epochs=2), rounds=1)
    figures: dict[str, Any] = {
        "images/s": free["images_per_second"],
        "most anonymous bytes": free["peak_anonymous_bytes"],
    }
    wrong = free["wrong"]
    try:
        limited = run(large, kind, epochs=2, limit=LARGE // 2)
    except OSError as error:
        figures["in 1 GB"] = f"no control group can be made here: {error}"
    else:
        figures["images/s in 1 GB"], wrong = limited["images_per_second"], wrong + limited["wrong"]
    note(request, benchmark, **figures)
    assert wrong == 0


def test_files(folder: Path, tmp_path: Path, benchmark: Any, request: pytest.FixtureRequest) -> None:
    """JPEG files in folders, decoded at every epoch: ours on the encoded store against torchvision's ImageFolder."""
    dataset = open_dataset(str(folder), store="encoded", root=tmp_path)
    loaders = {
        kind: make_loader(dataset, loader=kind, batch_size=BATCH, seed=0) for kind in KINDS if kind != "resident"
    }
    turns = {kind: through(loader, plain) for kind, loader in loaders.items()}
    turns["ImageFolder"] = image_folder(folder / "train", CORES)
    by_turns(turns, benchmark, request, rounds=3)
    for loader in loaders.values():
        loader.close()
