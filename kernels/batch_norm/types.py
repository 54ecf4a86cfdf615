"""Arguments of a normalisation, shared by all paths."""

from typing import NamedTuple

from torch import Tensor

ACTIVATIONS = ("none", "relu", "silu", "gelu")
"""Activations that may follow the normalisation; gelu is the exact form with erf, as `torch.nn.GELU()`."""


BACKENDS = ("auto", "triton", "torch")


class Norm(NamedTuple):
    """One BatchNorm's tensors, each of shape [C], and its constants."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None = None
    """int64 scalar that a training step increments."""
    momentum: float = 0.1
    eps: float = 1e-5
