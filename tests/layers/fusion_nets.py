"""Networks to fuse, and what to compare of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastres.data.compat.torchvision import import_torchvision

import_torchvision()
import timm.models.resnet  # noqa: E402 (imports torchvision)


def small_timm(**options: Any) -> nn.Module:
    """timm's ResNet with one block a stage, of few channels; its stem is three convolutions."""
    torch.manual_seed(0)
    block = timm.models.resnet.BasicBlock
    arguments = {"num_classes": 7, "stem_width": 4, "stem_type": "deep", "channels": (16, 16, 32, 32), **options}
    return timm.models.resnet.ResNet(block, (1, 1, 1, 1), **arguments)


class Forms(nn.Module):
    """BN, what `after` does with its result and a residual, on 4 channels. Calls of `after`: self, bn(x), r."""

    def __init__(self, after: Callable[["Forms", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.after = after
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu, self.relu_, self.silu, self.gelu = nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.GELU()
        self.tanh_gelu, self.sigmoid, self.identity = nn.GELU(approximate="tanh"), nn.Sigmoid(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        r = self.conv(x)
        return self.after(self, self.bn(x * 2), r)


def shaken(model: nn.Module) -> nn.Module:
    """Weights and statistics that are no longer 0 or 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                tensors = (module.weight, module.bias, module.running_mean, module.running_var)
                for tensor in [tensor for tensor in tensors if tensor is not None]:
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def results(model: nn.Module, x: Tensor, autocast: bool = False) -> dict[str, Tensor]:
    """Output and gradients after one forward and backward, and statistics, all in fp64."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.double().square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        name: value.detach().double() for name, value in {"": y, **gradients, **dict(model.named_buffers())}.items()
    }


def assert_close_to_fp64(ours: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    # Some gradients are 0 in exact arithmetic: what is left are roundings of the sums they cancel in. A millionth of
    # the largest value, ten roundings of fp32, covers these where the other happens to be exact.
    tiny = 1e-6 * max(value.abs().max() for value in truth.values())
    for (name, value), mine, other in zip(truth.items(), ours.values(), theirs.values(), strict=True):
        # Twice the error of the same precision without fusing, the project's criterion for every kernel.
        assert (mine - value).abs().max() <= 2 * (other - value).abs().max() + tiny, name
