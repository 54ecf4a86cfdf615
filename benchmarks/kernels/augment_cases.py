"""The augmentation kernels on a GPU: against the plain reference, torchvision's v2 and the machine's copy rate.

Images are random, 32×32, in a store of 50,000 on the device: 154 MB, three times the L2 of an H100 or H200, read at
random rows. `ours` is one call of `gpu.augment_batch`, epoch and step in device memory. `torchvision` is v2 on the
gathered batch: it draws once for a whole batch where ours draws for each image, the only way that v2 is fast on a GPU.
pydantic has to be installed, since a recipe's tables are its models.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.variants import figures, tried
from fastres import recipe
from fastres.augment import Augment, draws, gpu, reference
from fastres.bench.ceilings import cache_bytes, copy_rate
from fastres.bench.machine_code_augment import PAPER
from fastres.bench.timing import DRY, GPU, measure, sets_for_cold_cache
from fastres.engine.cuda_graph import side_stream

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
STORE_IMAGES, SIDE = 50_000, 32
BATCHES = (16_384, 1024, 128)
"""The largest fills the device; the others are training's."""
WARPS = (1, 2, 4, 8, 16)

SHIFT = recipe.AugmentConfig(translate=4, padding="zero")
POLICIES = {"shift": SHIFT, "report": PAPER}
MIX = recipe.MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0)


@dataclass(frozen=True)
class Case:
    """A policy, mixed or not, on batches of one size."""

    policy: str
    mixes: bool
    batch: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        return f"{self.policy}{' mixed' if self.mixes else ''} {self.batch} {str(self.dtype)[6:]}"

    @property
    def floor_bytes(self) -> int:
        """Each image read once, or twice where it is a partner too, and each written once."""
        values = 3 * SIDE * SIDE
        return self.batch * values * ((2 if self.mixes else 1) + self.dtype.itemsize)

    def augment(self) -> Augment:
        """With a mixing of its own."""
        return Augment(POLICIES[self.policy], mix=MIX if self.mixes else None, mean=MEAN, std=STD, dtype=self.dtype)


def cases() -> Iterator[Case]:
    """The most telling first."""
    for batch in BATCHES:
        for policy in POLICIES:
            for mixes in (False, True):
                yield Case(policy, mixes, batch)


@cache
def store(device: torch.device) -> Tensor:
    """uint8 [M, 32, 32, 3]; a few images where this is only a dry run."""
    count = STORE_IMAGES if device.type == "cuda" else 64
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8, device=device)


