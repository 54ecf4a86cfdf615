"""Policies, images and the plain reference for the tests of the augmentation kernels."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from runs_on import DEVICE
from torch import Tensor

from fastres import recipe
from fastres.augment import Augment, draws, reference
from fastres.augment.gpu import augment_batch
from fastres.kernels.batch_norm import launch

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)

CROP = {"scale": [0.3, 1.0], "ratio": [0.5, 2.0]}
JITTER = {"brightness": 0.4, "contrast": 2.0, "saturation": 0.7, "hue": 0.5, "p": 0.8}
PLAIN: dict[str, Any] = {"translate": 0, "flip": "none"}
REPORT: dict[str, Any] = {
    "translate": 0,
    "random_resized_crop": {"scale": [0.85, 1.0], "ratio": [3 / 4, 4 / 3], "interpolation": "bicubic"},
    "color_jitter": {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.1, "p": 0.3},
    "autocontrast": 0.2,
    "grayscale": 0.2,
}
EVERYTHING: dict[str, Any] = {
    "random_resized_crop": {**CROP, "interpolation": "bilinear"},
    "translate": 2,
    "padding": "constant",
    "fill": [10, 200, 90],
    "flip": "alternating",
    "color_jitter": JITTER,
    "autocontrast": 0.5,
    "grayscale": 0.3,
    "cutout": 3,
    "erasing": {"p": 0.6, "value": [0.1, 0.9, 0.5]},
    "noise": 0.05,
}
MIX: dict[str, Any] = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


@dataclass
class Case:
    """A policy on a batch of a store of random images; the batch has a repeated row and indices up to 2³² - 1."""

    policy: dict[str, Any]
    size: tuple[int, int] = (9, 12)
    mix: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    seed: int = 7
    count: int = 5
    device: torch.device = DEVICE

    def augment(self) -> Augment:
        policy, mix = recipe.AugmentConfig(**self.policy), recipe.MixConfig(**self.mix)
        options: dict[str, Any] = {"dtype": self.dtype, "channels_last": self.channels_last}
        return Augment(policy, MEAN, STD, mix=mix, seed=self.seed, **options)

    def images(self) -> Tensor:
        """uint8 [8, H, W, 3]; the last ones grey and of few levels, which colours treat apart."""
        images = torch.randint(
            0, 256, (8, *self.size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
        )
        images[5] = images[5, ..., :1]
        images[6] = images[6] % 3 + 100
        return images.to(self.device)

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, indices and labels."""
        rows, indices = [3, 6, 5, 0, 3, 7, 1], [11, 2**32 - 1, 0, 49_999, 2**31, 5, 6]
        rows, indices = rows[: self.count], indices[: self.count]
        return tuple(torch.tensor(values, device=self.device) for values in (rows, indices, range(self.count)))

    def run(self, epoch: Any = 3, step: Any = None) -> tuple[Tensor, Tensor | None, Tensor]:
        rows, indices, labels = self.batch()
        return augment_batch(self.augment(), self.images(), rows, indices, epoch, step, labels)

    def check(self, epoch: int = 3, step: int | None = None) -> None:
        """Compare with the plain reference, and the labels with the mixing."""
        found, partners, weight = self.run(epoch, step)
        augment, images = self.augment(), self.images()
        rows, indices, labels = self.batch()
        assert found.shape == (self.count, 3, *self.size) and found.dtype == self.dtype
        assert found.is_contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        values = expected(augment, images.cpu(), rows.cpu(), indices.cpu(), epoch)
        mixing = draws.UNMIXED if step is None else augment.draw_mix(epoch, step, self.size)
        assert_rounded(found, reference.mix(values, mixing))
        rolled = torch.roll(labels, 1) if mixing.kind else labels
        assert partners is not None and torch.equal(partners, rolled)
        assert weight.cpu().numpy() == mixing.weight


def expected(augment: Augment, images: Tensor, rows: Tensor, indices: Tensor, epoch: int) -> NDArray[np.float32]:
    """fp32 [B, H, W, 3] by the plain reference, before mixing."""
    size = (images.shape[1], images.shape[2])
    drawn = augment.draw(indices, epoch, size)
    values = []
    for sample, (row, index) in enumerate(zip(rows.tolist(), indices.tolist(), strict=True)):
        pixels = reference.augment_pixels(images[row].numpy(), augment.policy, drawn, sample)
        boxes = [
            (drawn.cutout[:, sample], augment.normalization[4]),
            (drawn.erase[:, sample], augment.normalization[5]),
        ]
        noise = reference.noise(size, augment.noise_scale, augment.seed, epoch, index)
        values.append(reference.normalise(pixels, augment.normalization[0], augment.normalization[1], boxes, noise))
    return np.stack(values) if values else np.zeros((0, *size, 3), dtype=np.float32)


def assert_rounded(found: Tensor, values: NDArray[np.float32]) -> None:
    """The values [B, H, W, 3], rounded once to the type of `found` [B, 3, H, W]: no tolerance.

    Products and sums are rounded one by one on both sides, and Triton's compiler is told not to fuse them.
    """
    wanted = torch.from_numpy(values).permute(0, 3, 1, 2)
    found = found.cpu()
    if launch.INTERPRETED and found.dtype == torch.bfloat16:
        # The interpreter cuts off the lower 16 bits where a GPU rounds.
        bits = wanted.contiguous().view(torch.int32) & -65536
        assert torch.equal(found.float(), bits.view(torch.float32))
    else:
        assert torch.equal(found, wanted.to(found.dtype))
