"""Muon: momentum whose update is brought near the closest orthogonal matrix (Jordan et al. 2024, "Muon: An optimizer
for hidden layers in neural networks"), for all filters at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastres.kernels.batch_norm.routing import symmetric_pays
from fastres.layers.convolution import HAS_AMX

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b and c of X ← aX + b(XXᵀ)X + c(XXᵀ)²X, of the same article: chosen for the steepest start at 0
with which all singular values end within about 0.3 of 1; they do not converge."""


class Muon(torch.optim.Optimizer):
    """For each filter W, seen as a matrix with a row an output channel: buffer ← momentum·buffer + gradient; update ←
    the buffer, or gradient + momentum·buffer (Nesterov); W ← (1 − lr·weight_decay)·W − lr·orthogonalised(update).

    Nothing is scaled by the matrix's shape, as in the CIFAR-10 records. The state of a parameter is `momentum_buffer`
    and `norm`, the L2 norm it had when the optimizer was made, to which `renormalise` brings it back. `lr` may be a
    tensor on the device, so that a captured step can read it.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        newton_schulz_steps: int = 5,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"newton_schulz_steps": newton_schulz_steps})
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim < 2:
                    raise ValueError(f"Muon is for matrices and filters, not for a parameter of {weight.ndim} axes")
                self.state[weight] = {
                    "momentum_buffer": torch.zeros_like(weight),
                    "norm": torch.linalg.vector_norm(weight.detach()),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            updates = buffers
            if group["nesterov"]:
                updates = list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            steps, scale = group["newton_schulz_steps"], -group["lr"]
            torch._foreach_add_(weights, orthogonalise(updates, steps, scale=scale))
        return loss

    @torch.no_grad()
    def restart(self) -> None:
        """Forget the momentum, and take the norms that the weights have now for their initial ones, in place."""
        for weight, state in self.state.items():
            state["momentum_buffer"].zero_()
            state["norm"].copy_(torch.linalg.vector_norm(weight))

    @torch.no_grad()
    def renormalise(self) -> None:
        """Scale each filter back to its initial L2 norm. BN behind a convolution undoes a filter's scale: growth would
        only make the next updates relatively smaller; fixed, the rate alone says how far a step turns it."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        initial = [self.state[weight]["norm"] for weight in weights]
        torch._foreach_mul_(weights, list(torch._foreach_div(initial, torch._foreach_norm(weights))))


def orthogonalise(
    updates: list[Tensor], steps: int, *, scale: float | Tensor = 1.0, padding: float | None = None
) -> list[Tensor]:
    """`scale` times what `steps` Newton–Schulz steps make of each of `updates` ([O, …], a row an output channel).

    Matrices of one shape become one batched product, and so do shapes that are filled up with zeros, whose rows and
    columns the polynomial keeps at zero: `padding` is the share of products that may go into zeros. On a GPU, where
    small products wait for launches, it is 1 by default, else 0. On CUDA and on CPUs with AMX the products are in bf16,
    which the article finds sufficient; fp64 stays fp64.
    """
    if padding is None:
        padding = 1.0 if updates[0].is_cuda else 0.0
    matrices = [_matrix(update) for update in updates]
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t() for matrix in matrices]
    results: list[Tensor] = list(updates)
    for members, rows, columns in _batches([(w.shape[0], w.shape[1]) for w in wide], padding):
        x = wide[members[0]].new_zeros(len(members), rows, columns)
        for slot, member in zip(x, members, strict=True):
            height, width = wide[member].shape
            slot[:height, :width] = wide[member]
        # The Frobenius norm bounds the largest singular value. A gradient of zeros has to stay one.
        x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(1e-30)
        y = newton_schulz(x, steps).to(x.dtype) * scale
        for product, member in zip(y, members, strict=True):
            height, width = wide[member].shape
            product = product[:height, :width]
            product = product if wide[member] is matrices[member] else product.t()
            results[member] = _like(product, updates[member])
    return results


def newton_schulz(x: Tensor, steps: int) -> Tensor:
    """`steps` times X ← aX + b(XXᵀ)X + c(XXᵀ)²X on [B, m, n], m ≤ n, with norms of at most 1.

    Where a device has no units for bf16 matrices, fp32 with the powers of XXᵀ alone: X is a polynomial in XXᵀ times the
    first X, so that only two products are n wide. For the report's network and 3 steps that takes 91 ms on 2 cores of
    an AMD EPYC instead of 167 ms, and 89 ms in bf16; 5 steps, 123 ms instead of 279 and 149. In bf16 the powers would
    lose the small singular values: 58% off where these span five decades, fp32 less than 0.01%.
    """
    a, b, c = COEFFICIENTS
    if x.dtype == torch.float32 and (x.is_cuda or (x.device.type == "cpu" and HAS_AMX)):
        x = x.bfloat16()
    if x.is_cuda and x.dtype == torch.bfloat16 and symmetric_pays(x.shape[1]):
        from fastres.kernels.symmetric import symmetric_product  # Triton need not be installed elsewhere

        for _ in range(steps):
            gram = symmetric_product(x)
            x = torch.baddbmm(x, symmetric_product(gram, alpha=c, c=gram, beta=b), x, beta=a)
        return x
    if x.dtype == torch.bfloat16 or x.shape[2] < 2 * x.shape[1] or steps == 0:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x
    gram = x @ x.mT
    whole = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(gram)
    for step in range(steps):
        # The step multiplies X by aI + rest from the left, and with it the product so far; XXᵀ from both sides.
        rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        whole = torch.baddbmm(whole, rest, whole, beta=a) if step else a * whole + rest
        if step < steps - 1:
            half = torch.baddbmm(gram, rest, gram, beta=a)
            gram = torch.baddbmm(half, half, rest, beta=a)
    return whole @ x


def _batches(shapes: list[tuple[int, int]], padding: float) -> list[tuple[list[int], int, int]]:
    """Members, rows and columns of each batch: larger shapes first, each shape into the batch before it while the zeros
    cost at most `padding` of the useful products (about m²n for m×n)."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for member, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(member)
    batches: list[tuple[list[int], int, int]] = []
    for (rows, columns), members in sorted(by_shape.items(), reverse=True):
        if batches:
            others, most_rows, most_columns = batches[-1]
            together, all_columns = others + members, max(columns, most_columns)
            useful = sum(shapes[member][0] ** 2 * shapes[member][1] for member in together)
            if len(together) * most_rows**2 * all_columns <= (1 + padding) * useful:
                batches[-1] = together, most_rows, all_columns
                continue
        batches.append((members, rows, columns))
    return batches


def _channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _matrix(update: Tensor) -> Tensor:
    """[O, …] → [O, the rest], without a copy in both layouts: the order of columns does not matter to the result."""
    return (update.permute(0, 2, 3, 1) if _channels_last(update) else update).flatten(1)


def _like(matrix: Tensor, update: Tensor) -> Tensor:
    """The inverse of `_matrix`: `matrix` in the shape of `update`."""
    if not _channels_last(update):
        return matrix.reshape(update.shape)
    outputs, channels, height, width = update.shape
    return matrix.reshape(outputs, height, width, channels).permute(0, 3, 1, 2)
