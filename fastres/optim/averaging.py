"""Averages of the weights over the steps. Both include BN's running statistics, which belong to the weights."""

import copy
import math

import torch
from torch import Tensor, nn

from fastres import recipe


class Ema:
    """Exponential moving average of weights and BN statistics (Polyak and Juditsky 1992 with forgetting).

    `network` is a copy that holds the averages; after each optimisation step, average ← decay·average + (1 −
    decay)·weight. Early on the decay is at most (1 + step) / (10 + step), so that the random start is soon forgotten.
    With `cosine_steps` it grows instead from `decay` in the first of so many steps to 1 after the last, like half a
    cosine (Grill et al. 2020, "Bootstrap Your Own Latent", section 3.2).
    """

    def __init__(self, network: nn.Module, decay: float, *, cosine_steps: int = 0) -> None:
        self.decay, self.cosine_steps = decay, cosine_steps
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def fraction(self, step: int) -> float:
        """The fraction of the way that the averages go towards the weights after `step`: one minus the decay."""
        if self.cosine_steps:
            return (1 - self.decay) * (1 + math.cos(math.pi * step / self.cosine_steps)) / 2
        return 1 - min(self.decay, (1 + step) / (10 + step))

    def update(self, network: nn.Module, fraction: float | Tensor) -> None:
        """Take in the weights of `network` after a step."""
        _draw_towards(self.network, network, fraction)


class Lookahead:
    """Slow weights (Zhang et al. 2019, algorithm 1): after every `every` steps, slow ← decay·slow + (1 − decay)·weight,
    and weight ← slow, so that training goes on from there. The optimizer's momentum stays as it is.

    `network` is a copy that holds the slow weights. It is what should be evaluated: between two exchanges the trained
    weights are ahead of it. Which step of the run it is decides everything, so there is nothing to save but `network`.
    """

    def __init__(self, network: nn.Module, options: recipe.LookaheadConfig, steps: int) -> None:
        self.options, self.steps = options, steps
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def due(self, step: int) -> bool:
        """Whether there is an exchange after step `step`, counted from 0."""
        return (step + 1) % self.options.every == 0

    def fraction(self, step: int) -> float:
        """The fraction of the way that the slow weights go towards the trained ones after step `step` of `steps`: α,
        one minus the fraction of themselves that they keep."""
        return 1 - self.options.decay * ((step + 1) / self.steps) ** self.options.power

    def exchange(self, network: nn.Module, fraction: float | Tensor) -> None:
        """Move the slow weights, and put them into `network`."""
        _draw_towards(self.network, network, fraction)
        with torch.no_grad():
            torch._foreach_copy_(_tensors(network), _tensors(self.network))


@torch.no_grad()
def _draw_towards(averages: nn.Module, network: nn.Module, fraction: float | Tensor) -> None:
    """average ← average + fraction·(weight − average); counters are copied. A fraction that is a tensor, a scalar on
    the device, can change between replays of a captured step."""
    old, new = [], []
    for average, weight in zip(_tensors(averages), _tensors(network), strict=True):
        if average.is_floating_point():
            old.append(average)
            new.append(weight)
        else:
            average.copy_(weight)
    if isinstance(fraction, Tensor):  # of all lerps, none takes one tensor for a whole list
        distances = torch._foreach_sub(new, old)
        torch._foreach_mul_(distances, fraction)
        torch._foreach_add_(old, distances)
    else:
        torch._foreach_lerp_(old, new, fraction)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
