"""Several augmented views of each image of a batch, for methods that compare them."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastres.augment.pipeline import Augment


class Kind(NamedTuple):
    """Views that one policy makes."""

    augment: Augment
    number: int


class Views:
    """So many views by each kind's policy, drawn independently of each other.

    View v of image i is drawn as image i + v·`images` would be, where `images` is how many the data set has: like
    everything that is drawn, it depends on seed, epoch and image alone. Raises ValueError where these numbers do not
    fit into the 32 bits that a draw has for an image.
    """

    def __init__(self, kinds: list[Kind], images: int) -> None:
        self.kinds, self.images = kinds, images
        self.count = sum(kind.number for kind in kinds)
        if self.count * images >= 2**32:
            raise ValueError(f"{self.count} views of {images} images are more than 2³² images to draw for")

    def __call__(self, source: Tensor, indices: Tensor, epoch: int | Tensor, rows: Tensor) -> Tensor:
        """[V·B, 3, H, W]: view 0 of all images, then view 1, … Arguments as those of `Augment.augment`."""
        batches, first = [], 0
        for augment, number in self.kinds:
            shift = self.images * torch.arange(first, first + number, device=indices.device)
            drawn = (shift[:, None] + indices).flatten()
            batches.append(augment.augment(source, drawn, epoch, rows.repeat(number)))
            first += number
        return batches[0] if len(batches) == 1 else torch.cat(batches)

    def reseed(self, seed: int) -> None:
        """Draw by another seed from now on."""
        for kind in self.kinds:
            kind.augment.reseed(seed)
