"""The data side of a run: the opened set, its division, loaders for training, validation and test, the augmentation."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.augment import Augment
from fastres.augment.draws import check_mix
from fastres.augment.views import Views
from fastres.data import Dataset, info, open_dataset
from fastres.data.loaders import Loader, ResidentLoader, choose, on_device
from fastres.data.loaders.choose import Choice
from fastres.data.order import split
from fastres.data.sources.named import SETS
from fastres.data.store.extra import Extra, digest, read
from fastres.engine.precision import DTYPES
from fastres.errors import UserError
from fastres.recipe import DataConfig, Recipe
from fastres.runs.schema import NetworkFacts
from fastres.utils.format import ONE_CLASS
from fastres.utils.progress import say

MakeViews = Callable[[Recipe, Augment, int], Views | None]
"""Of a recipe, its augmentation and the number of images: see `methods.base.Method.views`."""
SAMPLED = 250
"""Images that are decoded at a time to compute initial weights: their patches in fp64 are twenty times their size."""


@dataclass(frozen=True)
class DataModule:
    """All images and labels that a run meets."""

    dataset: Dataset
    train_images: Any
    """uint8 [M, H, W, 3], an array or EncodedImages: training and validation images."""
    train_labels: NDArray[np.int64]
    """[M]."""
    test_images: Any
    """uint8 [N, H, W, 3], an array or EncodedImages."""
    train: Loader
    """Shuffled each epoch."""
    validation: Loader | None
    """In the order of the set."""
    test: Loader
    """In the order of the set."""
    augment: Augment
    views: Views | None
    """The views that a self-supervised method compares."""
    loading: Choice
    """The loader's name, and the reason for it."""
    extra: Extra | None = None
    """The images of `data.extra`: the last of `train_images`."""
    targets: Tensor | None = None
    """Where extra images have soft labels: fp32 [classes + K, classes], the target of each label that `train` delivers.
    Those from `classes` on are of the extra images."""

    @property
    def fingerprint(self) -> str:
        """Changes when the source does."""
        own = self.dataset.manifest.fingerprint
        if self.extra is None:
            return own
        return hashlib.sha256(f"{own} {digest(self.extra)}".encode()).hexdigest()

    @property
    def about(self) -> NetworkFacts:
        """The facts, besides the recipe, without which weights cannot be used on new images."""
        return NetworkFacts.of(
            self.dataset,
            classes=list(self.dataset.classes),
            crop="centre",
            resize="bicubic",
            batch_size=self.test.batch_size,
        )

    def augment_batch(self, batch: Tensor, indices: Tensor, epoch: int | Tensor, rows: Tensor) -> Tensor:
        """The input of a training step without mixing, [B, 3, H, W], or all views, [V·B, 3, H, W]; arguments as those
        of `Augment.augment_batch`."""
        make = self.augment.augment if self.views is None else self.views
        return make(batch, indices, epoch, rows)

    def classes_of(self, labels: Tensor) -> Tensor:
        """The classes of labels that `train` delivers, int64 [B]: of a soft one the most probable."""
        return labels if self.targets is None else self.targets.argmax(1)[labels]

    def sample(self, count: int) -> Iterator[Tensor]:
        """Batches [B, 3, H, W] of `count` training images, or all where there are fewer: evenly spaced over the set,
        which may be sorted by class; normalised, not augmented, in the precision of training. On the GPU where the
        store is resident there, else on the CPU."""
        subset = self.train.subset
        count = min(count, len(subset))
        indices = subset[np.arange(count) * len(subset) // max(count, 1)]
        resident = self.train.source if isinstance(self.train, ResidentLoader) and self.train.source.is_cuda else None
        for start in range(0, count, SAMPLED):
            rows = indices[start : start + SAMPLED]
            if resident is not None:
                yield self.augment.normalize(resident, torch.from_numpy(rows).to(resident.device))
            else:
                yield self.augment.normalize(torch.from_numpy(np.array(self.train_images[rows])))

    def reseed(self, seed: int) -> None:
        """From the next epoch on, order and augment as a feed opened with `seed` would; without `data.split = "none"`
        the split stays that of the first seed."""
        self.train.seed = seed
        self.augment.reseed(seed)
        if self.views is not None:
            self.views.reseed(seed)

    def close(self) -> None:
        """End what the loaders started."""
        for loader in (self.train, self.validation, self.test):
            if loader is not None:
                loader.close()


def open_data_module(
    recipe: Recipe, device: torch.device, *, quiet: bool = False, make_views: MakeViews | None = None
) -> DataModule:
    """Open the recipe's data, preparing the store where there is none yet. `make_views` is the method's, which may have
    batches of several views.

    Raises UserError where the source cannot be used, or does not fit batch size, split or augmentation.
    """
    data, options = recipe.data, recipe.train
    dataset = open_dataset(data.source, store=data.store, image_size=data.image_size, root=data.root, quiet=quiet)
    if len(dataset.classes) == 1:
        say(f"{data.source} has {ONE_CLASS}", quiet=quiet)
    images, labels = _labelled(dataset, "train", data.train_images)
    test_images, test_labels = _labelled(dataset, "test", data.test_images)
    train_indices, held = split(data, len(images), options.seed)
    extra, targets, told = None, None, labels
    if data.extra is not None:
        extra = _extra(data, dataset, quiet)
        train_indices = np.concatenate([train_indices, len(images) + np.arange(len(extra.images))])
        told = labels = np.concatenate([labels, extra.labels])
        if data.extra.soft:
            classes = len(dataset.classes)
            targets = torch.cat([torch.eye(classes), extra.probabilities]).to(device)
            told = np.concatenate([labels[: len(images)], classes + np.arange(len(extra.images))])
    if options.batch_size > len(train_indices):
        raise UserError(
            f"train.batch_size = {options.batch_size} is larger than the {len(train_indices)} images to train on: "
            f"set it to at most {len(train_indices)}"
        )
    augment = augment_of(recipe, dataset.mean, dataset.std)
    augment.plan((images.shape[1], images.shape[2]))  # an impossible policy fails before the loop
    check_mix(recipe.mix, len(dataset.classes), options.batch_size)
    views = None if make_views is None else make_views(recipe, augment, len(labels))
    for kind in [] if views is None else views.kinds:
        kind.augment.plan((images.shape[1], images.shape[2]))

    loading = choose.choose(dataset, data.loader, device)
    if extra is not None and loading.name != "resident":
        raise UserError(f"data.extra needs data.loader = 'resident', and it is '{loading.name}': {loading.reason}")
    pixels = choose.open_pixels(loading.name, dataset, device, quiet=quiet)
    if extra is not None:
        images = np.concatenate([np.asarray(images), extra.images])
        pixels["train"] = on_device(images, device)

    def loader(part: str, labels: NDArray[np.int64], subset: NDArray[np.int64], size: int, **options: Any) -> Loader:
        options |= {"workers": data.workers, "device": device}
        return choose.build(loading.name, pixels[part], labels, subset, size, **options)

    def measured(part: str, labels: NDArray[np.int64], subset: NDArray[np.int64]) -> Loader:
        return loader(part, labels, subset, min(recipe.eval.batch_size, len(subset)))

    return DataModule(
        dataset=dataset,
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        train=loader("train", told, train_indices, options.batch_size, seed=options.seed, drop_last=options.drop_last),
        validation=measured("train", labels, held) if len(held) else None,
        test=measured("test", test_labels, np.arange(len(test_images))),
        augment=augment,
        views=views,
        loading=loading,
        extra=extra,
        targets=targets,
    )


def augment_of(recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> Augment:
    """The augmentation of the recipe's training, of images with this mean and SD."""
    return Augment(
        recipe.augment,
        mean,
        std,
        mix=recipe.mix,
        seed=recipe.train.seed,
        dtype=DTYPES[recipe.train.precision],
        channels_last=recipe.train.channels_last,
    )


def _extra(data: DataConfig, dataset: Dataset, quiet: bool) -> Extra:
    assert data.extra is not None
    other = open_dataset(data.extra.source, image_size=dataset.image_size, root=data.root, quiet=quiet)
    if other.image_size != dataset.image_size:
        raise UserError(
            f"data.extra.source = '{data.extra.source}' has images of {other.image_size} pixels, the training set of "
            f"{dataset.image_size}: bring one of them to the size of the other"
        )
    return read(Path(data.extra.labels), other, len(dataset.classes))


def shape_of(data: DataConfig) -> tuple[int, int, bool]:
    """Number of classes, image size in pixels, and whether the classes are known without decoding anything.

    A source that was never prepared, and is none of the named ones, is taken to have ten classes.
    """
    facts = info(data.source, store=data.store, image_size=data.image_size, root=data.root)
    named = SETS[data.source].classes if data.source in SETS else None
    classes = len(facts["classes"]) if facts["prepared"] else named
    return classes or 10, facts["image_size"], classes is not None


def labels_of(loader: Loader) -> torch.Tensor:
    """int64 [N] on the CPU, in the order in which the loader delivers an unshuffled epoch."""
    return loader.labels.cpu()[torch.from_numpy(loader.subset)]


def _labelled(dataset: Dataset, name: str, limit: int | None) -> tuple[Any, NDArray[np.int64]]:
    """Images and labels of a part, at most `limit` of them."""
    part = dataset.train if name == "train" else dataset.test
    if part is None or part.labels is None:
        raise UserError(f"{dataset.source} has no {name} images with labels: give a source with train and test parts")
    return part.images[:limit], np.array(part.labels[:limit])
