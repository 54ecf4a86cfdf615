"""From uint8 rows of a store to the batch that the network sees.

`Augment` is the interface. On the CPU the work is Numba's (cpu/), on a GPU Triton's (gpu.py); both do what
reference.py does, with the draws of draws.py, so that an image's augmentation depends on (seed, epoch, dataset index)
alone and a batch's mixing on (seed, epoch, step).
"""

import numpy as np
import torch
from torch import Tensor, nn

from fastres import aliases, recipe
from fastres.augment import draws
from fastres.augment.spec import AugmentSpec, Mixed


class Augment(AugmentSpec):
    """The policy of a recipe's `augment` table, and the mixing of its `mix` table; arguments as for `AugmentSpec`."""

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        epoch: int | Tensor,
        step: int | Tensor = 0,
        rows: Tensor | None = None,
    ) -> Mixed:
        """Augment and mix for training.

        Args:
            images: uint8 [M, H, W, 3], a batch or a whole store.
            labels: int64 [B].
            indices: int64 [B], dataset indices below 2³², which decide the draws.
            epoch: counted from 0; the draws change with it. A tensor of one integer on the device of `images` can
                change between replays of a captured call.
            step: likewise, of this batch, counted within `epoch`: with it, the mixing changes.
            rows: int64 [B], which of `images` to take; by default all, in order.

        Raises UserError where the policy does not fit the images' size, ValueError or IndexError where arguments are
        not as said here.
        """
        batch, partners, weight = self._augment(images, indices, epoch, rows, step, labels)
        assert partners is not None  # as there are labels
        return Mixed(batch, labels, partners, weight)

    def augment(self, images: Tensor, indices: Tensor, epoch: int | Tensor, rows: Tensor | None = None) -> Tensor:
        """Augment without mixing: `dtype` [B, 3, H, W], normalised, on the device of `images`. Otherwise as a call."""
        return self._augment(images, indices, epoch, rows, None, None)[0]

    unmixed, plain = aliases.Method("augment"), aliases.Method("normalize")

    def _augment(
        self,
        images: Tensor,
        indices: Tensor,
        epoch: int | Tensor,
        rows: Tensor | None,
        step: int | Tensor | None,
        labels: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
            raise ValueError(f"images must be uint8 [M, H, W, 3], not {images.dtype} {list(images.shape)}")
        if len(indices) != len(images if rows is None else rows):
            raise ValueError(f"{len(indices)} indices for {len(images if rows is None else rows)} images")
        # Compilers and compiled code take a moment to load: not at import.
        if images.is_cuda:
            from fastres.augment import gpu

            return gpu.augment_batch(self, images.contiguous(), rows, indices, epoch, step, labels)
        from fastres.augment.cpu import launch as cpu

        number = None if step is None else int(step)
        return cpu.augment_batch(self, images.contiguous(), rows, indices, int(epoch), number, labels)

    def with_policy(self, policy: recipe.AugmentConfig) -> "Augment":
        """Another policy for the same images: colours, seed, type and layout stay; nothing is mixed."""
        mean, std = self.mean.tolist(), self.std.tolist()
        return Augment(policy, mean, std, seed=self.seed, dtype=self.dtype, channels_last=self.channels_last)

    def reseed(self, seed: int) -> None:
        """Draw by another seed from now on."""
        self.seed = seed
        if torch.cuda.is_initialized():  # else nothing was prepared there, and Triton need not be installed
            from fastres.augment import gpu

            gpu.reseed(self)

    def normalize(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Normalise only, for evaluation: uint8 [M, H, W, 3] → `dtype` [B, 3, H, W]."""
        pixels = images if rows is None else images[rows]
        if pixels.device not in self._factors:
            scale, offset = (torch.from_numpy(self.normalization[which]).to(pixels.device) for which in (0, 1))
            self._factors[pixels.device] = (scale, offset)
        scale, offset = self._factors[pixels.device]
        batch = (pixels.float() * scale + offset).to(self.dtype).permute(0, 3, 1, 2)
        return batch if self.channels_last else batch.contiguous()

    def restore(self, batch: Tensor) -> Tensor:
        """Undo the normalisation, to look at a batch: [B, 3, H, W] → float32 [B, H, W, 3] in 0 … 1."""
        pixels = batch.permute(0, 2, 3, 1).float().cpu()
        return (pixels * self.std.float() + self.mean.float()).clamp(0, 1)


def mix_batch(
    batch: Tensor, labels: Tensor, mix: recipe.MixConfig, *, seed: int = 0, epoch: int = 0, step: int = 0
) -> Mixed:
    """CutMix or MixUp of any float batch with its neighbours, in place of torchvision's two transforms.

    Args:
        batch: float32, float16 or bfloat16 [B, C, H, W]; it is left as it is, and no gradient flows through.
        labels: int64 [B].
        mix: which of the two, how strong, how often.
        seed, epoch, step: decide the draw, as they do for `Augment`.
    """
    if batch.is_cuda:
        from fastres.augment import gpu

        return Mixed(*gpu.mix_batch(batch, labels, mix, seed=seed, epoch=epoch, step=step))
    batch = batch.detach()
    mixing = draws.draw_mix(mix, seed, epoch, step, (batch.shape[2], batch.shape[3]))
    if mixing.kind == draws.NO_MIX:
        return Mixed(batch.clone(), labels, labels, torch.ones(1))
    other = batch.roll(1, 0)
    if mixing.kind == draws.MIXUP:  # in fp32, rounded once
        own, rest = float(mixing.weight), float(np.float32(1) - mixing.weight)
        mixed = (batch.float() * own + other.float() * rest).to(batch.dtype)
    else:
        top, left, bottom, right = mixing.box
        mixed = batch.clone()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return Mixed(mixed, labels, labels.roll(1, 0), torch.tensor([float(mixing.weight)]))


class AugmentModule(nn.Module):
    """`Augment` for a loop of your own, in place of torchvision's transforms: a module that counts epochs and steps.

    In training mode it augments, in evaluation mode it only normalises. The counters are part of `state_dict`, so that
    a resumed run goes on with the same draws.

        augment = AugmentModule(Augment(recipe.AugmentConfig(), mean, std, mix=recipe.MixConfig(cutmix_alpha=1.0)))
        for epoch in range(epochs):
            augment.start_epoch(epoch)
            for images, labels in loader:
                images, labels, partners, weight = augment(images, labels=labels)
                output = network(images)
                loss = weight * cross_entropy(output, labels) + (1 - weight) * cross_entropy(output, partners)
    """

    def __init__(self, augment: Augment) -> None:
        super().__init__()
        self.augment = augment
        self.epoch, self.step, self.seen = 0, 0, 0

    def start_epoch(self, epoch: int) -> None:
        """Say which epoch begins, counted from 0; draws change with it."""
        self.epoch, self.step, self.seen = epoch, 0, 0

    def forward(self, images: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> Tensor | Mixed:
        """Normalised [B, 3, H, W] of uint8 [B, 3, H, W] or [B, H, W, 3].

        `indices`, int64 [B], are the images' positions in the data set, which decide the draws; by default the images'
        positions in the epoch, so that the draws then depend on the order. With `labels`, int64 [B], the images are
        mixed too, and a `Mixed` comes back.
        """
        if images.dim() == 4 and images.shape[1] == 3:
            images = images.permute(0, 2, 3, 1)
        if not self.training:
            batch = self.augment.normalize(images)
            return batch if labels is None else Mixed(batch, labels, labels, torch.ones(1, device=batch.device))
        if indices is None:
            indices = torch.arange(self.seen, self.seen + len(images), device=images.device)
        step = self.step
        self.step, self.seen = self.step + 1, self.seen + len(images)
        if labels is None:
            return self.augment.augment(images, indices, self.epoch)
        return self.augment(images, labels, indices, self.epoch, step)

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step, "seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.epoch, self.step, self.seen = state["epoch"], state["step"], state["seen"]
