"""Specification of an augmentation, as both devices' code reads it, and its result.

Below pipeline.py, which calls cpu/ and gpu.py: those know this file and not their caller.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastres import recipe
from fastres.augment import draws
from fastres.augment.arguments import DTYPES, check_indices, whole_number
from fastres.augment.draws import Draws, Mixing, Plan, Size

Compiled = TypeVar("Compiled")


class Mixed(NamedTuple):
    """A batch for training: the loss is weight·loss(labels) + (1 - weight)·loss(partners)."""

    images: Tensor
    """[B, 3, H, W], normalised."""
    labels: Tensor
    """int64 [B]: the images' own."""
    partners: Tensor
    """int64 [B]: those of the images that were mixed in."""
    weight: Tensor
    """float32 [1]: the share of the images' own; 1 where nothing was mixed."""


class AugmentSpec:
    """The policy of a recipe's `augment` table, and the mixing of its `mix` table.

    Args:
        policy: which operations, how strong.
        mean, std: three numbers each, units of 1 = white; used where the policy has none of its own.
        mix: how a call mixes; by default not at all.
        seed: first half of the Philox key, from 0 to 2³² - 1.
        dtype: of the batches that come out: float32, bfloat16 or float16.
        channels_last: whether their memory is laid out as N, H, W, C.

    Raises ValueError for anything else.
    """

    def __init__(
        self,
        policy: recipe.AugmentConfig,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        *,
        mix: recipe.MixConfig | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
        self.policy, self.mix, self.seed = policy, mix or recipe.MixConfig(), whole_number("seed", seed)
        self.dtype, self.channels_last = dtype, channels_last
        self.mean = _three_numbers("mean", policy.mean or mean)
        # A channel without any variation (a black set) would be divided by 0; 1 leaves it at 0 after centring.
        spread = _three_numbers("std", policy.std or std)
        if (spread < 0).any():
            raise ValueError(f"std must not be negative: {spread.tolist()}")
        self.std = torch.where(spread > 0, spread, torch.ones_like(spread))
        mean64, std64 = self.mean.numpy(), self.std.numpy()
        scale, offset = (1 / (255 * std64)).astype(np.float32), (-mean64 / std64).astype(np.float32)
        erased = mean64 if policy.erasing is None or policy.erasing.value is None else np.array(policy.erasing.value)
        self.normalization = np.stack(
            [
                scale,
                offset,
                offset,
                np.float32(255) * scale + offset,
                np.zeros(3, dtype=np.float32),
                ((erased - mean64) / std64).astype(np.float32),
            ]
        )
        """float32 [6, 3]: scale and offset, which normalise; normalised black, white, colours of cutout and erasing."""
        self.noise_scale = (policy.noise / std64).astype(np.float32)
        """float32 [3]: deviation of the noise, normalised."""
        self.prepared: dict[Any, Any] = {}
        """Tensors for a GPU, by size, device and whether batches are mixed: gpu.py makes them once."""
        self._factors: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._plans: dict[Size, Plan] = {}
        self._compiled: dict[tuple[Size, Any], Any] = {}
        models = [model.model_dump(mode="json") for model in (policy, self.mix)]
        numbers = [values.tolist() for values in (self.mean, spread)]
        self.text = json.dumps([*models, *numbers, str(dtype).removeprefix("torch."), channels_last])
        """All of it but the seed as text, which compiled graphs hold: see `from_text`."""

    def draw_mix(self, epoch: int, step: int, size: tuple[int, ...]) -> Mixing:
        """How the batch of `step`, counted within `epoch`, is mixed; images of `size` (H, W)."""
        epoch, step = whole_number("epoch", epoch), whole_number("step", step)
        return draws.draw_mix(self.mix, self.seed, epoch, step, (size[0], size[1]))

    def draw(self, indices: Tensor, epoch: int, size: tuple[int, ...]) -> Draws:
        """Draws of each sample, in images of `size` (H, W). Raises UserError where the policy does not fit."""
        check_indices(indices)
        return draws.draw(self.plan((size[0], size[1])), self.seed, whole_number("epoch", epoch), indices.cpu().numpy())

    def plan(self, size: Size) -> Plan:
        """The policy's constants for images of `size` (H, W). Raises UserError where they do not fit."""
        if size not in self._plans:
            self._plans[size] = draws.plan(self.policy, size)
        return self._plans[size]

    def compiled(self, size: Size, build: Callable[[recipe.AugmentConfig, Plan], Compiled]) -> Compiled:
        """`build(policy, plan)` of that size, built once: what a device needs in a form of its own."""
        if (size, build) not in self._compiled:
            self._compiled[size, build] = build(self.policy, self.plan(size))
        return self._compiled[size, build]


@functools.cache
def from_text(text: str, seed: int) -> AugmentSpec:
    """The specification whose `text` it is, one for all graphs: it holds tables on GPUs that captured graphs read."""
    policy, mix, mean, std, dtype, channels_last = json.loads(text)
    return AugmentSpec(
        recipe.AugmentConfig(**policy),
        mean,
        std,
        mix=recipe.MixConfig(**mix),
        seed=seed,
        dtype=getattr(torch, dtype),
        channels_last=channels_last,
    )


def _three_numbers(name: str, values: Sequence[float]) -> Tensor:
    numbers = torch.tensor(tuple(values), dtype=torch.float64)
    if numbers.shape != (3,) or not numbers.isfinite().all():
        raise ValueError(f"{name} must be three numbers, of red, green and blue, not {list(values)}")
    return numbers
