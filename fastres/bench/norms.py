"""BatchNorm with what follows it as cases to be timed: shapes, traffic, tensors, and calls of `fastres.kernels`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastres.bench.timing import Call
from fastres.kernels import Norm, batch_norm_act, dual_batch_norm_act
from fastres.kernels.batch_norm import reference
from fastres.kernels.batch_norm.functional import track

PASSES = ("forward", "backward", "forward+backward", "eval")
"""A training step's forward and backward, alone and together, and the forward of evaluation."""

# Tensors of the size of x that must cross the memory bus in the forward, the backward and the evaluation's forward.
# First the floor, at which every input is read once and every output written once; the backward reads the output's
# gradient and x (and z), and writes theirs. Then what two kernels need, one for the statistics and one for the rest: x
# (and z) read twice forward; in the backward the gradient twice too, except that with an addition the second kernel
# reads the residual's gradient, which the first has written. After an addition the backward needs to know the sign of
# the sum: of a ReLU the forward writes a mask, a bit an element; for other activations the residual is read again.
# In the other forms it follows from x and z.
_FLOOR = {"none": (2, 3, 2), "add": (3, 4, 3), "dual": (3, 5, 3)}
_TWO_KERNELS = {"none": (3, 5, 2), "add": (4, 6, 3), "dual": (5, 8, 3)}


@dataclass(frozen=True)
class Case:
    """One shape and form: activation(BN(x)), activation(BN(x) + residual) or activation(BN(x) + BN(z))."""

    join: str
    """`none`, `add` a residual, or `dual`: add another BN."""
    activation: str
    batch: int
    channels: int
    height: int
    width: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def form(self) -> str:
        """Name of what is computed, such as `bn_add_relu`."""
        name = {"none": "bn", "add": "bn_add", "dual": "dual_bn_add"}[self.join]
        return name if self.activation == "none" else f"{name}_{self.activation}"

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.form} {self.batch}x{self.channels}x{self.height}x{self.width} {dtype}"

    @property
    def tensor_bytes(self) -> int:
        """Bytes of x."""
        return self.batch * self.channels * self.height * self.width * self.dtype.itemsize

    def floor_bytes(self, which: str) -> int:
        """Bytes that a pass must move: every input read once, every output written once; vectors of C not counted."""
        return self._bytes(_FLOOR, which)

    def two_kernel_bytes(self, which: str) -> int:
        """Bytes that a pass of two kernels moves where nothing stays in the L2 between them."""
        return self._bytes(_TWO_KERNELS, which)

    def _bytes(self, table: dict[str, tuple[int, int, int]], which: str) -> int:
        forward, backward, evaluation = table[self.join]
        mask_bits = self.join == "add" and self.activation == "relu"
        backward += self.join == "add" and self.activation in ("silu", "gelu")
        passes = {"forward": (forward, 1), "backward": (backward, 1), "forward+backward": (forward + backward, 2)}
        tensors, masks = {**passes, "eval": (evaluation, 0)}[which]
        elements = self.tensor_bytes // self.dtype.itemsize
        return tensors * self.tensor_bytes + masks * mask_bits * elements // 8


class Problem(NamedTuple):
    """A case's tensors. x, other and gradient: [N, C, H, W], channels-last; the norms' vectors: [C], fp32."""

    x: Tensor
    norm: Norm
    other: Tensor | None
    """The residual, which is the output of a ReLU, or z."""
    other_norm: Norm | None
    gradient: Tensor
    """Of the output."""
    activation: str

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors that a backward differentiates for."""
        tensors = {"x": self.x, "weight": self.norm.weight, "bias": self.norm.bias, "other": self.other}
        if self.other_norm is not None:
            tensors |= {"other_weight": self.other_norm.weight, "other_bias": self.other_norm.bias}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @property
    def statistics(self) -> dict[str, Tensor]:
        """The running statistics, which training changes in place."""
        norms = {"": self.norm, "other_": self.other_norm}
        given = {prefix: norm for prefix, norm in norms.items() if norm is not None}
        keys = ("running_mean", "running_var")
        tensors = {f"{prefix}{key}": getattr(norm, key) for prefix, norm in given.items() for key in keys}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def copy(self, dtype: torch.dtype | None = None) -> "Problem":
        """The same values in tensors of their own; with `dtype` float64 all of them in it, the vectors too."""

        def tensor(value: Tensor) -> Tensor:
            wide = dtype is not None and (value.dim() == 4 or dtype == torch.float64)
            copied = value.detach().to(dtype if wide else value.dtype, copy=True)
            return copied.requires_grad_(value.requires_grad)

        copied: Problem = tree_map_only(Tensor, tensor, self)
        return copied


def problem(case: Case, device: torch.device, seed: int = 0) -> Problem:
    """Random tensors of a case; channels differ in mean, deviation, weight and bias."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def maps() -> Tensor:
        return normal(case.batch, case.channels, case.height, case.width)

    def laid_out(value: Tensor) -> Tensor:
        return value.to(case.dtype).contiguous(memory_format=torch.channels_last)

    def norm() -> Norm:
        weight, bias, mean, deviation = (normal(case.channels) for _ in range(4))
        return Norm((1 + weight / 4).requires_grad_(), bias.requires_grad_(), mean, deviation.square() + 0.5)

    def shifted() -> Tensor:
        scale, shift = (1 + normal(case.channels).abs() for _ in range(2))
        return maps() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    others = {"none": lambda: None, "add": lambda: laid_out(maps().relu_()), "dual": lambda: laid_out(shifted())}
    other = others[case.join]()
    return Problem(
        laid_out(shifted()).requires_grad_(),
        norm(),
        None if other is None else other.requires_grad_(),
        norm() if case.join == "dual" else None,
        laid_out(maps()),
        case.activation,
    )


