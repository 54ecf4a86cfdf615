"""A trained network on the test set of its recipe or another one, and on images without labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastres.errors import UserError
from fastres.evaluation.metrics import Measures, measure
from fastres.evaluation.prediction_files import (
    challenge_rows,
    header_of,
    kaggle_rows,
    row_of,
    shortest,
    write_csv,
)
from fastres.evaluation.predictions import Predictions
from fastres.evaluation.trained import TrainedModel
from fastres.recipe import DataConfig
from fastres.utils.files import check_writable
from fastres.utils.format import MOST_FAULTS, listed
from fastres.utils.paths import expand_home
from fastres.utils.progress import say
from fastres.utils.terminal import printable

MEMORY = 64 << 20
"""Bytes of pixels that are read at a time, unless a batch has more."""
SUBMISSION = "submission.csv"


def evaluate(
    run: str | Path,
    *,
    device: str = "auto",
    data: str | None = None,
    predictions: str | Path | None = None,
    spreadsheet: bool = False,
) -> tuple[tuple[str, ...], Measures]:
    """Class names, and measures of the kept network of `run` on its recipe's test images, in the recipe's precision and
    with its test-time augmentation.

    With `data`, on the test images of another source, whose classes are matched by name. With `predictions`, a CSV file
    is written: file (path inside of the source; a position where images are no files), label, class, probability; for a
    `spreadsheet` no cell is a formula.

    Raises UserError where the run is not finished, its data cannot be opened or the file cannot be written.
    """
    model = TrainedModel.load(expand_home(run), device)
    config = model.recipe.data
    if data is not None:  # decoded, as not every source can be read where it lies
        changes = {"source": data, "store": "decoded", "image_size": model.image_size, "test_images": None}
        config = config.model_copy(update=changes)
    if predictions is not None:
        check_writable(expand_home(predictions))
    images, labels = test_set(config, model.classes, by_name=data is not None)
    answers = model.predictions(images)
    if predictions is not None:
        model.say_uncalibrated(expand_home(run))
        names = _test_names(config, images)
        truth = [model.classes[label] for label in labels.tolist()]
        tops = (answer.top(1)[0] for answer in answers)
        rows = ((name, true, top[0], shortest(top[1])) for name, true, top in zip(names, truth, tops, strict=True))
        header = ["file", "label", "class", "probability"]
        write_csv(expand_home(predictions), header, rows, spreadsheet=spreadsheet)
    return model.classes, measure(answers.logits, labels, model.temperature)


def test_set(data: DataConfig, classes: tuple[str, ...], *, by_name: bool = False) -> tuple[Any, Tensor]:
    """The test images of a recipe's `data`, uint8 [N, H, W, 3], an array or EncodedImages, and int64 labels [N].

    Raises UserError where the data cannot be opened, or has no labels, or other classes than those trained on; if
    classes are matched `by_name`, where it has a class that is none of these.
    """
    from fastres.data import open_dataset

    dataset = open_dataset(data.source, store=data.store, image_size=data.image_size, root=data.root)
    if dataset.test is None or dataset.test.labels is None:
        raise UserError(f"{data.source} has no test images with labels to evaluate on")
    labels = np.array(dataset.test.labels)
    if by_name:
        labels = _matched(dataset.classes, classes, data.source)[labels]
    elif dataset.classes != classes:
        raise UserError(f"{data.source} has other classes than those that were trained on: restore the data it had")
    count = data.test_images
    return dataset.test.images[:count], torch.from_numpy(labels[:count])


def _matched(names: tuple[str, ...], classes: tuple[str, ...], source: str) -> np.ndarray:
    """int64: which of `classes` each of `names` is. Reports classes that are not among the names."""
    unknown = [printable(name) for name in names if name not in classes]
    if unknown:
        raise UserError(
            f"{source} has classes that were not trained on: {listed(unknown[:MOST_FAULTS], len(unknown))};\n"
            f"leave them out: {', '.join(map(printable, classes[:MOST_FAULTS]))} were"
        )
    missing = [printable(name) for name in classes if name not in names]
    if missing:
        say(f"{source} has no images of these classes: {listed(missing[:MOST_FAULTS], len(missing))}")
    return np.array([classes.index(name) for name in names], np.int64)


def _test_names(data: DataConfig, images: Any) -> Sequence[Any]:
    """What the test images are called: their paths inside of the source, or positions."""
    from fastres.data.sources.images import names_in_part
    from fastres.data.sources.photos import holds_photos
    from fastres.data.sources.resolve import existing

    if not holds_photos(data.source):
        return range(len(images))
    names = names_in_part(existing(data.source), "test")[: data.test_images]
    if len(names) != len(images):
        raise UserError(f"{data.source} changed while it was read: start again")
    return names


class Predicted(NamedTuple):
    """What was predicted, and where it was written."""

    names: Sequence[Any]
    """Of the images: files, or the ids or positions of a set."""
    predictions: Predictions
    out: Path | None
    """The CSV file, if one was written."""
    challenge: bool
    """Whether that is in the challenge's form."""


