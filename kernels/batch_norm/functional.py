"""BatchNorm with what follows it, as functions: normalise, add, activate, in one call.

Each call takes one of two paths. `triton`: the kernels of this package, for channels-last fp32, fp16 and bf16 tensors
on a CUDA device. `torch`: plain PyTorch, for everything else. On a CPU that is never an opaque operator, so that
`torch.compile` fuses it with its neighbours: an opaque one would double the forward time there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastres.kernels.batch_norm.types import ACTIVATIONS, BACKENDS, Norm


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    backend: str = "auto",
    num_batches_tracked: Tensor | None = None,
    fork: bool = False,
) -> Any:
    """activation(BatchNorm(x) + residual) (Ioffe and Szegedy 2015; the residual: He et al. 2016).

    Args:
        x: [N, C, H, W], fp32, fp16, bf16 (PyTorch's path: any). Channels-last memory is what the kernels are made for;
            with `backend="triton"` any other is copied to it first, with "auto" it takes PyTorch's path.
        weight, bias: [C], fp32; None for 1 and 0.
        running_mean, running_var: [C], fp32. With `training` they move by `momentum` towards the batch's, in place,
            where they are given; without, they normalise.
        residual: [N, C, H, W], the type of x; added before the activation.
        training: normalise by the statistics of the batch.
        activation: one of ACTIVATIONS.
        backend: "auto" takes the kernels wherever they apply; "triton" insists on them (on CPU tensors too, in Triton's
            interpreter: TRITON_INTERPRET=1); "torch" never takes them.
        num_batches_tracked: int64 scalar, incremented in training.
        fork: return the output twice, for two readers: the kernel adds their gradients on the fly, where autograd would
            read both and write the sum.

    Returns:
        [N, C, H, W] in the type of x, or with `fork` a pair of it and a view of it.

    Raises:
        ValueError: in training with one value a channel or an eps that is not positive, and without for a negative one,
            as PyTorch; for an unknown activation or backend; for tensors that `backend="triton"` cannot take.
    """
    norm = Norm(weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps)
    return _batch_norm_act(x, residual, norm, None, training, activation, backend, fork)


def dual_batch_norm_act(
    x: Tensor,
    x_norm: Norm,
    z: Tensor,
    z_norm: Norm,
    *,
    training: bool,
    activation: str = "none",
    backend: str = "auto",
    fork: bool = False,
) -> Any:
    """activation(BatchNorm(x) + BatchNorm(z)): the end of a residual block whose skip has a BatchNorm of its own.

    x, z: [N, C, H, W] of one type; each with its own parameters. Otherwise as `batch_norm_act`.
    """
    return _batch_norm_act(x, z, x_norm, z_norm, training, activation, backend, fork)


def _batch_norm_act(
    x: Tensor,
    second: Tensor | None,
    x_norm: Norm,
    z_norm: Norm | None,
    training: bool,
    activation: str,
    backend: str,
    fork: bool,
) -> Any:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: one of {', '.join(ACTIVATIONS)}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: one of {', '.join(BACKENDS)}")
    _check_as_pytorch(x, x_norm, z_norm, training)
    if backend != "torch" and takes_kernels(x, second, x_norm, z_norm, training, backend == "triton"):
        return _kernels(x, second, x_norm, z_norm, training, activation, fork)
    y = _plain(x, second, x_norm, z_norm, training, activation)
    return (y, y.view_as(y)) if fork else y


def takes_kernels(
    x: Tensor, second: Tensor | None, x_norm: Norm, z_norm: Norm | None, training: bool, insists: bool
) -> bool:
    """Whether the kernels can do it, and would do it well; who insists learns why not."""
    if not insists and x.device.type != "cuda":
        return False
    reason = _obstacle(x, second, x_norm, z_norm, training)
    if insists:
        if reason is not None:
            raise ValueError(f'backend="triton" cannot run here: {reason}; use backend="auto"')
        return True
    return reason is None and x.permute(0, 2, 3, 1).is_contiguous()  # channels-last


def _obstacle(x: Tensor, second: Tensor | None, x_norm: Norm, z_norm: Norm | None, training: bool) -> str | None:
    """Reason why the kernels cannot take these tensors, or None."""
    if x.ndim != 4 or x.numel() == 0:
        return f"x must be a non-empty [N, C, H, W], not {list(x.shape)}"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"x is {x.dtype}, not float32, float16 or bfloat16"
    if second is not None and (second.shape != x.shape or second.dtype != x.dtype or second.device != x.device):
        return "what is added must have the shape, type and device of x"
    for norm in (x_norm, z_norm):
        for tensor in norm[:4] if norm is not None else ():
            if tensor is not None and (tensor.dtype != torch.float32 or tensor.device != x.device):
                return "weights and statistics must be float32 on the device of x"
            if tensor is not None and (tensor.shape != x.shape[1:2] or not tensor.is_contiguous()):
                return f"weights and statistics must be contiguous, of shape [{x.shape[1]}]"
        batches = None if norm is None else norm.num_batches_tracked
        if training and batches is not None and batches.device != x.device:
            return "num_batches_tracked must be on the device of x"
        if norm is not None and not training and (norm.running_mean is None or norm.running_var is None):
            return "without training running_mean and running_var are needed"
    if x.device.type == "cuda":
        if torch.version.cuda is None or torch.cuda.get_device_capability(x.device) < (8, 0):
            return "the kernels need an NVIDIA GPU of compute capability 8.0 or more"
    elif not _interpreter():
        return f"x is on {x.device.type} and Triton's interpreter is off (set TRITON_INTERPRET=1 before Python starts)"
    return None


def _interpreter() -> bool:
    try:
        from fastres.kernels.batch_norm.launch import INTERPRETED
    except ImportError:  # Triton has no build for this machine
        return False
    return INTERPRETED


def _kernels(
    x: Tensor, second: Tensor | None, x_norm: Norm, z_norm: Norm | None, training: bool, activation: str, fork: bool
) -> Any:
    from fastres.kernels.batch_norm.ops import BatchNormAct, without_gradient

    kind = "none" if second is None else "add" if z_norm is None else "dual"
    z_norm = z_norm or Norm(None, None, None, None)
    # Forward-mode derivatives pass through no_grad. The kernels have none: `apply` raises, the other would lose them.
    derived = torch.is_grad_enabled() or forward_ad._current_level >= 0
    run = BatchNormAct.apply if derived else without_gradient
    return run(
        x, second, *x_norm[:2], *z_norm[:2], *x_norm[2:5], *z_norm[2:5],
        [x_norm.momentum, z_norm.momentum], [x_norm.eps, z_norm.eps], kind, training, activation, fork,
    )  # fmt: skip


def _plain(
    x: Tensor, second: Tensor | None, x_norm: Norm, z_norm: Norm | None, training: bool, activation: str
) -> Tensor:
    """The same in PyTorch's own operators."""
    alike = second is None or (second.shape == x.shape and second.dtype == x.dtype)
    fusible = alike and x.device.type == "cpu" and x.ndim == 4 and x.numel() > 0  # of no values PyTorch takes no mean
    if training and fusible and torch.compiler.is_compiling():
        return _fusible(x, second, x_norm, z_norm, activation)
    y = _batch_norm(x, x_norm, training)
    if second is not None:
        y = y + (second if z_norm is None else _batch_norm(second, z_norm, training))
    return {"none": lambda y: y, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}[activation](y)


def _batch_norm(x: Tensor, norm: Norm, training: bool) -> Tensor:
    if training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    weight, bias, mean, variance, _, momentum, eps = norm
    return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)


