"""From uint8 rows of a store to the batch that the network sees.

`Augment` is the interface. On the CPU the work is Numba's (cpu/), on a GPU Triton's (gpu.py); both do what
reference.py does, with the draws of draws.py, so that an image's augmentation depends on (seed, epoch, dataset index)
alone and a batch's mixing on (seed, epoch, step). Under torch.compile each entry point is an operator of ops.py, in one
whole graph; epochs and steps given as tensors, and those that `AugmentModule` counts, never compile anew. Given as
numbers they do what numbers do under torch.compile: one graph for the first, and one for all others.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastres import aliases, recipe
from fastres.augment import ops
from fastres.augment.arguments import check_batch, check_mixable, whole_number
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

        Raises UserError where the policy does not fit the images' size, ValueError where arguments are not as said
        here, IndexError for rows that are not there. On a GPU, where looking would make the host wait, the values of
        tensors are taken as they are.
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
        if torch.compiler.is_compiling():
            counters = ops.counter(epoch), None if step is None else ops.counter(step)
            return ops.augment_op(images, rows, indices, labels, *counters, self.text, self.seed)
        return ops.augment_batch(self, images, rows, indices, epoch, step, labels)

    def with_policy(self, policy: recipe.AugmentConfig) -> "Augment":
        """Another policy for the same images: colours, seed, type and layout stay; nothing is mixed."""
        mean, std = self.mean.tolist(), self.std.tolist()
        return Augment(policy, mean, std, seed=self.seed, dtype=self.dtype, channels_last=self.channels_last)

    def reseed(self, seed: int) -> None:
        """Draw by another seed from now on."""
        self.seed = whole_number("seed", seed)
        if torch.cuda.is_initialized():  # else nothing was prepared there, and Triton need not be installed
            from fastres.augment import gpu

            gpu.reseed(self)

    def normalize(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Normalise only, for evaluation: uint8 [M, H, W, 3] → `dtype` [B, 3, H, W]. Otherwise as a call."""
        check_batch(images, rows)
        pixels = images if rows is None else images[rows]
        scale, offset = self._factors_on(pixels.device)
        batch = (pixels.float() * scale + offset).to(self.dtype).permute(0, 3, 1, 2)
        return batch if self.channels_last else batch.contiguous()

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _factors_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Scale and offset of the normalisation, float32 [3] each, made once."""
        if device not in self._factors:
            scale, offset = (torch.from_numpy(self.normalization[which]).to(device) for which in (0, 1))
            self._factors[device] = (scale, offset)
        return self._factors[device]

    def restore(self, batch: Tensor) -> Tensor:
        """Undo the normalisation, to look at a batch: [B, 3, H, W] → float32 [B, H, W, 3] in 0 … 1."""
        pixels = batch.permute(0, 2, 3, 1).float().cpu()
        return (pixels * self.std.float() + self.mean.float()).clamp(0, 1)


def mix_batch(
    batch: Tensor,
    labels: Tensor,
    mix: recipe.MixConfig,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    step: int | Tensor = 0,
) -> Mixed:
    """CutMix or MixUp of any float batch with its neighbours, in place of torchvision's two transforms.

    Args:
        batch: float32, float16 or bfloat16 [B, C, H, W]; it is left as it is, and no gradient flows through.
        labels: int64 [B].
        mix: which of the two, how strong, how often.
        seed, epoch, step: decide the draw, as they do for `Augment`.

    Raises ValueError where arguments are not as said here.
    """
    if not torch.compiler.is_compiling():
        return ops.mix_batch(batch, labels, mix, seed, epoch, step)
    check_mixable(batch, labels)
    alphas, chances = (mix.mixup_alpha, mix.cutmix_alpha), (mix.prob, mix.switch_prob)
    counters = ops.counter(epoch), ops.counter(step)
    mixed, partners, weight = ops.mix_op(batch.detach(), labels, *alphas, *chances, mix.until, seed, *counters)
    return Mixed(mixed, labels, partners, weight)


class _Counter:
    """One of an `AugmentModule`'s counters as an attribute."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, module: Any, owner: type) -> Any:
        """Its number."""
        return self if module is None else int(module.counters[self._index])

    def __set__(self, module: Any, number: int) -> None:
        module.counters[self._index] = whole_number("epoch, step and seen", number)


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

    epoch, step, seen = _Counter(0), _Counter(1), _Counter(2)

    def __init__(self, augment: Augment) -> None:
        super().__init__()
        self.augment = augment
        with torch.inference_mode(False):  # where it is made says nothing about where it trains
            self.counters = torch.zeros(3, dtype=torch.int64, device="cpu")
        """int64 [3] on the CPU: epoch, step, images of this epoch. As a tensor no value needs a graph of its own."""

    def start_epoch(self, epoch: int) -> None:
        """Say which epoch begins, counted from 0; draws change with it."""
        self.epoch, self.step, self.seen = epoch, 0, 0

    def forward(self, images: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> Tensor | Mixed:
        """Normalised [B, 3, H, W] of uint8 [B, 3, H, W] or [B, H, W, 3].

        `indices`, int64 [B], are the images' positions in the data set, which decide the draws; by default the images'
        positions in the epoch, so that the draws then depend on the order. With `labels`, int64 [B], the images are
        mixed too, and a `Mixed` comes back.

        Without `indices`, each rank of a distributed training and each worker of a DataLoader draws for itself, as if
        it had every n-th image of the epoch, with a warning. Raises what `Augment` raises, in either mode.
        """
        if isinstance(images, Tensor) and images.dim() == 4 and images.shape[1] == 3:
            images = images.permute(0, 2, 3, 1)
        if not self.training:
            parts = {"indices": indices, "labels": labels}
            check_batch(images, **{name: values for name, values in parts.items() if values is not None})
            batch = self.augment.normalize(images)
            return batch if labels is None else Mixed(batch, labels, labels, torch.ones(1, device=batch.device))
        if torch.compiler.is_compiling():
            about = self.augment.text, self.augment.seed
            batch, partners, weight = ops.augment_next_op(images, indices, labels, self.counters, *about)
        else:
            batch, partners, weight = ops.augment_next(self.augment, images, indices, labels, self.counters)
        return batch if labels is None else Mixed(batch, labels, partners, weight)

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step, "seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.epoch, self.step, self.seen = state["epoch"], state["step"], state["seen"]
