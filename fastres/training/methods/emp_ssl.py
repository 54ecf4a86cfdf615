"""EMP-SSL: the patches of an image are drawn to their mean, while those of different images spread (Tong et al. 2023,
"EMP-SSL: Towards Self-Supervised Learning in One Training Epoch", section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.augment import Augment
from fastres.augment.views import Kind, Views
from fastres.models import Network
from fastres.recipe import EmpSslConfig, Recipe
from fastres.training.methods.self_supervised import Pretraining, SelfSupervised, check_size, reduced, width


class EmpSslNetwork(Pretraining):
    """Backbone and projection: linear, BN, ReLU, linear.

    Raises UserError where the network has no features of patches of `options.patch_size`.
    """

    def __init__(self, backbone: Network, options: EmpSslConfig, image_size: int) -> None:
        super().__init__(backbone)
        check_size(backbone, image_size, options.patch_size, "method.patch_size")
        self.options = options
        self.projection = nn.Sequential(
            nn.Linear(width(backbone), options.hidden),
            nn.BatchNorm1d(options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, options.dimension),
        )

    def compare(self, views: Tensor, batch: int, average: nn.Module | None) -> tuple[Tensor, Tensor]:
        options = self.options
        features = self.features(reduced(views, options.patch_size))
        with torch.autocast(views.device.type, enabled=False):  # a determinant in 8 bits says nothing
            points = F.normalize(self.projection(features.float()), dim=1).view(options.patches, batch, -1)
            apart = coding_rate(points, options.distortion).mean()
            alignment = F.cosine_similarity(points, points.mean(0, keepdim=True), dim=2).mean()
        return self.classify(features[:batch].detach()), options.invariance * (1 - alignment) - apart


class EmpSsl(SelfSupervised[EmpSslConfig]):
    """The method: many patches of each image, all by the recipe's policy."""

    def views(self, recipe: Recipe, augment: Augment, images: int) -> Views:
        return Views([Kind(augment, self.config.patches)], images)

    def network(self, backbone: Network, image_size: int) -> EmpSslNetwork:
        return EmpSslNetwork(backbone, self.config, image_size)


def coding_rate(points: Tensor, distortion: float) -> Tensor:
    """[V]: ½·log det(I + d/(B·ε²)·Z·Zᵀ) of each set Z of B points in d dimensions, [V, B, d], ε² being `distortion`
    (section 3; Ma et al. 2007): how many nats tell the points apart up to that squared error."""
    count, dimension = points.shape[1:]
    # Of ZᵀZ and ZZᵀ, which have the same determinant with the identity added, the smaller one.
    smaller = points if count <= dimension else points.mT
    gram = smaller @ smaller.mT
    spread = torch.eye(gram.shape[1], device=points.device, dtype=points.dtype)
    factor, _ = torch.linalg.cholesky_ex(spread + dimension / (count * distortion) * gram)
    return factor.diagonal(dim1=1, dim2=2).log().sum(1)  # ½·log det = Σ log of the factor's diagonal
