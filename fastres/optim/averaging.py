"""Averages of the weights over the steps."""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of weights and BN statistics (Polyak and Juditsky 1992 with forgetting).

    `network` is a copy that holds the averages; after each optimisation step, average ← decay·average + (1 −
    decay)·weight. Early on the decay is at most (1 + updates) / (10 + updates), so that the random start is soon
    forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of `network` after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, weights = [], []
        for average, weight in zip(_tensors(self.network), _tensors(network), strict=True):
            if average.is_floating_point():
                averages.append(average)
                weights.append(weight)
            else:
                average.copy_(weight)
        torch._foreach_lerp_(averages, weights, 1 - decay)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
