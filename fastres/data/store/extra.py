"""Images of another source with labels of their own, in a file: what pseudo-labelling adds to a training set."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.data.store.decoded import Dataset, Part
from fastres.errors import UserError
from fastres.utils.progress import say
from fastres.utils.tensor_files import Damaged, read_tensors, write_tensors

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Extra:
    """Images to train on besides those of the training set."""

    images: NDArray[np.uint8]
    """[K, H, W, 3]."""
    probabilities: Tensor
    """float32 [K, classes]; the label is the most probable class."""

    @property
    def labels(self) -> Rows:
        """int64 [K]."""
        return self.probabilities.argmax(1).numpy()


def digest(extra: Extra) -> str:
    """Changes with any image and any probability: 16 hexadecimal digits."""
    hasher = hashlib.sha256(np.ascontiguousarray(extra.images).tobytes())
    hasher.update(extra.probabilities.numpy().tobytes())
    return hasher.hexdigest()[:16]


def unlabelled_part(dataset: Dataset) -> Part:
    """The images of `dataset` whose labels nobody is to look at: those without, else the training images, else those
    for testing. Raises UserError where there are none."""
    part = dataset.unlabelled or dataset.train or dataset.test
    if part is None or not len(part.images):
        raise UserError(f"{dataset.source} has no images: give another source of unlabelled ones")
    return part


def write(path: Path, rows: Rows, probabilities: Tensor) -> None:
    """Write labels for the images at `rows`, int64 [K], of an `unlabelled_part`: fp32 [K, classes]."""
    tensors = {"rows": torch.from_numpy(rows), "probabilities": probabilities.float().contiguous()}
    write_tensors(path, tensors, {})


def read_labels(path: Path) -> tuple[Rows, Tensor]:
    """What `write` wrote. Raises UserError where the file is missing or damaged; one of an older version, which has no
    CRC-32, is read, and that is said."""
    from safetensors import SafetensorError

    try:
        tensors, about, summed = read_tensors(path)
        rows, probabilities = tensors["rows"].numpy(), tensors["probabilities"]
        fits = rows.dtype == np.int64 and rows.ndim == 1 and probabilities.dtype == torch.float32
        if not fits or probabilities.ndim != 2 or len(rows) != len(probabilities) or (about and not summed):
            raise Damaged("not rows and probabilities")
    except FileNotFoundError:
        raise UserError(f"data.extra.labels: {path} does not exist") from None
    except (SafetensorError, Damaged, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"data.extra.labels: {path} holds no labels, or is damaged") from error
    if not summed:
        say(f"{path} is of an older version of fastres and has no CRC-32: whether it was changed cannot be told")
    return rows, probabilities


def read(path: Path, dataset: Dataset, classes: int) -> Extra:
    """The images of `dataset` that the file `path` labels. Raises UserError as `read_labels` does, and where it is for
    other images or classes."""
    part = unlabelled_part(dataset)
    rows, probabilities = read_labels(path)
    if probabilities.shape[1] != classes:
        columns = probabilities.shape[1]
        raise UserError(f"data.extra.labels: {path} is of {columns} classes, the training set of {classes}")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(part.images)):
        raise UserError(f"data.extra.labels: {path} labels image {rows.max()}, {dataset.source} has {len(part.images)}")
    images: Any = part.images
    return Extra(np.asarray(images[rows]), probabilities)
