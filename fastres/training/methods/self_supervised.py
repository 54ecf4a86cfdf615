"""Common parts of self-supervised methods: a network that learns by comparing views of an image, and the views."""

from abc import abstractmethod
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.errors import UserError
from fastres.models import Network
from fastres.recipe import Recipe, SelfSupervisedConfig
from fastres.training.data import DataModule
from fastres.training.methods.base import Method
from fastres.training.methods.probe import fit_classifier
from fastres.utils.progress import Say

Config = TypeVar("Config", bound=SelfSupervisedConfig)


class Pretraining(Network):
    """A network and the projection of its features in which views are compared. `backbone` is what is kept.

    A subclass makes the projection and defines `compare`.
    """

    projection: nn.Module

    def __init__(self, backbone: Network) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = f"backbone.{backbone.head}"

    def features(self, x: Tensor) -> Tensor:
        return self.backbone.features(x)

    def classify(self, features: Tensor) -> Tensor:
        return self.backbone.classify(features)

    def group_of(self, name: str, parameter: nn.Parameter) -> str:
        if name.startswith("backbone."):
            return self.backbone.group_of(name.removeprefix("backbone."), parameter)
        return "head" if parameter.ndim > 1 else "bias"

    @abstractmethod
    def compare(self, views: Tensor, batch: int, average: nn.Module | None) -> tuple[Tensor, Tensor]:
        """Logits and loss of a training step.

        Args:
            views: [V·B, 3, H, W], view 0 of all images, then view 1, …
            batch: B.
            average: the moving average of this module, where the method has one.

        Returns the logits [B, classes] of each image's first view, whose gradient reaches the classifier alone, and the
        mean loss, fp32, of the method.
        """


class SelfSupervised(Method[Config]):
    """What such methods have in common: their network, and the probe of what it has learnt."""

    def backbone(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, Pretraining)
        return network.backbone

    def forward(
        self, network: nn.Module, images: Tensor, batch: int, average: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(network, Pretraining)
        return network.compare(images, batch, average)

    def after_training(
        self, network: Network, data_module: DataModule, recipe: Recipe, device: torch.device, say: Say
    ) -> dict[str, float]:
        say("a linear probe and nearest neighbours on the features")
        return fit_classifier(network, data_module, recipe, self.config.neighbours, device)


def width(backbone: Network) -> int:
    """Number of features of an image."""
    return backbone.classifier.in_features


def reduced(images: Tensor, size: int) -> Tensor:
    """[N, 3, H, W] to [N, 3, size, size] by means over equal squares; `size` divides H, which is W."""
    factor = images.shape[2] // size
    return images if factor == 1 else F.avg_pool2d(images, factor)


def check_size(backbone: Network, image_size: int, size: int, key: str) -> None:
    """Raise UserError, naming `key`, where its features of images of `size` pixels are not those of whole ones."""
    if image_size % size:
        fitting = [side for side in range(1, image_size + 1) if image_size % side == 0 and side >= 8]
        raise UserError(f"{key} = {size} does not divide the images' {image_size} pixels: set it to one of {fitting}")
    training = backbone.training
    try:
        with torch.no_grad():
            feature_count = backbone.eval().features(torch.zeros(1, 3, size, size)).shape[1]
    except RuntimeError:  # smaller than a pool
        feature_count = 0
    finally:
        backbone.train(training)
    if feature_count != width(backbone):
        raise UserError(
            f"{key} = {size}: this network has other features of such small images; set it to {image_size}, or take a "
            "model that averages over the whole map (model.pool = 0)"
        )
