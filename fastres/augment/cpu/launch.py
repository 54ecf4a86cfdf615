"""Augmentation on the CPU: a batch, divided among threads of our own, through the compiled code of pixels.py.

The compiled functions release the interpreter's lock, and a pool of plain threads runs them. Numba's own threads would
come with one of its threading layers, a choice for the whole process that a library should not make for its user:
`workqueue` ends the process when two threads use it at once, as a training loop and a prefetching thread do; `omp`
brings a second OpenMP beside torch's, whose idle workers spin, and ends children after a fork.

Compiled code is kept on disk beside these files or, where that folder is read-only, in Numba's cache folder
(`NUMBA_CACHE_DIR`), so that only the first process of an installation compiles, for fourteen seconds.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres import recipe
from fastres.augment.cpu.draws import COLUMNS, draw_range, noise_range, pack
from fastres.augment.cpu.pixels import BF16, FP16, FP32, REFLECT, ZERO, augment_range
from fastres.augment.draws import NO_MIX, UNMIXED, Mixing, Plan, Size
from fastres.augment.resample import taps
from fastres.augment.spec import AugmentSpec
from fastres.augment.tables import normal_table

KINDS = {torch.float32: FP32, torch.bfloat16: BF16, torch.float16: FP16}

_PIXELS_PER_THREAD = {"cheap": 128 * 1024, "dear": 24 * 1024}
"""Fewer are not worth a second thread, whose waking takes about 100 µs. A shift, a flip and normalising take 0.8 ns a
pixel (cheap), the report's policy 7 ns."""


def augment_batch(
    augment: AugmentSpec,
    images: Tensor,
    rows: Tensor | None,
    indices: Tensor,
    epoch: int,
    step: int | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Augment, normalise and mix.

    Args:
        augment: the policy, its mixing, seed, output type and layout.
        images: uint8 [M, H, W, 3], contiguous, on the CPU.
        rows: int64 [B], which of `images` to take; None: all, in order.
        indices: int64 [B], dataset indices below 2³².
        epoch: counted from 0.
        step: of the batch within its epoch; None: no mixing.
        labels: int64 [B].

    Returns the batch, `augment.dtype` [B, 3, H, W]; the labels of the images that were mixed in, int64 [B], None
    without `labels`; and the weight λ of the images' own labels, fp32 [1], which is 1 unmixed. Nothing is checked here:
    rows that are not there would be read all the same. Raises UserError where the policy does not fit the images.
    """
    size = (images.shape[1], images.shape[2])
    mixing = UNMIXED if step is None else augment.draw_mix(epoch, step, size)
    sources = np.arange(len(images)) if rows is None else np.ascontiguousarray(rows.numpy(), dtype=np.int64)
    samples = np.ascontiguousarray(indices.numpy(), dtype=np.int64)
    batch = torch.empty((len(sources), *size, 3), dtype=augment.dtype)
    flat = batch.view(len(sources), size[0] * size[1] * 3)
    out = flat.numpy() if augment.dtype == torch.float32 else flat.view(torch.int16).numpy().view(np.uint16)
    work = _Work(augment, size, images.view(-1).numpy(), sources, samples, epoch, mixing, out)
    policy = augment.policy
    expensive = policy.random_resized_crop or policy.noise or any(augment.plan(size).chances.values())
    per_thread = _PIXELS_PER_THREAD["dear" if expensive else "cheap"]
    parts = max(1, min(torch.get_num_threads(), len(sources) * size[0] * size[1] // per_thread))
    edges = [len(sources) * part // parts for part in range(parts + 1)]
    waiting = [_pool().submit(work.run, *edges[part : part + 2]) for part in range(1, parts)]
    work.run(*edges[:2])
    for future in waiting:
        future.result()
    batch = batch.permute(0, 3, 1, 2)
    partners = labels if labels is None or mixing.kind == NO_MIX else labels.roll(1, 0)
    weight = torch.tensor([float(mixing.weight)])
    return (batch if augment.channels_last else batch.contiguous()), partners, weight


class _Constants(NamedTuple):
    draws: tuple[Any, ...]
    """Of `draw_range`."""
    pixels: tuple[Any, ...]
    """Of `augment_range`."""


class _Work:
    """One batch; `run` does some of its samples."""

    def __init__(
        self,
        augment: AugmentSpec,
        size: Size,
        images: NDArray[np.uint8],
        sources: NDArray[np.int64],
        samples: NDArray[np.int64],
        epoch: int,
        mixing: Mixing,
        out: NDArray[Any],
    ) -> None:
        self.augment, self.size, self.images, self.sources, self.samples = augment, size, images, sources, samples
        self.epoch, self.mixing, self.out = epoch, mixing, out
        self.constants = augment.compiled(size, _constants)

    def run(self, first: int, stop: int) -> None:
        """Write samples `first` to `stop`."""
        augment, mixing = self.augment, self.mixing
        if first == stop:
            return
        sources, samples = self.sources[first:stop], self.samples[first:stop]
        if mixing.kind != NO_MIX:  # the first sample's partner is augmented here once more: no thread waits for another
            sources = np.concatenate([self.sources[[first - 1]], sources])
            samples = np.concatenate([self.samples[[first - 1]], samples])
        drawn = np.empty((len(sources), COLUMNS), dtype=np.int32)
        draw_range(samples, augment.seed, self.epoch, *self.constants.draws, drawn)
        noise = np.empty((0, 0), dtype=np.float32)
        if augment.policy.noise:
            noise = np.empty((len(sources), self.size[0] * self.size[1] * 3), dtype=np.float32)
            noise_range(samples, augment.seed, self.epoch, normal_table(), augment.noise_scale, noise)
        augment_range(
            self.images,
            sources,
            drawn,
            self.size,
            *self.constants.pixels,
            augment.normalization,
            noise,
            (mixing.kind, mixing.weight, *mixing.box),
            KINDS[augment.dtype],
            self.out[first:stop],
        )


def _constants(policy: recipe.AugmentConfig, plan: Plan) -> _Constants:
    """Constants of a policy for images of one size, as compiled code takes them."""
    height, width = plan.size
    interpolation = "bilinear" if policy.random_resized_crop is None else policy.random_resized_crop.interpolation
    down, across = taps(height, interpolation), taps(width, interpolation)
    return _Constants(
        pack(plan),
        (
            (down.first, down.weight, across.first, across.weight),
            REFLECT if policy.padding == "reflect" else ZERO,
            np.array(policy.fill or [0, 0, 0], dtype=np.uint8),
            np.array([*(levels > 1 for levels in plan.factor_levels), plan.hue_reach > 0]),
        ),
    )


_threads: tuple[int, int, ThreadPoolExecutor] | None = None
_lock = threading.Lock()


def _pool() -> ThreadPoolExecutor:
    """The threads besides the calling one: as many as torch uses, anew in a child process, which inherits none."""
    global _threads
    wanted = torch.get_num_threads() - 1
    with _lock:
        if _threads is None or _threads[:2] != (os.getpid(), wanted):
            _threads = (os.getpid(), wanted, ThreadPoolExecutor(wanted, thread_name_prefix="augment"))
        return _threads[2]
