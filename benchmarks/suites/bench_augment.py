"""Augmentation on the CPU, 32×32 images from uint8 to bf16: against torchvision, Pillow and FFCV, and against copying.

Ours, a rival and a copy take turns in one process; figures are of one image. A turn of ours goes once through 20,000
images in an order at random, batch by batch, and so does a turn of FFCV's loader; pipelines that take one image at a
time get 256. A turn has to be that long. The first batch after a rival takes twice as long as those that follow (2.0 ms
and 1.0 ms), mostly because OpenMP's idle workers spin on the second core: with OMP_WAIT_POLICY=passive and
GOMP_SPINCOUNT=0 it takes 1.2 ms. Waiting until they sleep is no remedy: after 25 ms without work the machine itself is
slow for several batches, 1.6 ms each. That first batch's rate stands beside the others as
`first_batch_images_per_second`.
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness.versus import Same, Side, Versus, copying, note
from benchmarks.kernels.augment_cases import MEAN, MIX, SHIFT, STD, by_reference
from benchmarks.rivals import plain
from fastres import recipe
from fastres.augment import Augment
from fastres.bench.machine_code_augment import PAPER
from fastres.bench.timing import seconds
from fastres.data import open_dataset
from fastres.data.compat.torchvision import import_torchvision
from fastres.engine.memory import keep_freed_memory

import_torchvision()
from torchvision.transforms import v2  # noqa: E402

BATCH, SINGLE, ROUNDS = 1024, 256, 15
STORE_IMAGES, COMPARED, EXACT = 20_000, 512, 64
THREADS = torch.get_num_threads()

CUTOUT = recipe.AugmentConfig(translate=4, padding="zero", cutout=8)
CROP = recipe.AugmentConfig(translate=0, random_resized_crop=recipe.RandomResizedCropConfig())

# `fastres train` does this for its process; without it both sides wait for fresh memory at every batch.
keep_freed_memory()


@pytest.fixture(scope="module")
def store(source: str, root: str) -> Tensor:
    """uint8 [20000, 32, 32, 3]: the training images, from the start again where there are fewer."""
    train = open_dataset(source, root=root, quiet=True).train
    assert train is not None
    return torch.from_numpy(train.images[np.arange(STORE_IMAGES) % len(train.images)])


class Ours:
    """A turn of ours, with the seconds that its first batch took at each turn."""

    def __init__(self, policy: recipe.AugmentConfig, store: Tensor, mix: recipe.MixConfig | None = None) -> None:
        self.augment = Augment(policy, MEAN, STD, mix=mix, dtype=torch.bfloat16)
        self.store, self.mixes, self.epoch = store, mix is not None, 0
        self.rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(1)).split(BATCH)
        self.labels = [rows % 10 for rows in self.rows]
        self.first_batch: list[float] = []

    def __call__(self) -> None:
        self.epoch += 1
        self.first_batch.append(seconds(lambda: self.batch(0)))
        for step in range(1, len(self.rows)):
            self.batch(step)

    def batch(self, step: int) -> object:
        rows = self.rows[step]
        if self.mixes:
            return self.augment(self.store, self.labels[step], rows, self.epoch, step, rows)
        return self.augment.augment(self.store, rows, self.epoch, rows)

    def outcome(self) -> Tensor:
        """Grey levels of the first images, augmented and not mixed. Raises AssertionError where some of them, mixed
        too if this mixes, differ from the reference's in a bit."""
        some = torch.arange(EXACT)
        for mixes in {False, self.mixes}:
            found = self.augment.augment(self.store, some, 1, some)
            if mixes:
                found, _, _, weight = self.augment(self.store, some % 10, some, 1, 2, some)
                assert float(weight) == float(self.augment.draw_mix(1, 2, (32, 32)).weight)
            wanted = by_reference(self.augment, self.store, some, 1, 2, mixes=mixes)
            assert torch.equal(found, wanted), "ours has other bits than fastres/augment/reference.py"
        rows = torch.arange(COMPARED)
        return levels(self.augment.augment(self.store, rows, 1, rows))


def levels(batch: Tensor) -> Tensor:
    """Normalised [B, 3, H, W] → whole grey levels, fp32 [B, H, W, 3]. bf16 is off by a quarter of a level at most."""
    return ((batch.permute(0, 2, 3, 1).float() * torch.tensor(STD) + torch.tensor(MEAN)) * 255).round()


# ------------------------------------------------------------------------------------------------------- the rivals


def one_by_one(transform: Callable[[Any], Tensor], samples: list[Any]) -> Side:
    """A pipeline that takes one image at a time; its outcome are the grey levels of the first ones."""

    def outcome() -> Tensor:
        torch.manual_seed(0)
        return levels(torch.stack([transform(sample) for sample in samples]).bfloat16())

    some = samples[:SINGLE]
    return Side(lambda: torch.stack([transform(sample) for sample in some]).bfloat16(), SINGLE, outcome=outcome)


