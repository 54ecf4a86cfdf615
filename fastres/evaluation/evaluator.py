"""Accuracy, loss, calibration and predictions of a network on a part of a store, with test-time augmentation."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.augment import Augment
from fastres.data.loaders import Loader, ResidentLoader, choose, on_device
from fastres.engine.compile import Compiled
from fastres.engine.cuda_graph import CudaGraphCache, GraphedCallable
from fastres.engine.precision import autocast
from fastres.recipe import EvalConfig, TrainConfig

View = tuple[int, bool]
"""Shift in pixels, down and right alike, and whether mirrored after it."""

PLAIN: View = (0, False)
MIRROR: tuple[View, ...] = (PLAIN, (0, True))
SHIFTED: tuple[View, ...] = ((-1, False), (-1, True), (1, False), (1, True))


class Evaluator:
    """Logits of `network` for the batches of a loader, compiled once if `options` ask for it, on a GPU captured too.

    The last batch is filled up with its own first row, and the surplus cut off again: one shape, one graph. The views
    of test-time augmentation are batches of that shape too, so that they compile nothing and take no more memory.
    """

    def __init__(
        self, network: nn.Module, augment: Augment, options: TrainConfig, device: torch.device, *, capture: bool = True
    ) -> None:
        self.network, self.augment, self.precision, self.device = network, augment, options.precision, device
        self.compiled = Compiled(self._forward, enabled=options.compile, network=network, about=options.precision)
        obstacle = None if capture else "batches of any size, each of which would be a graph"
        self._logits = GraphedCallable(self.compiled, CudaGraphCache(device, obstacle))

    def _forward(self, images: Tensor) -> Tensor:
        with autocast(self.precision, self.device):
            return self.network(images).float()

    @torch.no_grad()
    def logits(self, loader: Loader, options: EvalConfig | None = None) -> Tensor:
        """float32 [N, classes] on the CPU, in the loader's order; averaged over the views that `options` asks for, by
        default of the plain images alone. `tta = "selective"` goes through the loader twice."""
        self.network.eval()
        if options is None or options.tta == "none":
            return self._means(loader, (PLAIN,)).cpu()
        mirrored = self._means(loader, MIRROR)
        if options.tta == "mirror":
            return mirrored.cpu()
        positions = None if options.tta == "translate" else least_sure(mirrored, options.tta_share)
        shifted = self._means(loader, SHIFTED, positions)
        if positions is None:
            return mirrored.lerp(shifted, 0.5).cpu()
        mirrored[positions] = mirrored[positions].lerp(shifted, 0.5)
        return mirrored.cpu()

    def _means(self, loader: Loader, views: tuple[View, ...], positions: Tensor | None = None) -> Tensor:
        """Mean logits over `views` of all images, or of those at the ascending `positions`, on the device."""
        means = []
        for images, count in self._batches(loader, positions):
            total = self._logits(view(images, views[0]))
            for further in views[1:]:
                total = total + self._logits(view(images, further))
            means.append((total / len(views))[:count])
        return torch.cat(means)

    def _batches(self, loader: Loader, positions: Tensor | None) -> Iterator[tuple[Tensor, int]]:
        """Batches of the loader's size, and how many of their images count.

        The images at `positions` are gathered until they fill a batch: fewer passes than one a batch they are in.
        """
        size, waiting, first = loader.batch_size, [], 0
        for batch in loader.batches():
            rows = batch.rows
            if positions is not None:
                here = positions[(positions >= first) & (positions < first + len(rows))] - first
                first += len(rows)
                rows = rows[here]
            if len(rows):
                waiting.append(self.augment.normalize(batch.source, rows))
            if sum(map(len, waiting)) >= size:
                full = torch.cat(waiting) if len(waiting) > 1 else waiting[0]
                waiting = [full[size:]] if len(full) > size else []
                yield self._laid_out(full[:size]), size
        if waiting:
            rest = torch.cat(waiting)
            count = len(rest)
            yield self._laid_out(torch.cat([rest, rest[:1].expand(size - count, -1, -1, -1)])), count

    def _laid_out(self, images: Tensor) -> Tensor:
        """In the memory layout of every batch: another one would be another graph."""
        layout = torch.channels_last if self.augment.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)


def view(images: Tensor, kind: View) -> Tensor:
    """[B, C, H, W] shifted and mirrored, in the same memory layout; edges that a shift uncovers are reflected."""
    shift, mirrored = kind
    seen = images
    if shift:
        height, width = images.shape[2:]
        start = 1 - shift
        seen = F.pad(images, (1, 1, 1, 1), mode="reflect")[:, :, start : start + height, start : start + width]
    if mirrored:
        seen = seen.flip(3)
    return seen if seen is images else torch.empty_like(images).copy_(seen)


def least_sure(logits: Tensor, fraction: float) -> Tensor:
    """int64: the rows whose most probable class is least probable, `fraction` of all, rounded up; ascending."""
    confidence = logits.softmax(1).amax(1)
    return confidence.argsort(stable=True)[: math.ceil(fraction * len(logits))].sort().values


def everything(images: Any, batch_size: int, device: torch.device) -> Loader:
    """A loader over all of `images`, uint8 [N, H, W, 3], a tensor, an array or EncodedImages, in order, without labels.
    The evaluator fills up the last batch to `batch_size` images."""
    count = len(images)
    labels, rows = np.zeros(count, np.int64), np.arange(count)
    if isinstance(images, np.ndarray):
        images = on_device(images, device)
    if isinstance(images, Tensor):
        return ResidentLoader(images.to(device), labels, rows, batch_size)
    return choose.build("torch", images, labels, rows, batch_size, device=device)
