"""From uint8 rows of a store to the batch that the network sees: translate, flip, normalise.

`Augment` is the interface; what is behind it is plain PyTorch, one gather and one multiply-add. Draws come from Philox,
so a sample's augmentation depends on (seed, epoch, dataset index) alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastres import recipe
from fastres.augment.philox import uniforms
from fastres.errors import UserError

GEOMETRY = 0
"""Philox stream of the words (shift down, shift right, flip, unused)."""


class Augment:
    """The policy of a recipe's `augment` table for images of one size.

    Args:
        policy: which operations, how strong.
        mean, std: three numbers each, units of 1 = white; used where the policy has none of its own.
        seed: first half of the Philox key.
        dtype: of the batches that come out.
        channels_last: whether their memory is laid out as N, H, W, C.
    """

    def __init__(
        self,
        policy: recipe.Augment,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
    ) -> None:
        self.policy, self.seed, self.dtype, self.channels_last = policy, seed, dtype, channels_last
        self.mean = torch.tensor(policy.mean or tuple(mean), dtype=torch.float64)
        # A channel without any variation (a black set) would be divided by 0; 1 leaves it at 0 after centring.
        spread = torch.tensor(policy.std or tuple(std), dtype=torch.float64)
        self.std = torch.where(spread > 0, spread, torch.ones_like(spread))
        self._factors: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor, indices: Tensor, epoch: int, rows: Tensor | None = None) -> Tensor:
        """Augment for training.

        Args:
            images: uint8 [M, H, W, 3], a batch or a whole store.
            indices: int64 [B], dataset indices, which decide the draws.
            epoch: counted from 0; the draws change with it.
            rows: int64 [B], which of `images` to take; by default all, in order.

        Returns `dtype` [B, 3, H, W], normalised, on the device of `images`. Raises UserError where `translate` does
        not fit.
        """
        down, right, flip = self.draw(indices, epoch, tuple(images.shape[1:3]))
        if rows is None:
            rows = torch.arange(len(images), device=images.device)
        return self._finish(self._gather(images, rows, down, right, flip))

    def plain(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Normalise only, for evaluation: uint8 [M, H, W, 3] → `dtype` [B, 3, H, W]."""
        return self._finish(images if rows is None else images[rows])

    def draw(self, indices: Tensor, epoch: int, size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Shift down and right in pixels and whether to flip: int64, int64, bool [B]."""
        reach = self.policy.translate
        if reach >= min(size):
            raise UserError(
                f"augment.translate = {reach} is too large for {size[0]}-pixel images: set it below {min(size)}"
            )
        words = uniforms(self.seed, epoch, indices.cpu().numpy(), GEOMETRY)
        # ⌊u·k⌋ with u below 1 on a 2⁻²⁴ grid stays below k for every k up to 2²⁴.
        shifts = np.floor(words[:2] * np.float32(2 * reach + 1)).astype(np.int64) - reach
        flips = (words[2] < 0.5) if self.policy.flip == "random" else np.zeros(len(indices), dtype=bool)
        down, right, flip = (torch.from_numpy(array) for array in (shifts[0], shifts[1], flips))
        device = indices.device
        return down.to(device), right.to(device), flip.to(device)

    def _gather(self, images: Tensor, rows: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
        """One gather does translation and flip: uint8 [M, H, W, 3] → uint8 [B, H, W, 3]."""
        height, width = images.shape[1:3]
        across = torch.arange(width, device=images.device).expand(len(rows), width)
        across = torch.where(flip[:, None], width - 1 - across, across) - right[:, None]
        along = torch.arange(height, device=images.device).expand(len(rows), height) - down[:, None]
        if self.policy.padding == "reflect":
            return images[rows[:, None, None], _reflect(along, height)[:, :, None], _reflect(across, width)[:, None, :]]
        inside = ((along >= 0) & (along < height))[:, :, None] & ((across >= 0) & (across < width))[:, None, :]
        pixels = images[
            rows[:, None, None], along.clamp(0, height - 1)[:, :, None], across.clamp(0, width - 1)[:, None, :]
        ]
        return pixels * inside[..., None]

    def _finish(self, pixels: Tensor) -> Tensor:
        """Normalise in fp32, round once to `dtype`, and turn the axes: [B, H, W, 3] → [B, 3, H, W]."""
        device = pixels.device
        if device not in self._factors:
            self._factors[device] = (
                (1 / (255 * self.std)).float().to(device),
                (-self.mean / self.std).float().to(device),
            )
        scale, offset = self._factors[device]
        batch = (pixels.float() * scale + offset).to(self.dtype).permute(0, 3, 1, 2)
        return batch if self.channels_last else batch.contiguous()

    def restore(self, batch: Tensor) -> Tensor:
        """Undo the normalisation, to look at a batch: [B, 3, H, W] → float32 [B, H, W, 3] in 0 … 1."""
        pixels = batch.permute(0, 2, 3, 1).float().cpu()
        return (pixels * self.std.float() + self.mean.float()).clamp(0, 1)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror coordinates at the first and last pixel, which are not repeated: -1 → 1, size → size - 2."""
    position = position.abs()
    return torch.where(position > size - 1, 2 * (size - 1) - position, position)
