"""The training loop of fastres, driven by a measurement: the steps of `fastres train`, without its records."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastres.data.loaders import ResidentLoader
from fastres.errors import UserError
from fastres.recipe import Recipe
from fastres.training import session
from fastres.training.data import SAMPLED, augment_of
from fastres.training.epoch import Launch, Runner
from fastres.training.metrics import EpochMetrics, StallMeter
from fastres.training.step import Step


def load_recipe(path: Path | None, settings: Sequence[str]) -> Recipe:
    """The recipe at `path` with settings such as `train.epochs=3`, or `Recipe()`. Raises UserError for a sweep too."""
    if path is None:
        if settings:
            raise UserError("--set changes a recipe: give a RECIPE, or leave --set out")
        return Recipe()
    recipe = Recipe.load(path, [*settings])
    recipe.check_single()
    return recipe


class Ours:
    """`recipe` made ready to train on `data_module`, of which `train` and `augment` are used (and `sample`, by networks
    that look at images before their first step). A `network` (an nn.Module) may take the place of a drawn one."""

    def __init__(
        self, recipe: Recipe, data_module: Any, classes: int, image_size: int, device: torch.device, network: Any = None
    ) -> None:
        self.recipe, self.data_module, self.device = recipe, data_module, device
        if network is None:
            network = session.draw(recipe, classes, image_size, recipe.train.seed)
            if network.initial_images:
                network.initialise(data_module.sample(network.initial_images))
        self.step = Step(session.move_network(network, recipe, device), recipe, len(data_module.train), device)
        self.epoch_metrics, self.stall = EpochMetrics(device), StallMeter(device)
        self.runner = Runner(self.step, data_module, self.epoch_metrics, self.stall)

    def epoch(self, number: int, count: int | None = None) -> Iterator[Launch]:
        """Train on epoch `number`, or its first `count` steps; yields launches, with their `steps` and `images`."""
        return self.runner.epoch(number, 0, len(self.data_module.train) if count is None else count)

    def endless(self) -> Iterator[Launch]:
        """Launches of one epoch after the other; after the recipe's last the first again."""
        number = 0
        while True:
            yield from self.epoch(number)
            number = (number + 1) % max(1, int(self.recipe.train.epochs))

    def steps(self, count: int) -> "Steps":
        """A function each call of which trains on `count` steps."""
        return Steps(self.endless(), count)


class Steps:
    """Goes on by `count` steps a call. Where a launch is several steps, a call may do some more, and the next one
    then does as many fewer: over many calls the number is exact."""

    def __init__(self, launches: Iterator[Launch], count: int) -> None:
        self.launches, self.count = launches, count
        self.steps_ahead = 0

    def __call__(self) -> None:
        """Enqueue the steps."""
        self.steps_ahead -= self.count
        while self.steps_ahead < 0:
            self.steps_ahead += next(self.launches).steps


def random_data_module(recipe: Recipe, images: int, device: torch.device, side: int = 32, classes: int = 10) -> Any:
    """A resident set of random pixels on `device`, for timing where what the images show does not matter: an object
    with `train`, a loader of the recipe's batch size, `augment` and `augment_batch`, the recipe's policy, and
    `sample`, which gives batches of its first images as `DataModule.sample` does."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(0, classes, (images,), generator=generator).numpy()
    every, size = torch.arange(images).numpy(), recipe.train.batch_size
    train = ResidentLoader(pixels, labels, every, size, seed=0, drop_last=True)
    augment = augment_of(recipe, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def sample(count: int) -> Iterator[Tensor]:
        return map(augment.normalize, pixels[:count].split(SAMPLED))

    return SimpleNamespace(train=train, augment=augment, augment_batch=augment.augment, sample=sample)
