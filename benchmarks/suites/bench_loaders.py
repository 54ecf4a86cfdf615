"""Loaders on the CPU: images a second of each against what it competes with, by turns in one process.

A turn is an epoch, or as many as fill a tenth of a second, of CIFAR-10 (JPEG, from FASTRES_TEST_DATA; else shapes10),
shuffled, in batches of 512 whose pixels are gathered into memory of their own: `resident` yields rows, so that here it
is followed by the gather that the augmentation otherwise does as it reads. All loaders have as many threads or
processes as there are cores. Before anything is timed, each goes through an epoch in which every image is counted.
"""

import functools
import math
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness.sameness import identical
from benchmarks.harness.versus import Side, Versus, copying, note
from benchmarks.suites.streaming import run, synthetic_store
from fastres import recipe
from fastres.augment import Augment
from fastres.bench.timing import seconds
from fastres.data import Dataset, open_dataset
from fastres.data.loaders import Batch, Loader, choose, make_loader
from fastres.data.store.decoded import open_store
from fastres.engine.memory import keep_freed_memory

BATCH, ROUNDS, LARGE = 512, 7, 2_000_000_000
PIXELS = 32 * 32 * 3
CORES = len(os.sched_getaffinity(0))
KINDS = [kind for kind in choose.KINDS if choose.installed(kind)]
READING = [kind for kind in KINDS if choose.loader_of(kind).reads_encoded]
SIMPLE = recipe.AugmentConfig(translate=4, padding="zero")
FULL = pytest.mark.full

keep_freed_memory()  # as `fastres train` does


@pytest.fixture(scope="module")
def dataset(source: str, root: str) -> Dataset:
    return open_dataset(source, root=root, quiet=True)


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


Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Goes through the epoch of that number: images [B, H, W, 3] and their labels."""


def side(epoch: Epoch) -> Side:
    """A turn goes through epochs for a tenth of a second at least; its outcome is `counted`."""
    numbers = iter(range(10**9))

    def once() -> int:
        return sum(len(images) for images, _ in epoch(next(numbers)))

    outcome = counted(epoch, next(numbers))
    images = once()
    times = math.ceil(0.1 / seconds(once))
    pause = functools.partial(time.sleep, 0.02)  # idle OpenMP threads spin for some milliseconds after their last work
    return Side(lambda: [once() for _ in range(times)], images * times, outcome=lambda: outcome, before=pause)


def counted(epoch: Epoch, number: int) -> Tensor:
    """int64 [3], exact sums over an epoch that no order of the images changes: images, bytes weighed by their places,
    and these times the label. A missing, doubled, mirrored, damaged or mislabelled image changes them."""
    sums = torch.zeros(3, dtype=torch.int64)
    for images, labels in epoch(number):
        content = images.contiguous().view(torch.uint8).flatten(1).long()
        weighed = content @ (1 + torch.arange(content.shape[1]))
        sums += torch.stack([torch.tensor(len(images)), weighed.sum(), weighed @ (labels.flatten().long() + 1)])
    return sums


def ours(loader: Loader) -> Epoch:
    """A loader's images in memory of their own."""

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader.batches(number):
            own = len(batch.source) == len(batch.rows)
            yield batch.source if own else torch.index_select(batch.source, 0, batch.rows), batch.labels

    return epoch


def augmented(loader: Loader) -> Epoch:
    """The same, flipped, shifted and normalised to bf16."""
    augment = Augment(SIMPLE, (0.5,) * 3, (0.25,) * 3, dtype=torch.bfloat16)

    def images(batch: Batch, epoch: int) -> Tensor:
        return augment.augment(batch.source, batch.indices, epoch, batch.rows).permute(0, 2, 3, 1)

    return lambda number: ((images(batch, number), batch.labels) for batch in loader.batches(number))


def tensors_of(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The decoded training images and their labels."""
    assert dataset.train is not None and dataset.train.labels is not None
    return torch.from_numpy(dataset.train.images), torch.from_numpy(dataset.train.labels)


def bare_gather(dataset: Dataset) -> Epoch:
    """torch.randperm and torch.index_select alone."""
    images, labels = tensors_of(dataset)

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(images)).split(BATCH):
            yield torch.index_select(images, 0, rows), labels[rows]

    return epoch


def bare_ffcv(dataset: Dataset) -> Epoch:
    """FFCV as its documentation uses it, with its own shuffling."""
    from fastres.data.compat.ffcv import import_ffcv
    from fastres.data.store import beton

    import_ffcv()
    threads = torch.get_num_threads()
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader as TheirLoader
    from ffcv.loader import OrderOption

    loader = TheirLoader(
        str(beton.open_beton(dataset).folder / "train.beton"),
        batch_size=BATCH,
        num_workers=CORES,
        order=OrderOption.RANDOM,
        drop_last=False,
        os_cache=True,
        pipelines={"image": [SimpleRGBImageDecoder()]},
    )
    torch.set_num_threads(threads)

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield torch.as_tensor(images), torch.as_tensor(labels)
        torch.set_num_threads(threads)

    return epoch


def data_loader(dataset: Any) -> Epoch:
    """PyTorch's DataLoader with a process for each core, over a map from positions to an image and its label."""
    loader: Any = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=CORES)
    return lambda number: iter(loader)