def torchvisions_tensors(store: Tensor) -> Side:
    steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return one_by_one(v2.Compose([*steps, *last]), list(store[:COMPARED].permute(0, 3, 1, 2).contiguous()))


def paper_pipeline(store: Tensor) -> Side:
    """The report's pipeline: torchvision on Pillow images."""
    pictures = [Image.fromarray(image.numpy()) for image in store[:COMPARED]]
    return one_by_one(plain.pipeline(PAPER, MEAN, STD), pictures)


def torchvisions_mixing(store: Tensor) -> Side:
    """Mixing alone, of batches that are already normalised. Its outcome: own shares by pixels and by labels."""
    batch, labels = torch.randn(BATCH, 3, 32, 32).bfloat16(), torch.arange(BATCH) % 10
    mixing = v2.RandomChoice([v2.CutMix(num_classes=10), v2.MixUp(num_classes=10)])

    def outcome() -> list[tuple[float, float]]:
        found = []
        for _ in range(8):
            mixed, targets = mixing(batch, labels)
            parts = torch.stack([batch, batch.roll(1, 0)], -1).float().view(-1, 2)
            own = torch.linalg.lstsq(parts, mixed.float().view(-1, 1)).solution[0]
            found.append((float(own), float(targets[0, labels[0]])))
        return found

    turn = -(-len(store) // BATCH)
    return Side(lambda: [mixing(batch, labels) for _ in range(turn)], BATCH * turn, outcome=outcome)


# ------------------------------------------------------------------------------------------- what has to be the same


def moved(store: Tensor, hidden: int = 0) -> Same:
    """Demands that both sides' images are images of the store, perhaps mirrored, shifted by up to 4 pixels, black where
    they came from; up to `hidden` pixels of each may be covered."""

    def check(images: Tensor) -> None:
        for number, image in enumerate(images[:EXACT]):
            padded = torch.nn.functional.pad(store[number].float(), (0, 0, 4, 4, 4, 4))
            places = padded.unfold(0, 32, 1).unfold(1, 32, 1).permute(0, 1, 3, 4, 2)  # [9, 9, 32, 32, 3]
            differing = [int((seen != places).any(-1).sum((2, 3)).min()) for seen in (image, image.flip(1))]
            assert min(differing) <= hidden, f"image {number} is neither shifted nor mirrored, it is another"

    def same(ours: Tensor, rival: Tensor) -> None:
        check(ours)
        check(rival)

    return same


def alike(ours: Tensor, rival: Tensor, *, spread: bool = True) -> None:
    """Demands that grey levels, and with `spread` their deviation and colour, have the same means over images.

    Both sides draw differently for the same images. Differences of more than five standard errors come once in 1.7
    million comparisons, and in no later run where they did not come in the first: the draws are seeded."""

    def measures(images: Tensor) -> Tensor:
        found = [images.mean((1, 2))]
        if spread:
            colour = images.amax(3) - images.amin(3)
            found += [images.std((1, 2)), colour.mean((1, 2))[:, None]]
        return torch.cat(found, 1).double()

    assert ours.shape == rival.shape
    differences = measures(ours) - measures(rival)
    errors = differences.mean(0) / (differences.std(0) / len(differences) ** 0.5)
    assert float(errors.abs().max()) < 5, f"means over images differ by {errors.tolist()} standard errors"


def means_alike(ours: Tensor, rival: Tensor) -> None:
    """The same where the two interpolate by different filters, which smooth differently."""
    alike(ours, rival, spread=False)


def shares_alike(ours: Tensor, rival: list[tuple[float, float]]) -> None:
    """Demands that labels are mixed by the share of the pixels. Ours has shown that in `outcome`."""
    for pixels, label in rival:
        # A fit over three million values of deviation 1, which CutMix divides by area: its error is 0.001 and less.
        assert abs(pixels - label) < 0.01, f"{pixels:.3f} of the pixels, {label:.3f} of the labels"


CASES: dict[str, tuple[recipe.AugmentConfig, recipe.MixConfig | None, Callable[[Tensor], Side], str]] = {
    "simple": (SHIFT, None, torchvisions_tensors, "torchvision v2, one image at a time"),
    "report": (PAPER, None, paper_pipeline, "the report's pipeline: torchvision on Pillow images"),
    "report_mixed": (PAPER, MIX, paper_pipeline, "the report's pipeline, without mixing"),
    "simple_mixed": (SHIFT, MIX, torchvisions_mixing, "torchvision's mixing alone"),
}


@pytest.mark.parametrize("case", CASES)
def test_augment(case: str, store: Tensor, versus: Versus) -> None:
    policy, mix, rival, against = CASES[case]
    same: dict[Any, Same] = {
        torchvisions_tensors: moved(store),
        paper_pipeline: alike,
        torchvisions_mixing: shares_alike,
    }
    # Who only mixes has but a part of the work to do.
    at_least = None if rival is torchvisions_mixing else 1
    measure(Ours(policy, store, mix), rival(store), same[rival], against, at_least, versus)


@pytest.fixture(scope="module")
def beton(store: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store as FFCV's file of raw pixels, the position as label."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    class Images:
        def __len__(self) -> int:
            return len(store)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return store[index].numpy(), index

    path = tmp_path_factory.mktemp("ffcv") / "images.beton"
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Images())
    return path


@pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed: it builds from source")
@pytest.mark.parametrize(
    "case", ["flip_translate_cutout", pytest.param("random_resized_crop_flip", marks=pytest.mark.full)]
)
def test_against_ffcv(
    case: str, store: Tensor, beton: Path, versus: Versus, benchmark: Any, request: pytest.FixtureRequest
) -> None:
    """FFCV's loader with its own operations, which ends at uint8; ours normalises as well."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Cutout, RandomHorizontalFlip, RandomTranslate, ToTensor

    if case == "flip_translate_cutout":
        policy, same = CUTOUT, moved(store, hidden=8 * 8)
        operations = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=4), Cutout(8)]
    else:
        policy, same = CROP, means_alike
        operations = [RandomResizedCropRGBImageDecoder((32, 32)), RandomHorizontalFlip()]
    began = time.perf_counter()
    loader = Loader(
        str(beton),
        batch_size=BATCH,
        num_workers=THREADS,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,  # it would leave out 544 of the images that are counted
        pipelines={"image": [*operations, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    next(iter(loader))
    first = time.perf_counter() - began
    torch.set_num_threads(THREADS)  # importing ffcv sets it to 1

    def theirs() -> None:
        for _ in loader:
            pass

    def outcome() -> Tensor:
        """Of the first images of the store, wherever they come."""
        found = torch.full((COMPARED, 32, 32, 3), -1.0)
        for images, places in loader:
            places = places.flatten()
            wanted = places < COMPARED
            found[places[wanted]] = images[wanted].float()
        return found

    rival = Side(theirs, len(store), outcome=outcome)
    measure(Ours(policy, store), rival, same, "FFCV's loader, left in uint8", 1, versus)
    note(request, benchmark, rival_first_batch_seconds=first)


def measure(mine: Ours, theirs: Side, same: Same, against: str, at_least: float | None, versus: Versus) -> None:
    """Ours, the rival and a copy by turns."""
    # A uint8 that is read and a bf16 that is written are three bytes.
    moves = 32 * 32 * 3 * 3
    versus(
        Side(mine, len(mine.store), outcome=mine.outcome),
        theirs,
        same=same,
        rounds=ROUNDS,
        against=against,
        unit="images",
        ceiling=copying(BATCH * moves, 64),
        bytes=len(mine.store) * moves,
        at_least=at_least,
        threads=torch.get_num_threads(),
    )
    note(versus.request, versus.benchmark, first_batch_images_per_second=BATCH / float(np.median(mine.first_batch[2:])))


OURS_STARTS = """
from fastres.recipe import Recipe
from fastres.augment import Augment
augment = Augment(Recipe().augment, (0.5,) * 3, (0.2,) * 3)
images, rows = torch.zeros(128, 32, 32, 3, dtype=torch.uint8), torch.arange(128)
began = time.perf_counter()
batch = augment.augment(images, rows, 0)
"""
TORCHVISION_STARTS = """
from fastres.data.compat.torchvision import import_torchvision
import_torchvision()
from torchvision.transforms import v2
steps = [v2.RandomCrop(32, 4, padding_mode="reflect"), v2.RandomHorizontalFlip()]
augment = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.2,) * 3)])
images = torch.zeros(128, 3, 32, 32, dtype=torch.uint8)
began = time.perf_counter()
batch = torch.stack([augment(image) for image in images])
"""


def test_first_batch_of_a_process(versus: Versus, benchmark: Any, request: pytest.FixtureRequest) -> None:
    """From the start of a process to its first batch, once the compiled code lies on disk."""
    took: list[float] = []

    def start(program: str) -> Side:
        def run() -> list[float]:
            told = "print(time.perf_counter() - began, *batch.shape, batch.float().mean().item())"
            whole = f"import time, torch{program}{told}"
            done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
            first, *about = map(float, done.stdout.split())
            if program is OURS_STARTS:
                took.append(first)
            return about

        return Side(run, peak=lambda: None)

    def same(ours: list[float], rival: list[float]) -> None:
        # Black is (0 - 0.5) / 0.2, which bf16 has exactly, and fp32 up to its rounding.
        assert ours == rival == pytest.approx([128, 3, 32, 32, -2.5])

    versus(start(OURS_STARTS), start(TORCHVISION_STARTS), same=same, rounds=3, against="torchvision v2")
    note(request, benchmark, first_batch_seconds=sorted(took[1:])[len(took) // 2 - 1])
    assert min(took) < 1
