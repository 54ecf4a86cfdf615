"""Operations and bytes of what a training step consists of: counted from shapes, not measured.

*Operations*: two for each multiply-add of a product, and those of the arithmetic that the definitions of BatchNorm and
of the optimizers ask for; a root counts as one, as does an activation. *Bytes*: every input read once and every output
written once, as if nothing stayed in a cache from one part to the next. Vectors of one value a channel are left out.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fastres.bench.norms import Case
from fastres.layers import BatchNormAct2d, BatchNormAddAct2d
from fastres.layers.convolution import stride_is_unsafe
from fastres.optim import rule_of
from fastres.optim.groups import group_names
from fastres.recipe.optimizers import OptimizerConfig

# Per value. Forward: the mean (1), the variance (3: subtract, square, add), scale and shift (2). Backward: the
# normalised value (2), the sums of the gradient (1) and of its product with that value (2), the gradient (4).
_NORM_OPERATIONS = {"forward": 6, "backward": 9}


@dataclass(frozen=True)
class Convolution:
    """A convolution as a step meets it."""

    x: tuple[int, ...]
    """[C, H, W] of an input."""
    y: tuple[int, ...]
    """[O, H, W] of its output."""
    weight: tuple[int, ...]
    """[O, C, k, k]."""
    geometry: tuple[Any, ...]
    """Stride, padding and dilation, as PyTorch's operator takes them."""
    first: bool
    """Whether it reads the images, which need no gradient."""
    trains: bool
    """Whether its weight does."""

    def operations(self, which: str, batch: int) -> int:
        """Of one pass, `forward` or `backward`; the latter gives the gradients of input and weight that are needed."""
        product = 2 * prod(self.weight[1:]) * prod(self.y) * batch
        return product if which == "forward" else product * ((not self.first) + self.trains)

    def values(self, which: str, batch: int) -> int:
        """Read and written in one pass."""
        x, y, weight = batch * prod(self.x), batch * prod(self.y), prod(self.weight)
        if which == "forward":
            return x + weight + y
        if self.first and not self.trains:
            return 0
        return y + (0 if self.first else weight + x) + (x + weight if self.trains else 0)

    def call(self, which: str, batch: int, like: Callable[..., Tensor]) -> partial[Any]:
        """One pass by the library's own operator; `like(*shape)` makes a tensor."""
        x, weight, gradient = like(batch, *self.x), like(*self.weight), like(batch, *self.y)
        geometry, stride = self.geometry, self.geometry[0][0]
        if stride_is_unsafe(x, weight.shape[2], stride):
            x, geometry = x[:, :, ::stride, ::stride], ((1, 1), *geometry[1:])
        rest = (*geometry, False, (0, 0), 1)
        if which == "forward":
            return partial(torch.ops.aten.convolution, x, weight, None, *rest)
        wanted = (not self.first, self.trains, False)
        return partial(torch.ops.aten.convolution_backward, gradient, x, weight, None, *rest, wanted)


@dataclass(frozen=True)
class Layers:
    """The layers of a network, in the order in which an image meets them."""

    convolutions: list[Convolution]
    norms: list[Case]
    """BNs with the addition and the activation after them, of one image."""
    linear: int
    """Multiply-adds of the classifier for an image."""


def layers_of(network: nn.Module, image_size: int) -> Layers:
    """Walk one image through a copy of the network without storage (the meta device)."""
    shadow = copy.deepcopy(network).to("meta").eval()
    convolutions: list[Convolution] = []
    norms: list[Case] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output  # a forked pair
        shape = tuple(y.shape[1:])
        if isinstance(module, nn.Conv2d):
            geometry = (module.stride, module.padding, module.dilation)
            first, trains = not convolutions, module.weight.requires_grad
            x = tuple(inputs[0].shape[1:])
            convolutions.append(Convolution(x, shape, tuple(module.weight.shape), geometry, first, trains))
        elif isinstance(module, BatchNormAddAct2d):
            # The plain BN of a skip comes right before: a step does both in one pass, which hooks take apart.
            dual = bool(norms) and norms[-1] == Case("none", "none", 1, *shape)
            if dual:
                norms.pop()
            norms.append(Case("dual" if dual else "add", module.activation, 1, *shape))
        else:
            activation = module.activation if isinstance(module, BatchNormAct2d) else "none"
            norms.append(Case("none", activation, 1, *shape))

    for module in shadow.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(note)
    with torch.no_grad():
        shadow(torch.empty(1, 3, image_size, image_size, device="meta"))
    linear = sum(module.weight.numel() for module in shadow.modules() if isinstance(module, nn.Linear))
    return Layers(convolutions, norms, linear)


def norm_operations(case: Case, which: str) -> int:
    """Of one pass, `forward` or `backward`, over a BN, the addition after it and the activation after that."""
    each = _NORM_OPERATIONS[which] * (2 if case.join == "dual" else 1)
    each += which == "forward" and case.join != "none"
    each += case.activation != "none"
    return each * case.batch * case.channels * case.height * case.width


def update_work(options: OptimizerConfig, network: nn.Module) -> tuple[int, int]:
    """Operations and bytes of the optimizer's update, all in fp32, without products of matrices. Raises LookupError for
    an optimizer whose update rule is not registered."""
    return rule_of(options).work(group_names(network))


def total(parts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Operations and bytes of several things together."""
    return sum(operations for operations, _ in parts), sum(moved for _, moved in parts)
