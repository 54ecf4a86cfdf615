"""Summary of a network: shapes, parameters and multiply-adds of each layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One convolution, BN or linear layer. `output` is its shape without the batch; `multiply_adds` is for one image's
    forward pass, and 0 for BN, whose work is bytes and not products."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def layers(network: nn.Module, image_size: int) -> list[Layer]:
    """The layers in the order in which a forward pass of one image [1, 3, image_size, image_size] meets them.

    The pass runs on a copy without storage (the meta device): no arithmetic, and `network` is left as it is.
    """
    import copy

    shadow = copy.deepcopy(network).to("meta").eval()
    entries: list[Layer] = []

    def note(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
            output = output[0] if isinstance(output, tuple) else output  # a forked pair
            shape = tuple(output.shape[1:])
            if isinstance(module, nn.Conv2d):
                side = module.kernel_size[0]
                kind = f"conv {side}×{side}" + (f", stride {module.stride[0]}" if module.stride[0] > 1 else "")
                products = module.weight[0].numel() * output.numel()
            elif isinstance(module, nn.Linear):
                kind, products = "linear", module.weight.numel()
            else:
                kind, products = "BN", 0
            entries.append(Layer(name, kind, shape, count_parameters(module), products))

        module.register_forward_hook(hook)

    for name, module in shadow.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            note(name, module)
    with torch.no_grad():
        shadow(torch.empty(1, 3, image_size, image_size, device="meta"))
    return entries
