"""BatchNorm with what follows it, as modules that stand where `nn.BatchNorm2d`, an add and an activation stood.

Each computes BatchNorm (Ioffe and Szegedy 2015) as `nn.BatchNorm2d` does and holds the same parameters and buffers
under the same names. Sums and activations go through `fastres.kernels`, which reads and writes each tensor once.
Under torch.fx a layer is one node; torch.jit.script refuses it; converters.py says what other libraries' converters do.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.errors import UserError
from fastres.kernels import ACTIVATIONS, BACKENDS, Norm, batch_norm_act, dual_batch_norm_act
from fastres.layers.converters import NotConverted, NotSynchronised
from fastres.layers.norms import is_batch_norm, is_frozen
from fastres.layers.tracing import as_node, is_traced


def norm_of(bn: nn.BatchNorm2d) -> tuple[Norm, bool]:
    """Tensors that `bn` would normalise with if it were called now, and whether by the batch's own statistics.

    Where it would not move its running statistics, `num_batches_tracked` is None, and so are the running statistics
    unless they normalise. `momentum=None`, the cumulative average, becomes 1 / (batches seen, with this one), which
    has to wait for the device, as `nn.BatchNorm2d` does. `bn` may be a FrozenBatchNorm2d too.
    """
    if not isinstance(bn, nn.BatchNorm2d):
        return Norm(bn.weight, bn.bias, bn.running_mean, bn.running_var, None, 0.0, bn.eps), False
    counter = bn.num_batches_tracked if bn.training and bn.track_running_stats else None
    momentum = bn.momentum
    if momentum is None:
        momentum = 0.0 if counter is None else 1.0 / (float(counter) + 1.0)
    without = bn.training and not bn.track_running_stats
    mean, variance = (None, None) if without else (bn.running_mean, bn.running_var)
    of_batch = bn.training or (bn.running_mean is None and bn.running_var is None)
    return Norm(bn.weight, bn.bias, mean, variance, counter, momentum, bn.eps), of_batch


def norm_act(
    bn: nn.BatchNorm2d,
    x: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    backend: str = "auto",
    fork: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """activation(bn(x) + residual) for an `nn.BatchNorm2d` that stays where it is.

    x and residual: [N, C, H, W] of one dtype. Another residual that `bn(x) + residual` accepts is added by PyTorch.
    `fork` returns the output twice, for two readers. Hooks of `bn` do not run. A module of another class, such as the
    SyncBatchNorm or SplitBatchNorm2d that a converter put in the place of `bn`, is called instead, as it is under
    torch.fx. Raises ValueError as `bn` would: for an input that is not 4-D, and in training for one value per channel.
    """
    if is_traced(x, residual) or not _computes(bn, x, backend):
        return _add_act(_called(bn, x), residual, activation, fork)
    return _norm_act(bn, x, residual, activation, backend, fork)


def _norm_act(
    bn: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, activation: str, backend: str, fork: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """The same for a `bn` whose class is known."""
    if isinstance(bn, nn.BatchNorm2d):
        bn._check_input_dim(x)
    if residual is not None and not _alike(x, residual):
        return _add_act(_norm_act(bn, x, None, "none", backend, False), residual, activation, fork)
    norm, of_batch = norm_of(bn)
    return batch_norm_act(
        x,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        residual,
        training=of_batch,
        momentum=norm.momentum,
        eps=norm.eps,
        activation=activation,
        backend=backend,
        num_batches_tracked=norm.num_batches_tracked,
        fork=fork,
    )


def dual(
    main: nn.BatchNorm2d,
    skip: nn.BatchNorm2d,
    x: Tensor,
    z: Tensor,
    activation: str = "none",
    backend: str = "auto",
    fork: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """activation(main(x) + skip(z)) for two `nn.BatchNorm2d` that stay where they are, such as a residual block's last
    one and the one of its skip.

    x and z: [N, C, H, W] of one dtype. `fork` returns the output twice, for two readers. Hooks of the two do not run.
    Raises ValueError as they would. Where only one of them is frozen, PyTorch computes `skip(z)` by itself. Modules of
    other classes are called, as in `norm_act`.
    """
    if is_traced(x, z) or not (_computes(main, x, backend) and _computes(skip, z, backend)):
        return norm_act(main, x, _called(skip, z), activation, backend, fork)
    for bn, operand in ((main, x), (skip, z)):
        if isinstance(bn, nn.BatchNorm2d):
            bn._check_input_dim(operand)
    (x_norm, x_of_batch), (z_norm, z_of_batch) = norm_of(main), norm_of(skip)
    if x_of_batch != z_of_batch:
        return _norm_act(main, x, skip(z), activation, backend, fork)
    if not _alike(x, z):
        return _add_act(_norm_act(main, x, None, "none", backend, False), skip(z), activation, fork)
    how: Any = {"activation": activation, "backend": backend, "fork": fork}
    return dual_batch_norm_act(x, x_norm, z, z_norm, training=x_of_batch, **how)


def ends_in_activation(norm: Any, x: Tensor, kind: type[nn.Module], activation: str) -> Any:
    """The forward of `norm`, which is of class `kind` and normalises, then activates; as `kind` has it where one call
    would do something else."""
    if x.ndim == 4 and (isinstance(norm, nn.BatchNorm2d) or _takes_frozen(norm, x, "auto")):
        return _norm_act(norm, x, None, activation, "auto", False)
    return kind.forward(norm, x)


def _computes(bn: nn.Module, x: Tensor, backend: str) -> bool:
    """Whether `norm_of(bn)` is what calling `bn` with x would compute."""
    if isinstance(bn, BatchNormAct2d) or is_batch_norm(bn):
        return True
    return is_frozen(bn) and _takes_frozen(bn, x, backend)


def _takes_frozen(bn: nn.Module, x: Tensor, backend: str) -> bool:
    """Whether one call may stand for a FrozenBatchNorm2d: it scales and shifts in the types that it finds, which the
    kernels do for fp32 alone. PyTorch's own operators for it are those of its forward."""
    return (x.is_cuda or backend == "triton") and x.dtype == bn.weight.dtype == torch.float32