Forward = Callable[[Problem, bool], Tensor]
"""(problem, training) to the output."""


def ours(problem: Problem, training: bool) -> Tensor:
    """fastres.kernels, as a user calls it."""
    if problem.other is not None and problem.other_norm is not None:
        y = dual_batch_norm_act(
            problem.x, problem.norm, problem.other, problem.other_norm, training=training, activation=problem.activation
        )
    else:
        norm = problem.norm
        y = batch_norm_act(
            problem.x,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            problem.other,
            training=training,
            momentum=norm.momentum,
            eps=norm.eps,
            activation=problem.activation,
        )
    assert isinstance(y, Tensor)  # a pair only with fork
    return y


def compiled() -> Forward:
    """BN(x) and its activation in training, as a compiled step does it on a CPU: for cases that join nothing.

    Forward and backward are compiled apart, and the backward reads the output, which a step keeps for the convolution
    that follows. Compiled as one function, a ReLU alone would keep its mask instead, a bool an element, and what
    TorchInductor makes of storing and loading bools takes ten times as long as all the rest (AVX-512, torch 2.13).
    """

    def forward_pass(problem: Problem) -> tuple[Tensor, list[Tensor]]:
        x, norm = problem.x, problem.norm
        terms, eps = (norm.weight, norm.bias), (norm.eps, norm.eps)
        y, moments = reference.forward(x, None, terms, None, eps, problem.activation)
        mean, var = moments
        track(norm, mean, var, x.numel() // x.shape[1])
        return y, moments

    forwards = torch.compile(forward_pass, dynamic=False, fullgraph=True)
    backwards = torch.compile(reference.backward, dynamic=False, fullgraph=True)

    class Apart(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y, moments = forwards(problem)
            # Detached: Dynamo asks each tensor for its .grad, at which PyTorch warns of one that is no leaf.
            saved = y.detach() if problem.activation == "relu" else None
            ctx.save_for_backward(x, saved, weight, bias, *moments)
            ctx.options = (problem.norm.eps, problem.norm.eps), problem.activation
            return y

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            x, y, weight, bias, *moments = ctx.saved_tensors
            eps, activation = ctx.options
            dx, _, sums = backwards(gradients[0], x, None, y, moments, (weight, bias), None, eps, activation)
            return None, dx, sums[1], sums[0]

    def forward(problem: Problem, training: bool) -> Tensor:
        assert training and problem.other is None
        y: Tensor = Apart.apply(problem, problem.x, problem.norm.weight, problem.norm.bias)
        return y

    return forward


def call(which: str, forward: Forward, problem: Problem) -> Call:
    """One pass of a variant as a function without arguments.

    A backward alone is autograd over the graph of one forward that is kept, so it must be made where it is captured
    (`timing.side_stream`); a forward in training saves for its backward what a training step would.
    """
    if which == "forward":
        return lambda: forward(problem, True)
    if which == "backward":
        problem = problem.copy()  # PyTorch's own refuses when another forward has moved the running statistics since
        y = forward(problem, True)
    leaves = tuple(problem.leaves.values())
    if which == "backward":
        return lambda: torch.autograd.grad(y, leaves, problem.gradient, retain_graph=True)
    if which == "forward+backward":
        return lambda: torch.autograd.grad(forward(problem, True), leaves, problem.gradient)

    def evaluation() -> Tensor:
        with torch.no_grad():
            return forward(problem, False)

    return evaluation