def predict(
    run: str | Path,
    sources: str | Sequence[str],
    out: str | Path | None = None,
    *,
    device: str = "auto",
    top: int | None = None,
    kaggle: bool = False,
    spreadsheet: bool = False,
) -> Predicted:
    """Predict the classes of images and write them to the CSV file `out`.

    `sources` are image files, folders and tars of images, or one set: a pickle, CIFAR or one that recipes can name, of
    which unlabelled images are taken where there are some, else its test images.

    Columns are file, class and probability, then those of the next `top` − 1 classes. A set without `top` has the
    challenge's, ID and Labels: the source's own ids where there are some, else positions from 0; the class's number.
    `kaggle` writes id and label: the file's name without folder and ending, the class's name. Without `out`, photos are
    written to no file, and the others to submission.csv.

    Names that a spreadsheet would run as a formula get a ' in front for a `spreadsheet`, and are mentioned otherwise.
    Raises UserError where images and network do not fit or `out` cannot be written, both before predicting, and where
    images cannot be used, naming up to ten; nothing is written then.
    """
    from fastres.data.sources.photos import holds_photos

    sources = [sources] if isinstance(sources, str) else list(sources)
    model = TrainedModel.load(expand_home(run), device)
    sets = [source for source in sources if not holds_photos(source)]
    if sets and len(sources) > 1:
        raise UserError(f"{sets[0]} holds no image files but a set of images: predict it alone")
    if kaggle and top is not None:
        raise UserError("Kaggle's form has one class an image: leave out how many classes to write")
    challenge = bool(sets) and not kaggle and top is None
    path = expand_home(out or SUBMISSION) if out is not None or sets or kaggle else None
    if path is not None:
        check_writable(path)
    names, predictions = _of_set(model, run, sets[0]) if sets else _of_photos(model, sources)
    if not challenge:
        model.say_uncalibrated(expand_home(run))
    if path is not None and challenge:
        write_csv(path, ["ID", "Labels"], challenge_rows(names, predictions), spreadsheet=spreadsheet)
    elif path is not None and kaggle:
        write_csv(path, ["id", "label"], kaggle_rows(names, predictions, files=not sets), spreadsheet=spreadsheet)
    elif path is not None:
        count = min(top or 1, len(model.classes))
        rows = ([name, *row_of(each, count)] for name, each in zip(names, predictions, strict=True))
        write_csv(path, ["file", *header_of(count)], rows, spreadsheet=spreadsheet)
    return Predicted(names, predictions, path, challenge)


def _of_set(model: TrainedModel, run: str | Path, source: str) -> tuple[Sequence[Any], Predictions]:
    from fastres.data import open_dataset

    dataset = open_dataset(source, image_size=model.image_size, root=model.recipe.data.root)
    part = dataset.unlabelled or dataset.test
    if part is None:
        raise UserError(f"{source} has neither unlabelled nor test images to predict")
    if dataset.image_size != model.image_size:
        raise UserError(f"{source} has {dataset.image_size}-pixel images, and {run} was trained on {model.image_size}")
    predictions = model.predictions(part.images)
    return range(len(predictions)) if part.ids is None else part.ids.tolist(), predictions


def _of_photos(model: TrainedModel, sources: Sequence[str]) -> tuple[list[str], Predictions]:
    """The names of the images and what they are. A batch of the test or more is classified as in the test, to its
    bits; fewer eagerly, as compiling would take longer."""
    from fastres.data.sources.photos import read_photos

    batches = max(1, MEMORY // (3 * model.image_size**2 * model.batch_size))
    names: list[str] = []
    parts: list[Predictions] = []
    for read, pixels in read_photos(sources, model.image_size, batches * model.batch_size):
        padded = bool(parts) or len(pixels) >= model.batch_size
        parts.append(model(pixels, padded=padded))
        names += read
    return names, Predictions.joined(parts)
