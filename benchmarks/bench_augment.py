"""Augmentation on the CPU, 32×32 images from uint8 to bf16: against torchvision, Pillow and FFCV, and against copying.

Ours works on a batch of 1,024, so does torchvision where it can; pipelines that take one image at a time get 64. All
figures are of one image, in one process, by turns.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import note
from benchmarks.timing import Ratio, compare, seconds
from fastres import recipe
from fastres.augment import Augment
from fastres.data.torchvision_cpu import import_torchvision
from fastres.memory import keep_freed_memory

import_torchvision()
from torchvision import transforms as v1  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

BATCH, SINGLE, ROUNDS = 1024, 64, 25
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
STORE = torch.randint(0, 256, (20_000, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randperm(len(STORE), generator=torch.Generator().manual_seed(1))[:BATCH]

SIMPLE = recipe.Augment(translate=4, padding="zero")
REPORT = recipe.Augment(
    random_resized_crop=recipe.RandomResizedCrop(scale=[0.85, 1.0], interpolation="bicubic"),
    translate=0,
    color_jitter=recipe.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1, p=0.3),
    autocontrast=0.2,
    grayscale=0.2,
)
MIX = recipe.Mix(mixup_alpha=1.0, cutmix_alpha=1.0)

# `fastres train` does this for its process; without it both sides wait for fresh memory at every batch.
keep_freed_memory()


class Copy:
    """As many bytes as a batch reads and writes, copied: from one half of a buffer beyond every cache to the other."""

    images = BATCH

    def __init__(self) -> None:
        self.size = BATCH * 32 * 32 * 3 * 3 // 2  # a uint8 read and a bf16 written are three bytes, moved as 1.5 + 1.5
        self.source, self.target = torch.zeros(64 * self.size // 4), torch.zeros(64 * self.size // 4)
        self.turn = 0

    def __call__(self) -> None:
        self.turn = (self.turn + 1) % 64
        part = slice(self.turn * self.size // 4, (self.turn + 1) * self.size // 4)
        self.target[part] = self.source[part]


def ours(policy: recipe.Augment, mix: recipe.Mix | None = None) -> Callable[[], object]:
    augment = Augment(policy, MEAN, STD, mix=mix, dtype=torch.bfloat16)
    labels = ROWS % 10
    step = iter(range(10**9))
    if mix is None:
        return lambda: augment.unmixed(STORE, ROWS, next(step), ROWS)
    return lambda: augment(STORE, labels, ROWS, 0, next(step), ROWS)


def one_by_one(transform: Callable[[Any], Tensor], samples: list[Any]) -> Callable[[], object]:
    return lambda: torch.stack([transform(sample) for sample in samples]).bfloat16()


def torchvisions_tensors() -> Callable[[], object]:
    steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return one_by_one(v2.Compose([*steps, *last]), list(STORE[:SINGLE].permute(0, 3, 1, 2).contiguous()))


def the_reports() -> Callable[[], object]:
    """The report's pipeline: torchvision on Pillow images."""
    pictures = [Image.fromarray(image.numpy()) for image in STORE[:SINGLE]]
    steps = [
        v1.RandomResizedCrop(32, scale=(0.85, 1.0), interpolation=v1.InterpolationMode.BICUBIC),
        v1.RandomApply([v1.ColorJitter(0.1, 0.1, 0.1, 0.1)], p=0.3),
        v1.RandomAutocontrast(0.2),
        v1.RandomGrayscale(0.2),
        v1.RandomHorizontalFlip(),
        v1.ToTensor(),
        v1.Normalize(MEAN, STD),
    ]
    return one_by_one(v1.Compose(steps), pictures)


def torchvisions_mixing() -> Callable[[], object]:
    """Mixing alone, of a batch that is already normalised."""
    batch, labels = torch.randn(BATCH, 3, 32, 32).bfloat16(), ROWS % 10
    mixing = v2.RandomChoice([v2.CutMix(num_classes=10), v2.MixUp(num_classes=10)])
    return lambda: mixing(batch, labels)


CASES = {
    "simple": (SIMPLE, None, torchvisions_tensors, SINGLE),
    "report": (REPORT, None, the_reports, SINGLE),
    "report_mixed": (REPORT, MIX, the_reports, SINGLE),
    "simple_mixed": (SIMPLE, MIX, torchvisions_mixing, BATCH),
}


@pytest.mark.parametrize("case", CASES)
def test_augment(case: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
    policy, mix, rival, images = CASES[case]
    ratio = measure(ours(policy, mix), rival(), images, benchmark, request)
    if rival is not torchvisions_mixing:  # which has only a part of the work to do
        assert ratio.median > 1, "slower than what it is meant to replace"


@pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed: it builds from source")
def test_against_ffcv(benchmark: Any, request: pytest.FixtureRequest) -> None:
    """FFCV's translation and flip, compiled as its loader does it; ours normalises as well."""
    threads = torch.get_num_threads()  # importing ffcv sets it to 1
    from ffcv.pipeline.compiler import Compiler
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate

    Compiler.set_enabled(True)
    Compiler.set_num_threads(threads)
    operations = [RandomTranslate(padding=4), RandomHorizontalFlip()]
    compiled = [Compiler.compile(operation.generate_code()) for operation in operations]
    batch = STORE[ROWS].numpy()
    targets = [np.zeros((BATCH, 40, 40, 3), dtype=np.uint8), np.zeros_like(batch)]

    def theirs() -> object:
        moved = compiled[0](batch, targets[0])
        return compiled[1](moved, targets[1])

    measure(ours(SIMPLE), theirs, BATCH, benchmark, request)


def measure(
    mine: Callable[[], object],
    theirs: Callable[[], object],
    images: int,
    benchmark: Any,
    request: pytest.FixtureRequest,
) -> Ratio:
    """Ours, the rival, which does `images` at a time, and a copy by turns; figures in images a second."""
    copy = Copy()
    for function in (mine, theirs, copy):
        function()
    others: tuple[list[float], list[float]] = ([], [])

    def between() -> None:
        others[0].append(seconds(theirs) / images)
        others[1].append(min(seconds(copy) for _ in range(3)) / BATCH)

    benchmark.pedantic(mine, setup=between, rounds=ROUNDS, iterations=1)
    samples = [sample / BATCH for sample in benchmark.stats.stats.data]
    ratio, copying = compare(samples, others[0]), compare(samples, others[1])
    note(
        request,
        benchmark,
        ratio=ratio.median,
        ratio_quartiles=[ratio.low, ratio.high],
        images_per_second=1 / ratio.seconds,
        best_images_per_second=1 / min(samples),
        rival_images_per_second=1 / ratio.rival_seconds,
        share_of_copy_rate=copying.median,
        threads=torch.get_num_threads(),
    )
    return ratio


START = """
import time
import torch
from fastres.recipe import Recipe
from fastres.augment import Augment
augment = Augment(Recipe().augment, (0.5,) * 3, (0.2,) * 3)
images, rows = torch.zeros(128, 32, 32, 3, dtype=torch.uint8), torch.arange(128)
began = time.perf_counter()
augment.unmixed(images, rows, 0)
print(time.perf_counter() - began)
"""


def test_first_batch_of_a_process(benchmark: Any, request: pytest.FixtureRequest) -> None:
    """Seconds to the first batch, once the compiled code lies on disk."""

    def start() -> float:
        return float(subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True).stdout)

    start()
    took: list[float] = []
    benchmark.pedantic(lambda: took.append(start()), rounds=5, iterations=1)
    note(request, benchmark, first_batch_seconds=sorted(took)[2])
    assert min(took) < 1
