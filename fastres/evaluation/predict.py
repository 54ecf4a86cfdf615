"""A trained network on the test set of its recipe, and on images without labels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres.errors import UserError
from fastres.evaluation.metrics import Measures, measure
from fastres.recipe import DataConfig
from fastres.utils.format import plural
from fastres.utils.paths import expand_home
from fastres.utils.progress import say
from fastres.utils.terminal import printable

FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""With what a cell begins that spreadsheets run (OWASP, "CSV Injection")."""


def evaluate(run: str | Path, *, device: str = "auto") -> tuple[tuple[str, ...], Measures]:
    """Class names, and measures of the kept network of `run` on its recipe's test images, in the recipe's precision and
    with its test-time augmentation.

    Raises UserError where the run is not finished or its data cannot be opened.
    """
    from fastres.evaluation.trained import TrainedModel

    model = TrainedModel.load(expand_home(run), device)
    images, labels = test_set(model.recipe.data, model.classes)
    return model.classes, measure(model.logits(images), labels)


def test_set(data: DataConfig, classes: tuple[str, ...]) -> tuple[Any, Tensor]:
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


def predict(run: str | Path, source: str, out: str | Path, *, device: str = "auto", spreadsheet: bool = False) -> int:
    """Write the predicted class of each image of `source` to a CSV file with the header `ID,Labels`; returns how many.

    Unlabelled images are taken where the source has some, its test images otherwise. An ID is the source's own where
    it has ids, else the position, counted from 0; a file's name keeps its bytes, UTF-8 or not. Names that a spreadsheet
    would run as a formula get a ' in front for a `spreadsheet`, and are mentioned otherwise. Raises UserError where
    images and network do not fit or `out` cannot be written, both before predicting.
    """
    from fastres.data import open_dataset
    from fastres.evaluation.trained import TrainedModel
    from fastres.utils.files import check_writable, write_bytes

    model = TrainedModel.load(expand_home(run), device)
    dataset = open_dataset(source, image_size=model.image_size, root=model.recipe.data.root)
    part = dataset.unlabelled or dataset.test
    if part is None:
        raise UserError(f"{source} has neither unlabelled nor test images to predict")
    if dataset.image_size != model.image_size:
        raise UserError(f"{source} has {dataset.image_size}-pixel images, and {run} was trained on {model.image_size}")
    out = expand_home(out)
    check_writable(out)
    predicted = model.logits(part.images).argmax(1).tolist()
    ids: list[Any] = part.ids.tolist() if part.ids is not None else list(range(len(predicted)))
    formulas = [name for name in ids if isinstance(name, str) and name.startswith(FORMULAS)]
    if formulas and not spreadsheet:
        say(
            f"{plural(len(formulas), 'name', 'names')} such as {printable(formulas[0][:60])} would be a formula in a "
            "spreadsheet: `fastres predict --spreadsheet` puts a ' in front"
        )
    rows = (_cell(name, spreadsheet) + b",%d\n" % label for name, label in zip(ids, predicted, strict=True))
    write_bytes(out, b"".join([b"ID,Labels\n", *rows]))
    return len(predicted)


def _cell(value: Any, spreadsheet: bool = False) -> bytes:
    """A CSV cell: quoted where a file's name holds a comma, a quote or a line break, for a spreadsheet no formula."""
    text = str(value)
    if spreadsheet and isinstance(value, str) and text.startswith(FORMULAS):
        text = "'" + text
    if any(mark in text for mark in ',"\r\n'):
        text = '"' + text.replace('"', '""') + '"'
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a pickle's ids may hold surrogates that stand for no byte
        return text.encode(errors="replace")
