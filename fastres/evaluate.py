"""Accuracy, loss, calibration and predictions of a network on a part of a store, with test-time augmentation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.augment import Augment
from fastres.data.loaders import Loader, ResidentLoader, choose, on_device
from fastres.engine.compile import Compiled
from fastres.engine.cuda_graph import Graphs, Replayed
from fastres.engine.precision import autocast
from fastres.errors import UserError
from fastres.recipe import Data, Eval

View = tuple[int, bool]
"""Shift in pixels, down and right alike, and whether mirrored after it."""

PLAIN: View = (0, False)
MIRROR: tuple[View, ...] = (PLAIN, (0, True))
SHIFTED: tuple[View, ...] = ((-1, False), (-1, True), (1, False), (1, True))


class Evaluator:
    """Logits of `network` for the batches of a loader, compiled once, on a GPU captured too.

    The last batch is filled up with its own first row, and the surplus cut off again: one shape, one graph. The views
    of test-time augmentation are batches of that shape too, so that they compile nothing and take no more memory.
    """

    def __init__(
        self, network: nn.Module, augment: Augment, precision: str, device: torch.device, *, compile: bool
    ) -> None:
        self.network, self.augment, self.precision, self.device = network, augment, precision, device
        self.compiled = Compiled(self._forward, enabled=compile, network=network, about=precision)
        self._logits = Replayed(self.compiled, Graphs(device))

    def _forward(self, images: Tensor) -> Tensor:
        with autocast(self.precision, self.device):
            return self.network(images).float()

    @torch.no_grad()
    def logits(self, loader: Loader, options: Eval | None = None) -> Tensor:
        """float32 [N, classes] on the CPU, in the loader's order; averaged over the views that `options` asks for, by
        default of the plain images alone. `tta = "selective"` goes through the loader twice."""
        self.network.eval()
        if options is None or options.tta == "none":
            return self._means(loader, (PLAIN,)).cpu()
        mirrored = self._means(loader, MIRROR)
        if options.tta == "mirror":
            return mirrored.cpu()
        chosen = None if options.tta == "translate" else least_sure(mirrored, options.tta_share)
        shifted = self._means(loader, SHIFTED, chosen)
        if chosen is None:
            return mirrored.lerp(shifted, 0.5).cpu()
        mirrored[chosen] = mirrored[chosen].lerp(shifted, 0.5)
        return mirrored.cpu()

    def _means(self, loader: Loader, views: tuple[View, ...], chosen: Tensor | None = None) -> Tensor:
        """Mean logits over `views` of all images, or of those at the ascending positions `chosen`, on the device."""
        found = []
        for images, count in self._batches(loader, chosen):
            total = self._logits(view(images, views[0]))
            for further in views[1:]:
                total = total + self._logits(view(images, further))
            found.append((total / len(views))[:count])
        return torch.cat(found)

    def _batches(self, loader: Loader, chosen: Tensor | None) -> Iterator[tuple[Tensor, int]]:
        """Batches of the loader's size, and how many of their images count.

        The chosen images are gathered until they fill a batch; a few passes less than one for each batch they are in.
        """
        size, waiting, first = loader.batch_size, [], 0
        for batch in loader.batches():
            rows = batch.rows
            if chosen is not None:
                here = chosen[(chosen >= first) & (chosen < first + len(rows))] - first
                first += len(rows)
                rows = rows[here]
            if len(rows):
                waiting.append(self.augment.plain(batch.source, rows))
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


def least_sure(logits: Tensor, share: float) -> Tensor:
    """int64: the rows whose most probable class is least probable, `share` of all, rounded up; ascending."""
    confidence = logits.softmax(1).amax(1)
    return confidence.argsort(stable=True)[: math.ceil(share * len(logits))].sort().values


def passes(options: Eval) -> float:
    """How many images the network looks at to classify one: what `options.tta` costs."""
    return {"none": 1, "mirror": 2, "translate": 6, "selective": 2 + 4 * options.tta_share}[options.tta]


@dataclass(frozen=True)
class Measures:
    """How good predictions are."""

    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    """Share of correct predictions."""
    class_accuracy: list[float | None]
    """The same for each class; None for a class without images."""
    confusion: list[list[int]]
    """confusion[true][predicted] counts images."""
    expected_calibration_error: float
    """Mean distance of confidence and accuracy over 15 equal bins of confidence (Guo et al. 2017, section 2)."""
    images: int
    """How many were measured."""


def measure(logits: Tensor, labels: Tensor) -> Measures:
    """Measures of float logits [N, classes] against int64 labels [N], computed in fp64."""
    logits = logits.double()
    classes = logits.shape[1]
    confidence, predicted = logits.softmax(1).max(1)
    correct = (predicted == labels).double()
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    counts = confusion.sum(1).tolist()
    # Bins are (i/15, (i+1)/15]; a confidence is never 0.
    bins = (confidence * 15).ceil().long().clamp(1, 15) - 1
    gaps = torch.zeros(15, dtype=torch.float64).index_add_(0, bins, confidence - correct)
    return Measures(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=correct.mean().item(),
        class_accuracy=[
            hits / count if count else None for hits, count in zip(confusion.diag().tolist(), counts, strict=True)
        ],
        confusion=confusion.tolist(),
        expected_calibration_error=(gaps.abs().sum() / len(labels)).item(),
        images=len(labels),
    )


def evaluate(run: str | Path, *, device: str = "auto") -> tuple[tuple[str, ...], Measures]:
    """Class names, and measures of the kept network of `run` on its recipe's test images, in the recipe's precision and
    with its test-time augmentation.

    Raises UserError where the run is not finished or its data cannot be opened.
    """
    from fastres.runs import Kept

    kept = Kept.load(Path(run), device)
    images, labels = test_set(kept.recipe.data, kept.classes)
    return kept.classes, measure(kept.logits(images), labels)


def test_set(data: Data, classes: tuple[str, ...]) -> tuple[Any, Tensor]:
    """The test images of a recipe's `data`, uint8 [N, H, W, 3], an array or EncodedImages, and int64 labels [N].

    Raises UserError where the data cannot be opened, or has no labels, or other classes than those trained on.
    """
    from fastres.data import open_dataset

    dataset = open_dataset(data.source, store=data.store, image_size=data.image_size, root=data.root)
    if dataset.test is None or dataset.test.labels is None:
        raise UserError(f"{data.source} has no test images with labels to evaluate on")
    if dataset.classes != classes:
        raise UserError(f"{data.source} has other classes than those that were trained on: restore the data it had")
    count = data.test_images
    return dataset.test.images[:count], torch.from_numpy(np.array(dataset.test.labels[:count]))


def predict(run: str | Path, source: str, out: str | Path, *, device: str = "auto") -> int:
    """Write the predicted class of each image of `source` to a CSV file with the header `ID,Labels`; returns how many.

    Unlabelled images are taken where the source has some, its test images otherwise. An ID is the source's own where
    it has ids, else the position, counted from 0; a file's name keeps its bytes, UTF-8 or not. Raises UserError where
    images and network do not fit or `out` cannot be written, both before predicting.
    """
    from fastres.data import open_dataset
    from fastres.runs import Kept
    from fastres.utils.files import check_writable, write_bytes

    kept = Kept.load(Path(run), device)
    dataset = open_dataset(source, image_size=kept.image_size, root=kept.recipe.data.root)
    part = dataset.unlabelled or dataset.test
    if part is None:
        raise UserError(f"{source} has neither unlabelled nor test images to predict")
    if dataset.image_size != kept.image_size:
        raise UserError(f"{source} has {dataset.image_size}-pixel images, and {run} was trained on {kept.image_size}")
    check_writable(Path(out))
    predicted = kept.logits(part.images).argmax(1).tolist()
    ids: list[Any] = part.ids.tolist() if part.ids is not None else list(range(len(predicted)))
    rows = (_cell(name) + b",%d\n" % label for name, label in zip(ids, predicted, strict=True))
    write_bytes(Path(out), b"".join([b"ID,Labels\n", *rows]))
    return len(predicted)


def _cell(value: Any) -> bytes:
    """A CSV cell: quoted where a file's name holds a comma, a quote or a line break."""
    text = str(value)
    if any(mark in text for mark in ',"\r\n'):
        text = '"' + text.replace('"', '""') + '"'
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a pickle's ids may hold surrogates that stand for no byte
        return text.encode(errors="replace")


def everything(images: Any, batch_size: int, device: torch.device) -> Loader:
    """A loader over all of `images`, uint8 [N, H, W, 3], an array or EncodedImages, in order, without labels."""
    count = len(images)
    labels, rows, size = np.zeros(count, np.int64), np.arange(count), min(batch_size, count)
    if isinstance(images, np.ndarray):
        return ResidentLoader(on_device(images, device), labels, rows, size)
    return choose.build("torch", images, labels, rows, size, device=device)
