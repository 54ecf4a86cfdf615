"""Where the images come from, what reads them, and how they are divided."""

from typing import Annotated, Literal

from pydantic import Field

from fastres.recipe.fields import Positive, Table
from fastres.recipe.kinds import Names

LOADER_NAMES = Names("auto", "resident", "ffcv", "dali", "torch")
NAMED = Names("shapes10", "cifar10", "cifar100")


class ExtraConfig(Table):
    """Images of another source, with labels in a file, that are trained on too."""

    source: str
    """Like `data.source`: its images without labels, else its training images, whose own labels are not looked at."""
    labels: str
    """A file that `method.name = "pseudo_label"` writes: which images, and the probabilities of their classes."""
    soft: bool = False
    """Whether the probabilities are the target, instead of the most probable class."""


class DataConfig(Table):
    """Where the images come from, and how the training images are divided."""

    source: str = "shapes10"
    """`shapes10` (drawn here), `cifar10` or `cifar100` (downloaded), or the path of an archive or a folder."""
    root: str | None = None
    """Folder of downloads and prepared stores; by default `$FASTRES_DATA`, else `~/.cache/fastres`."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side in pixels to which folders and tars of images are brought; by default 32. CIFAR and shapes10 are 32."""
    store: Literal["decoded", "encoded"] = "decoded"
    """`decoded`: pixels at one size, decoded once; `encoded`: the JPEG and PNG files of a folder or an uncompressed tar
    as they are, decoded each time they are read: slower, for sets whose pixels are too large for the disk."""
    loader: Annotated[str, LOADER_NAMES] = "auto"
    """Reader of the store; all deliver the same batches. `resident` holds the whole set in the device's memory;
    `ffcv` and `dali` stream and need `pip install 'fastres[ffcv]'` or `'fastres[dali]'`; `torch` streams with torch's
    DataLoader. `auto` takes the first of them that fits and is installed, and says why."""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Threads or processes that read ahead; by default one a core. 0: `torch` reads in the training process."""
    split: Literal["none", "holdout", "report"] = "holdout"
    """`none`: train on everything; `holdout`: a random share is kept for validation and never trained on; `report`: as
    the report's code did, validate on the first images while training on a random share of all of them, so that most
    validation images are trained on (a leak)."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images that validation takes; without effect on `split = "none"`."""
    train_images: Positive | None = None
    """Use only the first so many training images, before the split."""
    test_images: Positive | None = None
    """Use only the first so many test images."""
    extra: ExtraConfig | None = None
    """Images to train on besides; never validated or tested on. They need `loader = "resident"`."""
