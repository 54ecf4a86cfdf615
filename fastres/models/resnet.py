"""Residual networks of basic blocks (He et al. 2016), with the names of torchvision's parameters.

The same names mean that a torchvision `state_dict` of a ResNet-18 or -34 loads with `strict=True` into the ImageNet
form, and that a network trained here loads into torchvision's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.errors import UserError
from fastres.layers import BatchNormAct2d, BatchNormAddAct2d, dual
from fastres.layers.convolution import Conv2d
from fastres.layers.norms import has_global_hooks, is_plain
from fastres.layers.tracing import is_traced
from fastres.models.network import FAMILIES, Network, configure_norms, start_as_identity
from fastres.recipe import ModelConfig


class BasicBlock(nn.Module):
    """k×k convolution, BN, ReLU, k×k convolution, BN, plus the skip, ReLU (He et al. 2016, figure 5 left); another
    activation where `bn1` and `bn2` have one.

    [N, in_channels, H, W] → [N, channels, ⌈H/stride⌉, ⌈W/stride⌉]. Where that changes the shape, the skip is a
    convolution of side `skip_kernel` with BN (option B of section 4.1), else the identity.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, kernel: int = 3, skip_kernel: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, kernel, stride)
        self.bn1 = BatchNormAct2d(channels)
        self.conv2 = Conv2d(channels, channels, kernel)
        self.bn2 = BatchNormAddAct2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            convolution = Conv2d(in_channels, channels, skip_kernel, stride)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor, skip: Tensor | None = None, fork: bool = False) -> Any:
        """[N, in_channels, H, W] → the output, or with `fork` the output twice, for the next block's two readers.

        `skip` is what the skip reads, the second of a forked pair; None for x.
        """
        skip = x if skip is None else skip
        y = self.conv2(self.bn1(self.conv1(x)))
        if self.downsample is None:
            return self.bn2(y, skip, fork)
        convolution, norm = self.downsample
        parts = (self.downsample, norm, self.bn2)
        if type(norm) is not nn.BatchNorm2d or is_traced(y) or has_global_hooks() or not all(map(is_plain, parts)):
            return self.bn2(y, self.downsample(skip), fork)  # so that hooks run, and a norm that took its place
        return dual(self.bn2, norm, y, convolution(skip), self.bn2.activation, fork=fork)


@FAMILIES.register(ModelConfig)
class ResNet(Network):
    """Stem, stages of basic blocks, average pool, linear classifier.

    `forward` takes float images [N, 3, image_size, image_size] and returns logits [N, classes]. Every list has one
    entry a stage; `recipe.Model` explains the options. Convolutions start Kaiming-normal with fan-out (He et al.
    2015), BN at weight 1 and bias 0, as in torchvision and in the report's code. Raises UserError where strides and
    pool do not fit the image.
    """

    head = "fc"

    def __init__(
        self,
        blocks: list[int],
        channels: list[int],
        strides: list[int],
        kernels: list[int],
        skip_kernels: list[int],
        *,
        classes: int,
        image_size: int = 32,
        stem: str = "cifar",
        pool: int = 0,
        dropout: float = 0.0,
        zero_init_residual: bool = False,
        activation: str = "relu",
        dirac_init: bool = False,
        bn_scale: bool = True,
        bn_momentum: float = 0.1,
        bn_eps: float = 1e-5,
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.stem, self.pool, self.stages, self.logit_scale = stem, pool, len(blocks), logit_scale
        width = channels[0]
        if stem == "imagenet":
            self.conv1 = Conv2d(3, width, 7, 2)
            side = -(-image_size // 4)
        else:
            self.conv1 = Conv2d(3, width, 3)
            side = image_size
        self.bn1 = BatchNormAct2d(width)
        for stage in range(self.stages):
            layers = []
            for block in range(blocks[stage]):
                stride = strides[stage] if block == 0 else 1
                layers.append(BasicBlock(width, channels[stage], stride, kernels[stage], skip_kernels[stage]))
                width = channels[stage]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            side = (side - 1) // strides[stage] + 1
        if pool > side:
            raise UserError(
                f"model.pool = {pool}, but {image_size}-pixel images leave a map of {side}×{side} before the pool: "
                f"set model.pool to at most {side}, or 0 for the whole map"
            )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width * (side // pool) ** 2 if pool else width, classes)
        configure_norms(self, activation=activation, scale=bn_scale, momentum=bn_momentum, eps=bn_eps)
        self._draw_weights(zero_init_residual, dirac_init)

    def _draw_weights(self, zero_init_residual: bool, dirac_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
        if dirac_init:
            for name, module in self.named_modules():
                if isinstance(module, nn.Conv2d) and name != "conv1":
                    start_as_identity(module)

    def features(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.stem == "imagenet":
            x = skip = F.max_pool2d(self.bn1(x), 3, 2, 1)
        else:
            x, skip = self.bn1(x, fork=True)
        # A block's output has two readers, the next block's convolution and its skip: forked, their gradients meet in
        # the backward kernel that reads them anyway.
        blocks = [block for stage in range(self.stages) for block in self.get_submodule(f"layer{stage + 1}").children()]
        for block in blocks[:-1]:
            x, skip = block(x, skip, fork=True)
        x = blocks[-1](x, skip)
        x = F.avg_pool2d(x, self.pool) if self.pool else F.adaptive_avg_pool2d(x, 1)
        return torch.flatten(x, 1)
