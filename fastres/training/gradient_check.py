"""A compiled step's first gradients, where they look wrong, against eager ones."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastres.engine.compile import Compiled

Outcome = tuple[Tensor, Tensor]
"""Loss and correct predictions of a step."""
ROUNDING = 1e-6
"""Of the largest gradient: a smaller one may be zero in one order of sums and not in another."""


def first_step(
    network: nn.Module, compiled: Compiled, by_it: Callable[..., Outcome], eager: Callable[..., Outcome], *batch: Tensor
) -> Outcome:
    """What `by_it` gives for `batch`, which runs `compiled` and leaves gradients in `network`; or what `eager` does,
    where the compiled code loses a gradient, and `compiled` has then given up.

    Compiled by torch 2.11, a network trained its last layer alone: the gradients of all others were zero everywhere,
    and nothing reported it. Zero can be right, below a residual branch whose last weight starts at zero: only where
    there is such a gradient, or none, the eager step is taken too. One of the two counts, and statistics and random
    numbers are as if the other had never been.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    outcome = by_it(*batch)
    suspects = [name for name, size in _sizes(network).items() if size == 0]
    if not compiled.active or not suspects:
        return outcome
    after = [buffer.clone() for buffer in network.buffers()]
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad(set_to_none=True)
    _set_buffers(network, before)
    devices = {parameter.device for parameter in network.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices, device_type="cuda"):
        eager_outcome = eager(*batch)
    sizes = _sizes(network)
    lost = [name for name in suspects if sizes[name] > ROUNDING * max(sizes.values())]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        compiled.give_up(
            f"compiled by torch {torch.__version__}, the gradient of {lost[0]}{more} is zero, which it is not eagerly"
        )
        return eager_outcome
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.grad = gradient
    _set_buffers(network, after)
    return outcome


def _sizes(network: nn.Module) -> dict[str, float]:
    """The largest magnitude in each gradient, NaN where one is, and 0 where there is none."""
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}
    given = [gradient for gradient in gradients.values() if gradient is not None]
    sizes = iter(torch.stack(torch._foreach_norm(given, float("inf"))).tolist() if given else ())
    return {name: 0.0 if gradient is None else next(sizes) for name, gradient in gradients.items()}


def _set_buffers(network: nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), values, strict=True):
            buffer.copy_(value)
