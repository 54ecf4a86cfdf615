"""Averages of the weights over the steps. Both include BN's running statistics, which belong to the weights."""

import copy

import torch
from torch import Tensor, nn

from fastres import recipe


class Ema:
    """Exponential moving average of weights and BN statistics (Polyak and Juditsky 1992 with forgetting).

    `network` is a copy that holds the averages; after each optimisation step, average ← decay·average + (1 −
    decay)·weight. Early on the decay is at most (1 + updates) / (10 + updates), so that the random start is soon
    forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def update(self, network: nn.Module) -> None:
        """Take in the weights of `network` after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        _draw_towards(self.network, network, 1 - decay)


class Lookahead:
    """Slow weights (Zhang et al. 2019, algorithm 1): after every `every` steps, slow ← decay·slow + (1 − decay)·weight,
    and weight ← slow, so that training goes on from there. The optimizer's momentum stays as it is.

    `network` is a copy that holds the slow weights. It is what should be evaluated: between two exchanges the trained
    weights are ahead of it. Which step of the run it is decides everything, so there is nothing to save but `network`.
    """

    def __init__(self, network: nn.Module, options: recipe.Lookahead, steps: int) -> None:
        self.options, self.steps = options, steps
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def decay(self, step: int) -> float:
        """The share that the slow weights keep after step `step`, counted from 0, of `steps`."""
        return self.options.decay * ((step + 1) / self.steps) ** self.options.power

    def update(self, network: nn.Module, step: int) -> None:
        """After step `step` (counted from 0): exchange with `network`, if it is time."""
        if (step + 1) % self.options.every:
            return
        _draw_towards(self.network, network, 1 - self.decay(step))
        with torch.no_grad():
            torch._foreach_copy_(_tensors(network), _tensors(self.network))


@torch.no_grad()
def _draw_towards(averages: nn.Module, network: nn.Module, share: float) -> None:
    """average ← average + share·(weight − average); counters are copied."""
    old, new = [], []
    for average, weight in zip(_tensors(averages), _tensors(network), strict=True):
        if average.is_floating_point():
            old.append(average)
            new.append(weight)
        else:
            average.copy_(weight)
    torch._foreach_lerp_(old, new, share)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
