"""Augmentation and mixing of a batch: eager, and as PyTorch operators, which stand whole in a compiled graph.

torch.compile can look into neither Numba's code nor what prepares Triton's. It gets `fastres::augment`, `…_next` and
`fastres::mix`, opaque operators with fake implementations: a specification is text to them, numbers that change from
step to step are tensors, so that no step needs a graph of its own. Eager code calls the functions themselves: an
operator's dispatch costs tens of microseconds.
"""

import functools
import json
import os
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres import recipe
from fastres.augment import draws
from fastres.augment.arguments import check_batch, check_counter, check_mixable, whole_number
from fastres.augment.spec import AugmentSpec, Mixed, from_text

Result = tuple[Tensor, Tensor | None, Tensor]
"""The batch, [B, 3, H, W]; the labels of the images that were mixed in, int64 [B], None without labels; the weight of
the images' own, fp32 [1]."""


def augment_batch(
    spec: AugmentSpec,
    images: Tensor,
    rows: Tensor | None,
    indices: Tensor,
    epoch: int | Tensor,
    step: int | Tensor | None,
    labels: Tensor | None,
) -> Result:
    """Augment, and mix where there is a `step`; arguments and errors as those of `Augment`."""
    check_batch(images, rows, indices=indices, **({} if step is None else {"labels": labels}))
    epoch = check_counter("epoch", epoch, images.device)
    step = None if step is None else check_counter("step", step, images.device)
    # Compilers and compiled code take a moment to load: not at import.
    if images.is_cuda:
        from fastres.augment import gpu

        return gpu.augment_batch(spec, images.contiguous(), rows, indices, epoch, step, labels)
    from fastres.augment.cpu import launch as cpu

    return cpu.augment_batch(spec, images.contiguous(), rows, indices, int(epoch), step, labels)


def augment_next(
    spec: AugmentSpec, images: Tensor, indices: Tensor | None, labels: Tensor | None, counters: Tensor
) -> Result:
    """The next batch of an `AugmentModule`, whose `counters`, int64 [3] on the CPU, then move on."""
    check_batch(images)
    epoch, step, seen = counters.tolist()
    if indices is None:
        shard, shards = shard_of_process()
        indices = torch.arange(seen, seen + len(images), device=images.device) * shards + shard
        step = step * shards + shard
        if shards > 1:
            _warn_of_shards(shard, shards)
    result = augment_batch(spec, images, None, indices, epoch, None if labels is None else step, labels)
    counters += torch.tensor([0, 1, len(images)])
    return result


def shard_of_process() -> tuple[int, int]:
    """Which of how many processes this is that draw for one training: every worker of a DataLoader in every rank.

    Ranks are those of `torch.distributed`, or of torchrun's RANK and WORLD_SIZE where that is not initialised.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    else:
        told = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
        rank, ranks = (int(told[0]), int(told[1])) if all(each.isdecimal() for each in told) else (0, 1)
    worker = torch.utils.data.get_worker_info()
    if worker is None:
        return rank, ranks
    return rank * worker.num_workers + worker.id, ranks * worker.num_workers


@functools.cache
def _warn_of_shards(shard: int, shards: int) -> None:
    warnings.warn(
        f"AugmentModule was called without indices in process {shard + 1} of {shards}, which draws for itself: give "
        "indices, the images' positions in the data set, for draws that do not depend on the number of processes",
        stacklevel=2,
    )


def mix_batch(
    batch: Tensor, labels: Tensor, mix: recipe.MixConfig, seed: int, epoch: int | Tensor, step: int | Tensor
) -> Mixed:
    """CutMix or MixUp of a float batch; arguments as those of `pipeline.mix_batch`."""
    check_mixable(batch, labels)
    seed = whole_number("seed", seed)
    epoch, step = (check_counter(name, value, batch.device) for name, value in (("epoch", epoch), ("step", step)))
    if batch.is_cuda:
        from fastres.augment import gpu

        return Mixed(*gpu.mix_batch(batch, labels, mix, seed=seed, epoch=epoch, step=step))
    batch = batch.detach()
    mixing = draws.draw_mix(mix, seed, int(epoch), int(step), (batch.shape[2], batch.shape[3]))
    if mixing.kind == draws.NO_MIX:
        return Mixed(batch.clone(), labels, labels, torch.ones(1))
    other = batch.roll(1, 0)
    if mixing.kind == draws.MIXUP:  # in fp32, rounded once
        own, rest = float(mixing.weight), float(np.float32(1) - mixing.weight)
        mixed = (batch.float() * own + other.float() * rest).to(batch.dtype)
    else:
        top, left, bottom, right = mixing.box
        mixed = batch.clone()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return Mixed(mixed, labels, labels.roll(1, 0), torch.tensor([float(mixing.weight)]))


# ------------------------------------------------------------------------------------------------ in compiled graphs


def counter(number: int | Tensor) -> Tensor:
    """An epoch or step as the operators take it, int64 [1]: a number on the CPU, a tensor where it is."""
    if isinstance(number, Tensor):
        return number.reshape(1)
    if not isinstance(number, int):
        raise ValueError(f"epoch and step must be whole numbers from 0 to 2³² - 1, not {number!r:.40}")
    return torch.full((1,), number, dtype=torch.int64, device="cpu")


@torch.library.custom_op("fastres::augment", mutates_args=())
def augment_op(
    images: Tensor,
    rows: Tensor | None,
    indices: Tensor,
    labels: Tensor | None,
    epoch: Tensor,
    step: Tensor | None,
    text: str,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`augment_batch` by the `text` of a specification; int64 [0] for partners that there are not."""
    at, of = (_on(number, images) for number in (epoch, step))
    assert at is not None
    return _own(augment_batch(from_text(text, seed), images, rows, indices, at, of, labels), labels)