def tensors(dataset: Dataset) -> Epoch:
    """DataLoader over the decoded images."""
    return data_loader(torch.utils.data.TensorDataset(*tensors_of(dataset)))


def image_folder(folder: Path) -> Epoch:
    """DataLoader over torchvision's ImageFolder, decoding with Pillow."""
    from fastres.data.compat.torchvision import import_torchvision

    import_torchvision()
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    epoch = data_loader(ImageFolder(str(folder), transform=PILToTensor()))
    return lambda number: ((images.permute(0, 2, 3, 1), labels) for images, labels in epoch(number))


RIVALS: dict[str, tuple[str, Callable[[Dataset], Epoch]]] = {
    "resident": ("randperm and index_select", bare_gather),
    "ffcv": ("bare FFCV", bare_ffcv),
    "dali": ("DataLoader over a TensorDataset", tensors),
    "torch": ("DataLoader over a TensorDataset", tensors),
}


def measure(versus: Versus, ours: Side, rival: Side, against: str, rounds: int = ROUNDS, **more: Any) -> None:
    """By turns, where both deliver the same images."""
    threads = torch.get_num_threads()
    versus(ours, rival, same=identical, rounds=rounds, against=against, unit="images", threads=threads, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_decoded(kind: str, dataset: Dataset, versus: Versus) -> None:
    """Every loader on the decoded store."""
    name, rival = RIVALS[kind]
    assert dataset.train is not None
    with make_loader(dataset, loader=kind, batch_size=BATCH, seed=0) as loader:
        mine = side(ours(loader))
        measure(
            versus,
            mine,
            side(rival(dataset)),
            name,
            ceiling=copying(BATCH * 2 * PIXELS, len(dataset.train.images) // BATCH),
            bytes=2 * PIXELS * mine.units,
            # Its epochs' order is drawn by seed and epoch, which torch's generator does faster.
            at_least=0.5 if kind == "resident" else None,
            source=dataset.name,
        )


@FULL
@pytest.mark.parametrize("kind", READING)
def test_decoded_and_augmented(kind: str, dataset: Dataset, versus: Versus) -> None:
    """Every other loader followed by the augmentation, against `resident`, whose gather is a part of that."""
    with (
        make_loader(dataset, loader=kind, batch_size=BATCH, seed=0) as loader,
        make_loader(dataset, loader="resident", batch_size=BATCH, seed=0) as resident,
    ):
        both = side(augmented(loader)), side(augmented(resident))
        measure(versus, *both, "the resident loader", source=dataset.name)


@FULL
@pytest.mark.parametrize("kind", READING)
def test_files(kind: str, folder: Path, versus: Versus, tmp_path: Path) -> None:
    """JPEG files in folders, decoded at every epoch: ours on the encoded store against torchvision's ImageFolder."""
    dataset = open_dataset(str(folder), store="encoded", root=tmp_path, quiet=True)
    with make_loader(dataset, loader=kind, batch_size=BATCH, seed=0) as loader:
        measure(versus, side(ours(loader)), side(image_folder(folder / "train")), "ImageFolder", rounds=3)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    total = LARGE // 1000 if request.config.getoption("--dry") else LARGE
    store = synthetic_store(tmp_path_factory.mktemp("streaming"), total)
    if "ffcv" in KINDS:
        from fastres.data.store import beton

        beton.prepare(open_store(store, "synthetic"), quiet=True)
    return store


@FULL
@pytest.mark.parametrize("kind", READING)
def test_streaming(kind: str, large: Path, benchmark: Any, request: pytest.FixtureRequest, dry: bool) -> None:
    """2 GB of images, from the disk on, then with what the page cache has kept; in any memory and in 1 GB of it.

    Takes four epochs of 650,000 images. There is no rival that obeys an order of its own; each image is checked.
    """
    free = benchmark.pedantic(lambda: run(large, kind, epochs=2), rounds=1)
    figures: dict[str, Any] = {"images/s": free["images_per_second"]}
    figures["most anonymous bytes"], wrong = free["peak_anonymous_bytes"], free["wrong"]
    try:
        limited = run(large, kind, epochs=2, limit=LARGE // 2)
    except OSError as error:
        figures["in 1 GB"] = f"no control group can be made here: {error}"
    else:
        figures["images/s in 1 GB"], wrong = limited["images_per_second"], wrong + limited["wrong"]
    assert wrong == 0
    note(request, benchmark, **figures)
