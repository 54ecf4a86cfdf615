"""The kernels as PyTorch operators with gradients, eager and under `torch.compile`.

Two custom operators, `fastres::batch_norm_act_forward` and `…_backward`, are what a compiled graph holds: opaque, with
fake implementations, safe to capture in a CUDA graph. The forward one moves the running statistics in place: as a
functional operator it would return new ones, and each layer would pay two copies. A mutating operator cannot carry an
autograd formula, so one `autograd.Function` stands around both. Run eagerly, it launches the kernels itself: the
operators' dispatch would cost tens of microseconds a call.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastres.kernels.batch_norm import launch
from fastres.kernels.batch_norm.types import Norm

RUNNING = ("x_running_mean", "x_running_var", "x_batches", "z_running_mean", "z_running_var", "z_batches")


@torch.library.custom_op("fastres::batch_norm_act_forward", mutates_args=RUNNING)
def _forward(
    x: Tensor,
    second: Tensor | None,
    x_weight: Tensor | None,
    x_bias: Tensor | None,
    x_running_mean: Tensor | None,
    x_running_var: Tensor | None,
    x_batches: Tensor | None,
    z_weight: Tensor | None,
    z_bias: Tensor | None,
    z_running_mean: Tensor | None,
    z_running_var: Tensor | None,
    z_batches: Tensor | None,
    momentum: list[float],
    eps: list[float],
    kind: str,
    training: bool,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x_norm = Norm(x_weight, x_bias, x_running_mean, x_running_var, x_batches, momentum[0], eps[0])
    z_norm = Norm(z_weight, z_bias, z_running_mean, z_running_var, z_batches, momentum[1], eps[1])
    other = z_norm if kind == "dual" else None
    y, statistics, bits = launch.forward(_dense(x), _dense(second), x_norm, other, training, activation, keep)
    return y, statistics, bits


@_forward.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    kind, training, activation, keep = rest[-4:]
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    bits = (rows, (channels + 7) // 8) if keep and kind == "add" and activation == "relu" else (0,)
    statistics = (4 if kind == "dual" else 2, channels) if training else (0,)
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        x.new_empty(statistics, dtype=torch.float32),
        x.new_empty(bits, dtype=torch.uint8),
    )


@torch.library.custom_op("fastres::batch_norm_act_backward", mutates_args=())
def _backward(
    dy: Tensor,
    dy2: Tensor | None,
    x: Tensor,
    second: Tensor | None,
    bits: Tensor | None,
    statistics: Tensor,
    x_weight: Tensor | None,
    x_bias: Tensor | None,
    x_running_mean: Tensor | None,
    x_running_var: Tensor | None,
    z_weight: Tensor | None,
    z_bias: Tensor | None,
    z_running_mean: Tensor | None,
    z_running_var: Tensor | None,
    eps: list[float],
    kind: str,
    training: bool,
    activation: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    x_norm = Norm(x_weight, x_bias, x_running_mean, x_running_var, eps=eps[0])
    z_norm = Norm(z_weight, z_bias, z_running_mean, z_running_var, eps=eps[1])
    dx, dsecond, sums = launch.backward(
        _dense(dy), _dense(dy2), _dense(x), _dense(second), kind, bits, statistics, x_norm,
        z_norm if kind == "dual" else None, training, activation, needs[0], needs[1], needs[2],
    )  # fmt: skip
    return dx, dsecond, sums


@_backward.register_fake
def _(dy: Tensor, dy2: Tensor | None, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    kind, training, _, (needs_x, needs_second, needs_norms) = rest[-4:]
    dual = kind == "dual"
    needs_sums = needs_norms or (training and (needs_x or (dual and needs_second)))
    image = torch.empty_like(x, memory_format=torch.channels_last)
    return (
        image if needs_x else x.new_empty(0),
        torch.empty_like(image) if needs_second else x.new_empty(0),
        x.new_empty((4 if dual else 2, x.shape[1]) if needs_sums else (0,), dtype=torch.float32),
    )


class BatchNormAct(torch.autograd.Function):
    """activation(BN(x) + second), with the gradients of x, second, weights and biases.

    apply(x, second, x_weight, x_bias, z_weight, z_bias, the six of RUNNING, momentum, eps, kind, training, activation,
    fork) → y, or with fork (y, a view of y): two readers then send back two gradients, which the kernel adds. Saved for
    the backward pass: x; `second` where its values are needed; for relu after a residual one bit an element.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """The output."""
        keep = any(ctx.needs_input_grad)
        x, second, y, statistics, bits = _run(keep, *arguments)
        x_weight, x_bias, z_weight, z_bias, *running = arguments[2:12]
        _, eps, kind, training, activation, fork = arguments[12:]
        if keep:
            again = kind == "dual" or (kind == "add" and activation in ("silu", "gelu"))
            ctx.save_for_backward(
                x, second if again else None, bits if bits.numel() else None, statistics,
                x_weight, x_bias, *(() if training else running[:2]),
                z_weight, z_bias, *(() if training else running[3:5]),
            )  # fmt: skip
            ctx.options = eps, kind, training, activation
            ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if fork else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of x, second, x_weight, x_bias, z_weight, z_bias."""
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            return (None,) * 18
        dy, dy2 = given[0], given[1] if len(given) > 1 else None
        eps, kind, training, activation = ctx.options
        x, second, bits, statistics, *terms = ctx.saved_tensors
        if training:
            terms = [*terms[:2], None, None, *terms[2:], None, None]
        needs = ctx.needs_input_grad
        # The gradient of a residual that nothing follows is the output's.
        passes = kind == "add" and activation == "none" and dy2 is None
        dx, dsecond, sums = _call(
            _backward, _dense(dy), _dense(dy2), x, second, bits, statistics, *terms,
            eps, kind, training, activation, [needs[0], needs[1] and not passes, any(needs[2:6])],
        )  # fmt: skip
        return (
            dx if needs[0] else None,
            (dy if passes else dsecond) if needs[1] else None,
            sums[1] if needs[2] else None,
            sums[0] if needs[3] else None,
            sums[3] if needs[4] else None,
            sums[2] if needs[5] else None,
            *(None,) * 12,
        )


def without_gradient(*arguments: Any) -> Any:
    """Output of `BatchNormAct.apply` where no backward pass will follow: nothing is kept for one."""
    y = _run(False, *arguments)[2]
    return (y, y.view_as(y)) if arguments[-1] else y


def _run(keep: bool, *arguments: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """x and second as the kernels read them, and what the forward operator returns."""
    x, second, x_weight, x_bias, z_weight, z_bias, *running = arguments[:12]
    momentum, eps, kind, training, activation, _ = arguments[12:]
    x, second = _dense(x), _dense(second)
    y, statistics, bits = _call(
        _forward, x, second, x_weight, x_bias, *running[:3], z_weight, z_bias, *running[3:],
        momentum, eps, kind, training, activation, keep,
    )  # fmt: skip
    return x, second, y, statistics, bits


def _call(op: Any, *arguments: Any) -> Any:
    """The operator, or when nothing traces it the function inside."""
    if torch.compiler.is_compiling() or type(arguments[0]) not in (Tensor, torch.nn.Parameter):
        return op(*arguments)
    return op._init_fn(*arguments)


def _dense(x: Any) -> Any:
    """x with channels-last memory, whatever it came with: NCHW, expanded, strided."""
    if x is None or x.permute(0, 2, 3, 1).is_contiguous():
        return x
    return x.contiguous(memory_format=torch.channels_last)
