"""Quality of features: logistic regression on them (a linear probe), and nearest neighbours."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.evaluation.evaluator import Evaluator, everything
from fastres.models import Network
from fastres.recipe import Recipe
from fastres.training.data import DataModule, labels_of

DECAYS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""L2 penalties that are tried."""
HELD = 10
"""One in so many training images is held out to choose among them."""
ITERATIONS = 200
"""Of L-BFGS; on the features of 45,000 images it takes 60 to 150."""
VOTE_TEMPERATURE = 0.07
"""Neighbours vote with the weight exp(cosine / this) (Wu et al. 2018, section 3.4)."""
COMPARED = 1000
"""Images whose neighbours are sought at a time: with 50,000 training images 200 MB of similarities."""


class _Features(nn.Module):
    """A network that stops before its classifier."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


def fit_classifier(
    network: Network, data_module: DataModule, recipe: Recipe, neighbours: int, device: torch.device
) -> dict[str, float]:
    """Put a logistic regression on the features of the training images, not augmented, in the place of the network's
    classifier; returns fields of the summary: `knn_accuracy`, by so many `neighbours`, and `probe_decay`, the L2
    penalty that was chosen."""
    evaluator = Evaluator(_Features(network), data_module.augment, recipe.train, device)
    rows = torch.from_numpy(data_module.train.subset)
    labels = torch.from_numpy(data_module.train_labels)[rows].to(device)
    size = min(recipe.eval.batch_size, len(data_module.train_images))
    features = evaluator.logits(everything(data_module.train_images, size, device))[rows].to(device)
    tested = evaluator.logits(data_module.test).to(device)
    classes, biased = len(data_module.dataset.classes), network.classifier.bias is not None
    votes = nearest_neighbours(features, labels, tested, neighbours, classes)
    weight, bias, decay = linear_probe(features, labels, classes, biased=biased)
    with torch.no_grad():  # in place: what is captured reads these tensors
        network.classifier.weight.copy_(weight / network.logit_scale)
        if bias is not None:
            network.classifier.bias.copy_(bias / network.logit_scale)
    correct = (votes.argmax(1).cpu() == labels_of(data_module.test)).double().mean().item()
    return {"knn_accuracy": correct, "probe_decay": decay}


def linear_probe(
    features: Tensor, labels: Tensor, classes: int, *, biased: bool = True
) -> tuple[Tensor, Tensor | None, float]:
    """Multinomial logistic regression by L-BFGS, its L2 penalty chosen on held-out images (Kornblith, Shlens and Le
    2019, "Do Better ImageNet Models Transfer Better?", appendix A.6).

    Args:
        features: fp32 [N, F]; each is brought to deviation 1, so that the penalty means the same for all.
        labels: int64 [N].
        classes: how many there are.
        biased: whether there is a bias; without one features are not centred either.

    Returns weight [classes, F] and bias [classes] or None, for the features as they were given, and the penalty.
    """
    mean = features.mean(0) if biased else torch.zeros_like(features[0])
    spread = (features - mean).square().mean(0).sqrt()
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    scaled = (features - mean) / spread
    held = torch.arange(len(labels), device=labels.device) % HELD == HELD - 1
    decay = DECAYS[len(DECAYS) // 2]
    if held.any():  # else there are too few images to choose by
        losses = []
        for tried in DECAYS:
            weight, bias = _regression(scaled[~held], labels[~held], classes, tried, biased)
            losses.append(F.cross_entropy(F.linear(scaled[held], weight, bias), labels[held]).item())
        decay = min(zip(losses, DECAYS, strict=True))[1]
    weight, bias = _regression(scaled, labels, classes, decay, biased)
    weight = weight / spread
    return weight, None if bias is None else bias - weight @ mean, decay


def _regression(
    features: Tensor, labels: Tensor, classes: int, decay: float, biased: bool
) -> tuple[Tensor, Tensor | None]:
    """Weights that minimise cross-entropy + decay/2·‖weight‖²."""
    weight = torch.zeros(classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(classes, device=features.device, requires_grad=True) if biased else None
    trained = [weight] if bias is None else [weight, bias]
    optimizer = torch.optim.LBFGS(
        trained, max_iter=ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        objective = F.cross_entropy(F.linear(features, weight, bias), labels) + decay / 2 * weight.square().sum()
        objective.backward()
        return objective

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), None if bias is None else bias.detach()


def nearest_neighbours(features: Tensor, labels: Tensor, tested: Tensor, neighbours: int, classes: int) -> Tensor:
    """Votes fp32 [M, classes] on the images with features `tested` [M, F]: of each the `neighbours` images of largest
    cosine among `features` [N, F] (all of them where there are fewer) vote for their `labels`, int64 [N]."""
    known, asked = F.normalize(features, dim=1), F.normalize(tested, dim=1)
    votes = torch.zeros(len(tested), classes, device=features.device)
    bounds = [*range(0, len(tested), COMPARED), len(tested)]
    for start, end in pairwise(bounds):
        near = (asked[start:end] @ known.t()).topk(min(neighbours, len(known)), dim=1)
        votes[start:end].scatter_add_(1, labels[near.indices], (near.values / VOTE_TEMPERATURE).exp())
    return votes