def _called(bn: nn.Module, x: Tensor) -> Any:
    if isinstance(bn, BatchNormAct2d):
        raise TypeError(f"torch.fx cannot trace a {type(bn).__name__} in norm_act or dual: call the layer itself")
    return bn(x)


def _alike(x: Tensor, other: Any) -> bool:
    """Whether one call may add the two: a sum that broadcasts, promotes or takes a plain number is PyTorch's. What
    `fuse` finds in a graph may be any of these."""
    return isinstance(other, Tensor) and x.shape == other.shape and x.dtype == other.dtype


def _add_act(y: Any, residual: Any, activation: str, fork: bool) -> Tensor | tuple[Tensor, Tensor]:
    if residual is not None:
        y = y + residual
    if activation != "none":
        y = getattr(F, activation)(y)
    return (y, y.view_as(y)) if fork else y


def _check(activation: str, backend: str) -> None:
    if activation not in ACTIVATIONS:
        raise UserError(f"activation '{activation}' is unknown: choose one of {', '.join(ACTIVATIONS)}")
    if backend not in BACKENDS:
        raise UserError(f"backend '{backend}' is unknown: choose one of {', '.join(BACKENDS)}")


class BatchNormAct2d(NotConverted, nn.BatchNorm2d):
    """activation(BatchNorm(x)): an `nn.BatchNorm2d` and the activation after it.

    Parameters, buffers, attributes and `state_dict` are those of `nn.BatchNorm2d`, whose arguments come first and mean
    the same; further keywords go to it. `activation`: "none", "relu", "silu" or "gelu" (with erf). `backend`: "auto",
    "triton" or "torch". Raises UserError for other names. Converters that would replace it by a norm without activation
    get a RuntimeError (converters.py has which).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "relu",
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        _check(activation, backend)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **kwargs)
        self.activation, self.backend = activation, backend

    def forward(self, x: Tensor, fork: bool = False) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """[N, C, H, W] → the same shape and dtype; with `fork` twice, for two readers whose gradients then need no
        kernel of their own to be added. Raises ValueError where `nn.BatchNorm2d` does."""
        if is_traced(x):
            return as_node(self, x, fork=fork)
        return _norm_act(self, x, None, self.activation, self.backend, fork)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


class BatchNormAddAct2d(BatchNormAct2d):
    """activation(BatchNorm(x) + residual), the end of a residual block; otherwise as BatchNormAct2d."""

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor, fork: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Two tensors [N, C, H, W] → the same shape; with `fork` twice, as in BatchNormAct2d."""
        if is_traced(x, residual):
            return as_node(self, x, residual, fork=fork)
        return _norm_act(self, x, residual, self.activation, self.backend, fork)


class DualBatchNormAddAct2d(NotSynchronised, nn.Module):
    """activation(main(x) + skip(z)): the end of a residual block whose skip has a BatchNorm of its own.

    The children `main` and `skip` are plain `nn.BatchNorm2d`, made from the same arguments; either may be frozen, or
    replaced by a norm of another class, which is then called. Their hooks do not run. Arguments as in BatchNormAct2d.
    """

    def __init__(self, *arguments: Any, activation: str = "relu", backend: str = "auto", **keywords: Any) -> None:
        _check(activation, backend)
        super().__init__()
        self.main = nn.BatchNorm2d(*arguments, **keywords)
        self.skip = nn.BatchNorm2d(*arguments, **keywords)
        self.activation, self.backend = activation, backend

    def forward(self, x: Tensor, z: Tensor, fork: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Two tensors [N, C, H, W] → the same shape; with `fork` twice, as in BatchNormAct2d."""
        if is_traced(x, z):
            return as_node(self, x, z, fork=fork)
        return dual(self.main, self.skip, x, z, self.activation, self.backend, fork)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
