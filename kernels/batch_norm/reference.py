"""The kernels' mathematics in plain PyTorch, which TorchInductor fuses with its neighbours on a CPU.

Inductor's own form of BatchNorm rounds mean and 1/deviation to the type of the activations before its backward pass
uses them. Here they stay in fp32 (fp64 for fp64 activations), and a training step of the report network in bf16 takes
4% less time (2 cores with AMX, batch 20 and 128).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def forward(
    x: Tensor,
    second: Tensor | None,
    x_terms: tuple[Tensor | None, Tensor | None],
    z_terms: tuple[Tensor | None, Tensor | None] | None,
    eps: tuple[float, float],
    activation: str,
) -> tuple[Tensor, list[Tensor]]:
    """activation(BN(x) + second) by the batch's statistics, and those: mean and variance of x, and of z where dual.

    x, second: [N, C, H, W]; `x_terms` and `z_terms` are weight and bias [C]. Variances are biased.
    """
    moments = _moments(x)
    if second is not None and z_terms is not None:
        moments += _moments(second)
    y = _activate(_before_activation(x, second, moments, x_terms, z_terms, eps), activation)
    # Not `y.to` where nothing is to be done: compiled by torch 2.11, an autograd.Function whose forward ends in an
    # operation without effect gets gradients of zero.
    return y if y.dtype == x.dtype else y.to(x.dtype), moments


def backward(
    dy: Tensor,
    x: Tensor,
    second: Tensor | None,
    y: Tensor | None,
    moments: list[Tensor],
    x_terms: tuple[Tensor | None, Tensor | None],
    z_terms: tuple[Tensor | None, Tensor | None] | None,
    eps: tuple[float, float],
    activation: str,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of x and of what was added, and [of bias, of weight] for x (and for z where dual).

    `y`, the output, gives the mask of relu; without it, and for other activations, x and second do.
    """
    g = dy.to(_wide(x))
    if activation == "relu" and y is not None:
        g = torch.where(y <= 0, 0, g)
    elif activation != "none":
        z = _before_activation(x, second, moments, x_terms, z_terms, eps)
        g = _through(g, z, activation)
    dx, sums = _input_gradient(g, x, moments[:2], x_terms[0], eps[0])
    if second is None or z_terms is None:
        return dx, g, sums
    dz, z_sums = _input_gradient(g, second, moments[2:], z_terms[0], eps[1])
    return dx, dz, sums + z_sums


class BatchNormAct(torch.autograd.Function):
    """`forward` with `backward` as its gradient.

    apply(x, second, x_weight, x_bias, z_weight, z_bias, eps, kind, activation) → y, mean and variance of x, and of z
    where kind is "dual".
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """The output and the batch's moments."""
        x, second, x_weight, x_bias, z_weight, z_bias, eps, kind, activation = arguments
        z_terms = (z_weight, z_bias) if kind == "dual" else None
        y, moments = forward(x, second, (x_weight, x_bias), z_terms, eps, activation)
        again = kind == "dual" or (kind == "add" and activation in ("silu", "gelu"))
        ctx.save_for_backward(
            x,
            second if again else None,
            y if activation == "relu" else None,
            x_weight,
            x_bias,
            z_weight,
            z_bias,
            *moments,
        )
        ctx.options = eps, kind, activation, second.dtype if second is not None else None
        ctx.mark_non_differentiable(*moments)
        return (y, *moments)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of x, second, x_weight, x_bias, z_weight, z_bias."""
        x, second, y, x_weight, x_bias, z_weight, z_bias, *moments = ctx.saved_tensors
        eps, kind, activation, second_dtype = ctx.options
        z_terms = (z_weight, z_bias) if kind == "dual" else None
        dx, g, sums = backward(gradients[0], x, second, y, moments, (x_weight, x_bias), z_terms, eps, activation)
        dsecond = None if second_dtype is None else g.to(second_dtype)
        of_z = sums[2:] if kind == "dual" else (None, None)
        wanted = (dx, dsecond, sums[1], sums[0], of_z[1], of_z[0])
        return (
            *(value if needed else None for value, needed in zip(wanted, ctx.needs_input_grad, strict=False)),
            *(None,) * 3,
        )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _moments(x: Tensor) -> list[Tensor]:
    var, mean = torch.var_mean(x.to(_wide(x)), (0, 2, 3), correction=0)
    return [mean, var]


def _before_activation(
    x: Tensor,
    second: Tensor | None,
    moments: list[Tensor],
    x_terms: tuple[Tensor | None, Tensor | None],
    z_terms: tuple[Tensor | None, Tensor | None] | None,
    eps: tuple[float, float],
) -> Tensor:
    z = _normalised(x, moments[:2], x_terms, eps[0])
    if second is None:
        return z
    return z + (second if z_terms is None else _normalised(second, moments[2:], z_terms, eps[1]))


def _normalised(x: Tensor, moments: list[Tensor], terms: tuple[Tensor | None, Tensor | None], eps: float) -> Tensor:
    mean, var = moments
    weight, bias = terms
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    z = (x.to(_wide(x)) - _channel(mean)) * _channel(scale)
    return z if bias is None else z + _channel(bias)


def _activate(z: Tensor, activation: str) -> Tensor:
    return {"none": lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}[activation](z)


def _through(g: Tensor, z: Tensor, activation: str) -> Tensor:
    """The gradient of z from that of its activation."""
    if activation == "relu":
        return torch.where(z <= 0, 0, g)
    if activation == "silu":
        sigmoid = torch.sigmoid(z)
        return g * (sigmoid * (1 + z * (1 - sigmoid)))
    return g * (0.5 * (1 + torch.erf(z * 0.5**0.5)) + z * torch.exp(-0.5 * z * z) * 0.3989422804014327)


def _input_gradient(
    g: Tensor, x: Tensor, moments: list[Tensor], weight: Tensor | None, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """Ioffe and Szegedy 2015, section 3: the gradient of x, and [of bias, of weight]."""
    mean, var = moments
    count = x.numel() // x.shape[1]
    rstd = (var + eps).rsqrt()
    normal = (x.to(_wide(x)) - _channel(mean)) * _channel(rstd)
    of_bias, of_weight = g.sum((0, 2, 3)), (g * normal).sum((0, 2, 3))
    scale = rstd if weight is None else rstd * weight
    dx = _channel(scale) * (g - _channel(of_bias / count) - normal * _channel(of_weight / count))
    return dx.to(x.dtype), [of_bias, of_weight]
