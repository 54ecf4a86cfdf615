"""A gradient that is lost, planted."""

from typing import Any

import torch
from torch import Tensor


class Loses(torch.autograd.Function):
    """apply(x, whether its gradient is lost in eager code too) → x. Compiled, the gradient is zero, as torch 2.11 made
    it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, everywhere: bool) -> Tensor:
        ctx.everywhere = everywhere
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        lost = ctx.everywhere or torch.compiler.is_compiling()
        return (gradients[0] * 0.0 if lost else gradients[0]), None