def _fusible(x: Tensor, second: Tensor | None, x_norm: Norm, z_norm: Norm | None, activation: str) -> Tensor:
    """The same, written out for TorchInductor: see `reference`."""
    from fastres.kernels.batch_norm.reference import BatchNormAct

    count = x.numel() // x.shape[1]
    kind = "none" if second is None else "add" if z_norm is None else "dual"
    z_terms = (None, None) if z_norm is None else z_norm[:2]
    eps = (x_norm.eps, x_norm.eps if z_norm is None else z_norm.eps)
    y, *moments = BatchNormAct.apply(x, second, *x_norm[:2], *z_terms, eps, kind, activation)
    norms = (x_norm,) if z_norm is None else (x_norm, z_norm)
    with torch.no_grad():
        for norm, mean, var in zip(norms, moments[::2], moments[1::2], strict=True):
            track(norm, mean, var, count)
    return y


def track(norm: Norm, mean: Tensor, var: Tensor, count: int) -> None:
    """Move the running statistics of `norm` towards a batch's mean and biased variance [C] of `count` values each."""
    if norm.running_mean is not None:
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    if norm.running_var is not None:
        unbiased = var * (count / (count - 1))
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


def _check_as_pytorch(x: Tensor, x_norm: Norm, z_norm: Norm | None, training: bool) -> None:
    """The checks of `torch.nn.functional.batch_norm`: one value has no variance, and eps keeps it from 0. On all paths,
    as the compiler would make another error of that function's own."""
    if training and x.ndim > 1 and x.numel() == x.shape[1] > 0:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    for norm in (x_norm, z_norm):
        if norm is not None and training and norm.eps <= 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {norm.eps}")
        if norm is not None and norm.eps < 0:
            raise ValueError(f"batch_norm eps must be non-negative, but got {norm.eps}")