def check(case: Case, device: torch.device, count: int = 64) -> dict[str, Any]:
    """Compare `count` images with the plain reference, of which every bit should be the same; a record for JSON.

    `repeats`: on a GPU a captured launch, replayed after epoch and step have changed in their memory, gives the bits of
    a direct call with these numbers.
    """
    if device.type != "cuda":
        case = replace(case, dtype=torch.float32)  # Triton's interpreter cuts bf16 off instead of rounding
    augment, images = case.augment(), store(device)
    rows = torch.randint(0, len(images), (count,), device=device)
    labels = rows % 10
    epoch, step = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))

    def call(at: Any, of: Any) -> Tensor:
        return gpu.augment_batch(augment, images, rows, rows, at, of if case.mixes else None, labels)[0]

    differing, repeats = 0, None
    for numbers in ((0, 0), (1, 7), (2, 9)):
        wanted = by_reference(augment, images, rows, *numbers, mixes=case.mixes).to(device)
        differing += int((call(*numbers) != wanted).sum())
    if device.type == "cuda":
        call(epoch, step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call(epoch, step)
        repeats = True
        for numbers in ((0, 0), (1, 7)):
            epoch.fill_(numbers[0])
            step.fill_(numbers[1])
            graph.replay()
            repeats = repeats and torch.equal(out, call(*numbers))
    passed = differing == 0 and repeats is not False
    return {"case": case.name, "differing_values": differing, "repeats": repeats, "passed": passed}


def by_reference(augment: Augment, images: Tensor, rows: Tensor, epoch: int, step: int, *, mixes: bool) -> Tensor:
    """[B, 3, H, W] in the type of `augment`, by the plain reference."""
    mixing = augment.draw_mix(epoch, step, (images.shape[1], images.shape[2])) if mixes else draws.UNMIXED
    return reference.augment_batch(augment, images, rows, epoch, rows, mixing)


def time_case(case: Case, device: torch.device, *, dry: bool = False) -> dict[str, Any]:
    """Time ours, ours with other numbers of warps, and torchvision; a record for JSON, times in microseconds a call.

    `share_of_copy`: the floor's bytes a second over the rate of copies that move as many.
    """
    effort = DRY if dry else GPU
    case = replace(case, batch=2) if dry else case
    images, sets = store(device), sets_for_cold_cache(case.floor_bytes, cache_bytes(device))
    rows = [torch.randint(0, len(images), (case.batch,), device=device) for _ in range(1 if dry else sets)]
    makers: dict[str, Callable[[], Callable[[Tensor], object]]] = {"ours": partial(ours, case, images)}
    for warps in () if dry else WARPS:
        makers[f"ours, {warps} warps"] = partial(ours, case, images, warps)
    makers["torchvision"] = partial(torchvisions, case, images)
    made, missing = tried(makers)
    with side_stream(device):
        running, failed = tried({name: partial(call, rows[0]) for name, call in made.items()})
        calls = {name: [partial(made[name], each) for each in rows] for name in running}
        # torchvision draws on the host and copies its constants from there: in a graph they would stand still.
        timings = measure(calls, device, effort, launched=["torchvision"])
        rate, _ = copy_rate(math.ceil(case.floor_bytes / 2), device, cold=True, effort=effort)
    variants = figures(timings)
    for name, timing in timings.items():
        variants[name]["images_per_second"] = case.batch / timing.seconds
        variants[name]["share_of_copy"] = case.floor_bytes / timing.seconds / rate
    fixed = {"case": case.name, "floor_bytes": case.floor_bytes, "copy_bytes_per_second": rate, "sets": len(rows)}
    return {**fixed, "missing": missing | failed, "variants": variants}


def ours(case: Case, images: Tensor, warps: int | None = None) -> Callable[[Tensor], object]:
    """A call of the kernels, with the number of warps that `gpu.launch` chooses or with another one."""
    augment, labels = case.augment(), torch.zeros(case.batch, dtype=torch.int64, device=images.device)
    epoch, step = (torch.ones((), dtype=torch.int64, device=images.device) for _ in range(2))

    def call(rows: Tensor) -> object:
        return gpu.augment_batch(augment, images, rows, rows, epoch, step if case.mixes else None, labels)

    usual = gpu.launch
    if warps is not None:
        gpu.launch = lambda policy: replace(usual(policy), warps=warps)
    try:
        # Tables are made, and the launch chosen, at the first call.
        call(torch.arange(case.batch, device=images.device))
    finally:
        gpu.launch = usual
    return call


def torchvisions(case: Case, images: Tensor) -> Callable[[Tensor], object]:
    """The same operations by torchvision's v2, on uint8 tensors of the whole batch."""
    if images.device.type != "cuda":
        from fastres.data.compat.torchvision import import_torchvision

        import_torchvision()
    from torchvision.transforms import v2

    cubic = v2.InterpolationMode.BICUBIC
    steps: dict[str, list[Any]] = {
        "shift": [v2.RandomCrop(SIDE, padding=4)],
        "report": [
            v2.RandomResizedCrop(SIDE, scale=(0.85, 1.0), interpolation=cubic, antialias=True),
            v2.RandomApply([v2.ColorJitter(0.1, 0.1, 0.1, 0.1)], p=0.3),
            v2.RandomAutocontrast(0.2),
            v2.RandomGrayscale(0.2),
        ],
    }
    last = [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([*steps[case.policy], *last])
    mixing = v2.RandomChoice([v2.CutMix(num_classes=10), v2.MixUp(num_classes=10)])
    labels = torch.zeros(case.batch, dtype=torch.int64, device=images.device)

    def call(rows: Tensor) -> object:
        batch = transform(images[rows].permute(0, 3, 1, 2))
        batch = batch.to(case.dtype, memory_format=torch.channels_last)
        return mixing(batch, labels) if case.mixes else batch

    return call