@augment_op.register_fake
def _(
    images: Tensor, rows: object, indices: Tensor, labels: Tensor | None, *counters_and_text: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(images, indices.shape[0], labels, counters_and_text[2])


@torch.library.custom_op("fastres::augment_next", mutates_args=("counters",))
def augment_next_op(
    images: Tensor, indices: Tensor | None, labels: Tensor | None, counters: Tensor, text: str, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`augment_next`, likewise."""
    return _own(augment_next(from_text(text, seed), images, indices, labels, counters), labels)


@augment_next_op.register_fake
def _(
    images: Tensor, indices: Tensor | None, labels: Tensor | None, counters: Tensor, text: str, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(images, images.shape[0], labels, text)


@torch.library.custom_op("fastres::mix", mutates_args=())
def mix_op(
    batch: Tensor,
    labels: Tensor,
    mixup_alpha: float | None,
    cutmix_alpha: float | None,
    prob: float,
    switch_prob: float,
    until: int,
    seed: int,
    epoch: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mix_batch`: batch, partners and weight."""
    mix = recipe.MixConfig(
        mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, prob=prob, switch_prob=switch_prob, until=until
    )
    at, of = (_on(number, batch) for number in (epoch, step))
    assert at is not None and of is not None
    mixed = mix_batch(batch, labels, mix, seed, at, of)
    return _own((mixed.images, mixed.partners, mixed.weight), labels)


@mix_op.register_fake
def _(batch: Tensor, labels: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(batch), torch.empty_like(labels), batch.new_empty(1, dtype=torch.float32)


def _on(number: Tensor | None, images: Tensor) -> int | Tensor | None:
    """A counter as eager code takes it: a number where it is not on the images' GPU."""
    return number if number is None or (images.is_cuda and number.is_cuda) else number.item()  # type: ignore[return-value]


def _own(result: Result, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """An operator's results are tensors, and none of its arguments."""
    batch, partners, weight = result
    if partners is None:
        partners = batch.new_empty(0, dtype=torch.int64)
    return batch, partners.clone() if partners is labels else partners, weight


def _empty(images: Tensor, count: int, labels: Tensor | None, text: str) -> tuple[Tensor, Tensor, Tensor]:
    *_, name, channels_last = json.loads(text)
    dtype, (height, width) = getattr(torch, name), images.shape[1:3]
    if channels_last:
        batch = images.new_empty((count, height, width, 3), dtype=dtype).permute(0, 3, 1, 2)
    else:
        batch = images.new_empty((count, 3, height, width), dtype=dtype)
    partners = images.new_empty(0, dtype=torch.int64) if labels is None else torch.empty_like(labels)
    return batch, partners, images.new_empty(1, dtype=torch.float32)
