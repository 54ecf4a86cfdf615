"""DINO: a student learns to say of any view of an image what its own moving average says of another one (Caron et al.
2021, "Emerging Properties in Self-Supervised Vision Transformers", section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.augment import Augment
from fastres.augment.views import Kind, Views
from fastres.models import Network
from fastres.optim import Ema
from fastres.recipe import DinoConfig, Recipe
from fastres.training.methods.self_supervised import Pretraining, SelfSupervised, check_size, reduced, width

GLOBAL = 2
"""Views that the teacher sees."""


class ProjectionHead(nn.Module):
    """Features [N, F] to fp32 outputs [N, prototypes], each a cosine (section 3.1 and appendix C): three linear layers
    with GELU between them, L2 normalisation, and prototypes of length 1."""

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                # 0.02 where there are 2,048 inputs, as in the paper's head; with few, 0.02 would shrink what comes out
                # a thousand times, and the normalisation after it would enlarge the gradient as much.
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.prototypes)

    def forward(self, x: Tensor) -> Tensor:
        points = F.normalize(self.layers(x).float(), dim=1)
        return F.linear(points, F.normalize(self.prototypes, dim=1)).float()


class DinoNetwork(Pretraining):
    """The student: backbone, projection head, and the centre of the teacher's outputs, fp32 [prototypes].

    Raises UserError where the network has no features of views of `options.local_size`.
    """

    projection: ProjectionHead
    centre: Tensor

    def __init__(self, backbone: Network, options: DinoConfig, image_size: int) -> None:
        super().__init__(backbone)
        if options.local_views:
            check_size(backbone, image_size, options.local_size, "method.local_size")
        self.options = options
        self.projection = ProjectionHead(width(backbone), options.hidden, options.bottleneck, options.prototypes)
        self.register_buffer("centre", torch.zeros(options.prototypes))

    def compare(self, views: Tensor, batch: int, average: nn.Module | None) -> tuple[Tensor, Tensor]:
        assert isinstance(average, DinoNetwork)
        options, whole = self.options, views[: GLOBAL * batch]
        features = self.features(whole)
        outputs = self.projection(features)
        if options.local_views:  # of another size: a pass of its own
            local = self.projection(self.features(reduced(views[GLOBAL * batch :], options.local_size)))
            outputs = torch.cat([outputs, local])
        with torch.no_grad():
            told = average.projection(average.features(whole)).view(GLOBAL, batch, -1)
        said, heats = (
            outputs.view(-1, batch, options.prototypes),
            (options.student_temperature, options.teacher_temperature),
        )
        loss = cross_entropies(said, told, self.centre, *heats)
        with torch.no_grad():  # for the next step
            self.centre.lerp_(told.mean((0, 1)), 1 - options.centre_momentum)
        return self.classify(features[:batch].detach()), loss


class Dino(SelfSupervised[DinoConfig]):
    """The method: two global views and small local ones, and a teacher that is the student's moving average."""

    def views(self, recipe: Recipe, augment: Augment, images: int) -> Views:
        kinds = [Kind(augment, GLOBAL)]
        if self.config.local_views:
            policy = recipe.augment.model_copy(update={"random_resized_crop": self.config.local_crop})
            kinds.append(Kind(augment.with_policy(policy), self.config.local_views))
        return Views(kinds, images)

    def network(self, backbone: Network, image_size: int) -> DinoNetwork:
        return DinoNetwork(backbone, self.config, image_size)

    def average(self, network: nn.Module, recipe: Recipe, steps: int) -> Ema:
        return Ema(network, self.config.teacher_momentum, cosine_steps=steps)


def cross_entropies(student: Tensor, teacher: Tensor, centre: Tensor, heat: float, teacher_heat: float) -> Tensor:
    """Mean cross-entropy of the student's outputs [V, B, K] against the teacher's [T, B, K], T ≤ V, of the same T first
    views, over the pairs of different views (equation 3): −Σ softmax((teacher − centre) / teacher_heat) ·
    log softmax(student / heat)."""
    wanted = ((teacher - centre) / teacher_heat).softmax(2)
    log_probabilities = (student / heat).log_softmax(2)
    views, taught = len(student), len(teacher)
    # Σ over different views = (Σ teacher)·(Σ student) − Σ over the same view.
    every = (wanted.sum(0) * log_probabilities.sum(0)).sum(1)
    same = (wanted * log_probabilities[:taught]).sum((0, 2))
    return (same - every).mean() / (taught * (views - 1))
