"""A training method: hooks into a run, each of which by default does what learning from labels alone does.

A run asks for `network`, `views` and `average` when it is set up, for `forward` and `loss` in each step, and for
`after_training` at its end; `runs` says whether a training is one run or several. Nothing outside asks which it is.
"""

from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fastres.augment import Augment
from fastres.augment.views import Views
from fastres.data import Dataset
from fastres.models import Network
from fastres.optim import Ema
from fastres.recipe import Recipe
from fastres.recipe.methods import MethodConfig
from fastres.runs.schema import Summary
from fastres.training.data import DataModule
from fastres.utils.progress import Say

Config = TypeVar("Config", bound=MethodConfig)


class Job(Protocol):
    """A training that is ready to begin: what is wrong with recipe, data or machine has been raised."""

    def execute(self, run: Path) -> Summary:
        """Train in the run directory `run`, from where it was interrupted if it was."""


class Trainer(Protocol):
    """What trains for a method, as the caller of the training wants it done."""

    device: str
    quiet: bool

    def say(self, text: str) -> None:
        """Show a line, unless `quiet`."""

    def single(self, recipe: Recipe, method: "Method[Any] | None" = None) -> Job:
        """One run of `recipe`, by the method that it names or a given one."""

    def inside(self, recipe: Recipe, folder: Path, run: Path) -> Summary:
        """Train `recipe` in `folder` of the run directory `run`, or complete what an earlier process began there."""

    def dataset_of(self, recipe: Recipe) -> Dataset:
        """The data of a run of `recipe`, once everything that could keep the run from beginning has been looked for."""


class Method(Generic[Config]):
    """The hooks. Those of a step are traced: they may read what does not change between steps."""

    graph_key = ""
    """Settings that the method's part of a compiled step depends on, besides its table of the recipe and shapes."""
    fingerprint: str | None = None
    """Of what the method learns from besides the data: another one cannot go on with a run."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def runs(self, recipe: Recipe, trainer: Trainer, *, begun: bool) -> Job:
        """The training of `recipe`, one run or several inside of its run directory; `begun` by an earlier process.

        Raises UserError for whatever would keep it from being trained.
        """
        return trainer.single(recipe)

    def views(self, recipe: Recipe, augment: Augment, images: int) -> Views | None:
        """The compared views of each of `images` images, by `augment`, the recipe's policy; None where each has one."""
        return None

    def prepare(self, data_module: DataModule, device: torch.device) -> None:
        """Load what else is learnt from, once the data are open. Raises UserError where it does not fit them."""

    def network(self, backbone: Network, image_size: int) -> Network:
        """The network that is trained, around the one that is kept. Raises UserError where it cannot be."""
        return backbone

    def backbone(self, network: nn.Module) -> nn.Module:
        """Of what `network` returned, or an average of it, the part that is evaluated and saved."""
        return network

    def average(self, network: nn.Module, recipe: Recipe, steps: int) -> Ema | None:
        """The moving average of the weights over the run's `steps`."""
        return Ema(network, recipe.train.ema) if recipe.train.ema else None

    def forward(
        self, network: nn.Module, images: Tensor, batch: int, average: nn.Module | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [B, classes], and a loss that needs no labels, if the method has one.

        Args:
            images: [B, 3, H, W], or all views of the B images, [V·B, 3, H, W].
            batch: B.
            average: the network of `average`.
        """
        return network(images), None

    def loss(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The whole loss on images [B, 3, H, W] with fp32 logits [B, classes], of which `loss` is the labels' part."""
        return loss

    def after_training(
        self, network: Network, data_module: DataModule, recipe: Recipe, device: torch.device, say: Say
    ) -> dict[str, float]:
        """Finish the network before it is tested, in place; returns the fields of the summary that this measured."""
        return {}


class Supervised(Method[MethodConfig]):
    """Labels alone: every hook as it is."""
