"""A plain, wide network for a few epochs on small images, after those that hold the speed records on CIFAR-10.

The architecture is that of airbench (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU"), which descends
from hlb-CIFAR10 (Balsam 2023) and cifar10-fast (Page 2019): a frozen layer that whitens 2×2 patches, then groups of
3×3 convolutions, each of which halves the map right after its first convolution.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.errors import UserError
from fastres.layers import BatchNormAct2d, BatchNormAddAct2d
from fastres.layers.convolution import Conv2d
from fastres.models.network import FAMILIES, GroupRate, Network, configure_norms, start_as_identity
from fastres.recipe import SpeednetConfig
from fastres.recipe.optimizers import ElementwiseConfig

PATCH = 2
"""Side of the patches that the first layer whitens."""


class Group(nn.Module):
    """3×3 convolution, 2×2 max-pool, BN, activation; then one more convolution with BN and activation, or, at depth 3,
    two more with a skip around them. [N, in_channels, H, W] → [N, channels, ⌊H/2⌋, ⌊W/2⌋].

    Pooling before BN leaves BN and activation a quarter of the pixels, and side by side, so that they are one pass.
    """

    def __init__(self, in_channels: int, channels: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.conv1, self.norm1 = Conv2d(in_channels, channels, 3), BatchNormAct2d(channels)
        self.conv2, self.norm2 = Conv2d(channels, channels, 3), BatchNormAct2d(channels)
        if depth == 3:
            self.conv3, self.norm3 = Conv2d(channels, channels, 3), BatchNormAddAct2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2)
        if self.depth == 2:
            return self.norm2(self.conv2(self.norm1(x)))
        x, skip = self.norm1(x, fork=True)
        return self.norm3(self.conv3(self.norm2(self.conv2(x))), skip)


@FAMILIES.register(SpeednetConfig)
class Speednet(Network):
    """Whitening layer, activation, groups of convolutions, max-pool, linear classifier without bias, scaled logits.

    `recipe.Speednet` explains the options. `initialise` computes the whitening layer; until then it is random. Other
    weights start as torch draws them, uniform within ±1/√(inputs of a filter), except where `dirac_init` or
    `unit_std_head` say otherwise. Raises UserError where the image is too small for the groups or the pool.
    """

    head = "fc"

    def __init__(
        self,
        widths: list[int],
        depth: int = 2,
        *,
        classes: int,
        image_size: int = 32,
        pool: int = 0,
        activation: str = "gelu",
        whiten_eps: float = 5e-4,
        whiten_images: int = 5000,
        dirac_init: bool = True,
        unit_std_head: bool = True,
        bn_scale: bool = False,
        bn_momentum: float = 0.4,
        bn_eps: float = 1e-12,
        dropout: float = 0.0,
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.activation, self.logit_scale, self.stages = activation, logit_scale, len(widths)
        self.initial_images, self.whiten_eps = whiten_images, whiten_eps
        filters = 3 * PATCH**2
        self.whiten = nn.Conv2d(3, 2 * filters, PATCH)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        inputs, side = 2 * filters, image_size - PATCH + 1
        for stage, width in enumerate(widths):
            self.add_module(f"group{stage + 1}", Group(inputs, width, depth))
            inputs, side = width, side // 2
        if side == 0:
            raise UserError(
                f"model.widths has {len(widths)} groups, each of which halves the map, and {image_size}-pixel images "
                f"have nothing left after {(image_size - PATCH + 1).bit_length() - 1}: take fewer groups"
            )
        if pool > side:
            raise UserError(
                f"model.pool = {pool}, but {image_size}-pixel images leave a map of {side}×{side} before the pool: "
                f"set model.pool to at most {side}, or 0 for the whole map"
            )
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs * (side // (pool or side)) ** 2, classes, bias=False)
        configure_norms(self, activation=activation, scale=bn_scale, momentum=bn_momentum, eps=bn_eps)
        if dirac_init:
            for module in self.modules():
                if isinstance(module, Conv2d):
                    start_as_identity(module)
        if unit_std_head:
            with torch.no_grad():
                self.fc.weight.div_(self.fc.weight.std())

    @torch.no_grad()
    def initialise(self, batches: Iterable[Tensor]) -> None:
        """Make the first layer whiten: its first 12 filters turn the patches of `batches` into values without
        correlation and with a mean square of 1, less where that is not far above `whiten_eps`; the other 12 are their
        negatives, because an activation would halve the information of each."""
        self.whiten.weight.copy_(whitening_filters(batches, PATCH, self.whiten_eps))

    def group_of(self, name: str, parameter: nn.Parameter) -> str:
        """As for every network; the bias of the whitening layer is a group of its own, `whiten_bias`."""
        return "whiten_bias" if name == "whiten.bias" else super().group_of(name, parameter)

    def group_rates(self, optimizer: ElementwiseConfig) -> dict[str, GroupRate]:
        return {"whiten_bias": GroupRate(optimizer.whiten_bias_lr_factor, optimizer.whiten_bias_epochs)}

    def features(self, x: Tensor) -> Tensor:
        x = getattr(F, self.activation)(self.whiten(x))
        for stage in range(self.stages):
            x = self.get_submodule(f"group{stage + 1}")(x)
        x = F.max_pool2d(x, self.pool or x.shape[2])
        return torch.flatten(x, 1)


def whitening_filters(batches: Iterable[Tensor], side: int, eps: float) -> Tensor:
    """fp64 [2n, C, side, side] with n = C·side²: the eigenvectors v of the patches' second moments, each over
    √(eigenvalue + eps), largest eigenvalue first, and their negatives. `batches` [B, C, H, W] are read once.

    Sums are in fp64. Of v and −v, the one whose largest entry is positive comes first: the libraries' choice differs.
    """
    moments, patches, channels = torch.zeros(()), 0, 0
    for images in batches:
        channels = images.shape[1]
        flat = images.double().unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        moments = moments + flat.t() @ flat
        patches += len(flat)
    if not patches:
        raise ValueError("whitening needs images")
    values, vectors = torch.linalg.eigh((moments / patches).cpu())  # 12×12: a GPU's solver takes longer to load
    rows = (vectors / (values.clamp(min=0) + eps).sqrt()).t().flip(0)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    rows = rows * largest.sign()
    return torch.cat([rows, -rows]).view(-1, channels, side, side)
