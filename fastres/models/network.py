"""The base of all families of networks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastres.layers import BatchNormAct2d
from fastres.layers.converters import NotScriptable
from fastres.recipe.networks import NetworkConfig
from fastres.recipe.optimizers import ElementwiseConfig
from fastres.utils.registry import Registry


class GroupRate(NamedTuple):
    """The learning rate of a group of parameters, against that of the optimizer."""

    factor: float = 1.0
    fade_epochs: float = 0.0
    """Epochs over which it falls linearly to 0, in place of the schedule; 0: it follows the schedule."""


class Network(NotScriptable, nn.Module, ABC):
    """float images [N, 3, H, W] → logits [N, classes], and what a run asks besides.

    A run builds the network, hands `initialise` the first images, and trains `groups`. A family defines `features`,
    and sets what `classify` makes logits of them with. It is also made on the meta device, to count its parameters.
    """

    head: str
    """Name of the classifier, a linear layer."""
    dropout: nn.Module
    """Before the classifier."""
    logit_scale: float
    """After it."""
    initial_images: int = 0
    """Number of training images that `initialise` takes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Features [N, F] of images [N, 3, H, W], which the classifier takes."""

    def classify(self, features: Tensor) -> Tensor:
        """Logits [N, classes] of features [N, F]."""
        logits = self.classifier(self.dropout(features))
        # Scaled in fp32: bf16 would round them a second time.
        return logits if self.logit_scale == 1 else logits.float() * self.logit_scale

    @property
    def classifier(self) -> nn.Linear:
        """The linear layer that `head` names."""
        layer = self.get_submodule(self.head)
        assert isinstance(layer, nn.Linear)
        return layer

    def initialise(self, batches: Iterable[Tensor]) -> None:
        """Compute what is computed from training images instead of being drawn: by default nothing.

        `batches` hold `initial_images` of them (fewer where the set has fewer), [B, 3, H, W] on any device, normalised
        but not augmented. The result is part of the weights: a checkpoint needs no images.
        """

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters by what they are, for optimizers that treat them differently: `filters` have four
        axes, `bias` are BN's weights and biases, `head` is the classifier. Groups without parameters are left out."""
        by_group: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                by_group.setdefault(self.group_of(name, parameter), []).append(parameter)
        return by_group

    def group_of(self, name: str, parameter: nn.Parameter) -> str:
        """The group of one trainable parameter."""
        if name.startswith(f"{self.head}."):
            return "head"
        return "filters" if parameter.ndim == 4 else "bias"

    def group_rates(self, optimizer: ElementwiseConfig) -> dict[str, GroupRate]:
        """Of the groups that the family has of its own, those with a rate of their own; `optimizer` is the recipe's
        table, in which the rate may be set."""
        return {}


FAMILIES: Registry[type[NetworkConfig], type[Network]] = Registry("family of networks")
"""By the recipe's table, whose keys are arguments, `classes` and `image_size` besides."""


def configure_norms(network: nn.Module, *, activation: str, scale: bool, momentum: float, eps: float) -> None:
    """Set the options that all BNs of a network share.

    Without `scale` their weights stay at 1: what follows a BN can scale as well, and a step has less to update. They
    remain parameters, so that checkpoints keep their names.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = momentum, eps
            if not scale and module.weight is not None:
                module.weight.requires_grad_(False)
        if isinstance(module, BatchNormAct2d):
            module.activation = activation


@torch.no_grad()
def start_as_identity(convolution: nn.Conv2d) -> None:
    """Let the first filters pass the input channels on unchanged (Zagoruyko and Komodakis 2017, "DiracNets"); filters
    beyond the number of input channels stay as they were drawn."""
    nn.init.dirac_(convolution.weight[: convolution.in_channels])
