"""Training variants of the suite of epochs: two networks, three batch sizes, and one factor at a time that differs from
the default; each made ready to do some steps in the middle of an epoch when it is its turn."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.sameness import flat
from benchmarks.harness.versus import DEVICE, Side
from benchmarks.kernels.augment_cases import by_reference
from benchmarks.rivals import plain
from benchmarks.suites.epoch_parts import EPOCH, LEAD
from fastres.bench.timing import seconds, wait
from fastres.bench.training import Ours
from fastres.data.loaders import choose
from fastres.models import layers
from fastres.recipe import AugmentConfig, MixConfig, Recipe
from fastres.training import session
from fastres.training.data import open_data_module

RECIPE = Path(__file__).parents[2] / "recipes" / "report_best.toml"
NETWORKS = {"report": [], "ResNet-18": ["model.blocks=[2,2,2,2]", "model.max_parameters=20000000"]}
BATCHES = (20, 128, 512)
TURN_SECONDS, LEAST_STEPS = 1.0, 3
COMPARED = 16
"""Images of a batch that are compared with the reference of the augmentation."""
_DRY = ["model.channels=[16,16,16,16]", "train.precision=fp32", "data.train_images=200", "train.batch_size=4"]


@dataclass(frozen=True)
class Variant:
    """A training variant."""

    network: str = "report"
    """One of NETWORKS."""
    batch: int = 20
    loader: str = "resident"
    augmentation: str = "report's"
    """Or `none`, or `CutMix`, which comes after the report's."""
    compiled: bool = True
    fused: bool = True
    """Whether layers are fastres's or PyTorch's own."""

    @property
    def setting(self) -> str:
        """Network and batch size."""
        return f"{self.network}, batch {self.batch}"

    @property
    def default(self) -> "Variant":
        """With no factor changed."""
        return Variant(self.network, self.batch)

    @property
    def factor(self) -> str:
        """The changed settings."""
        if self.loader != "resident":
            return f"loader {self.loader}"
        if self.augmentation != "report's":
            return "no augmentation" if self.augmentation == "none" else f"with {self.augmentation}"
        return "default" if self == self.default else "stock layers" if self.compiled else "not compiled"

    def recipe(self, source: str, root: str, dry: bool) -> Recipe:
        """The report's with what is changed; in a dry run tiny and not compiled."""
        changes = [f"data.source={source}", f"data.root={root}", "data.split=none", f"data.loader={self.loader}"]
        changes += [f"train.batch_size={self.batch}", "train.drop_last=true", "train.best=train_loss"]
        changes += [*NETWORKS[self.network], *(_DRY if dry else [])]
        changes += ["train.compile=false"] if dry or not self.compiled else []
        recipe = Recipe.load(RECIPE, changes)
        nothing = AugmentConfig(translate=0, flip="none", mean=recipe.augment.mean, std=recipe.augment.std)
        others: dict[str, dict[str, Any]] = {
            "none": {"augment": nothing},
            "CutMix": {"mix": MixConfig(cutmix_alpha=1.0)},
        }
        return recipe.model_copy(update=others.get(self.augmentation))


DEFAULTS = [Variant(network, batch) for network in NETWORKS for batch in BATCHES]


def changed(default: Variant) -> list[Variant]:
    """One factor at a time."""
    return [
        *(replace(default, loader=kind) for kind in choose.KINDS[1:] if choose.installed(kind)),
        *(replace(default, augmentation=augmentation) for augmentation in ("none", "CutMix")),
        replace(default, compiled=False),
        replace(default, fused=False),
    ]


class Turns(ABC):
    """Steps in the middle of an epoch: a turn goes on by `steps`, after `lead` of an epoch that are not timed."""

    recipe: Recipe
    lead, steps = LEAD, 1
    running: Iterator[int] = iter(())

    @abstractmethod
    def epoch(self) -> Iterator[int]:
        """The first steps of an epoch, `lead` and `steps` at least: how many each launch has done."""

    def fill(self, most: int, dry: bool) -> None:
        """Have a turn take as long as it should, within `most` steps; none shares a launch with steps beyond it."""
        launch = self.steps
        self.begin()
        once = seconds(self.turn)
        self.end()
        count = LEAST_STEPS if dry else max(LEAST_STEPS, math.ceil(TURN_SECONDS / once))
        self.steps = min(count * launch, most - self.lead)

    def begin(self) -> None:
        """What comes before a turn."""
        self.running = self.epoch()
        self.take(self.lead)

    def turn(self) -> None:
        """What is timed."""
        self.take(self.steps)

    def end(self) -> None:
        """End what the loader started."""
        self.running = iter(())

    def take(self, steps: int) -> None:
        """Go on by that many."""
        while steps > 0:
            steps -= next(self.running)
        wait(DEVICE)

    def side(self, outcome: Callable[[], Any]) -> Side:
        """For a comparison of that outcome."""
        images = self.steps * self.recipe.train.batch_size
        return Side(self.turn, images, outcome=outcome, before=self.begin, after=self.end)


class Training(Turns):
    """A variant in training by fastres's own loop, compiled and warm."""

    def __init__(self, variant: Variant, source: str, root: str, dry: bool) -> None:
        self.recipe = variant.recipe(source, root, dry)
        self.data_module = open_data_module(self.recipe, DEVICE, quiet=True)
        classes, side = len(self.data_module.dataset.classes), self.data_module.dataset.image_size
        self.drawn = session.draw(self.recipe, classes, side, self.recipe.train.seed)
        self.operations = 6 * sum(layer.multiply_adds for layer in layers(self.drawn, side))
        """Of an image: forward, gradients of inputs and of weights, at two for each multiply-add."""
        self.first: nn.Module = self.drawn if variant.fused else plain.stock(self.drawn, self.recipe)
        self.ours = Ours(self.recipe, self.data_module, classes, side, DEVICE, copy.deepcopy(self.first))
        self.steps = self.ours.runner.steps_per_launch  # what is cut shorter than a launch is another graph
        self.lead = LEAD * self.steps
        self.fill(len(self.data_module.train), dry)
        compiled = self.ours.step.loss_and_correct
        assert compiled.active == self.recipe.train.compile, f"to be compiled, but {compiled.fallback_reason}"

    def epoch(self) -> Iterator[int]:
        return (launch.steps for launch in self.ours.epoch(EPOCH, self.lead + self.steps))

    def untrained_loss(self) -> dict[str, Tensor]:
        """Of a batch that is not augmented, before the first step."""
        step, batch = self.ours.step, next(iter(self.data_module.train.batches(0)))
        step.restart(self.first, self.recipe.train.seed)
        step.network.train()
        images = self.data_module.augment.normalize(batch.source, batch.rows)
        return {"loss": step.loss_and_correct(images, batch.labels, variant=False)[0].detach().clone()}

    def two_steps(self) -> dict[str, Any]:
        """Which images they train on, the mean loss, and what they add to the weights. Raises AssertionError where
        images are not augmented as the reference does it."""
        augment, mixes = self.data_module.augment, self.recipe.mix.active
        batches = [batch for batch, _ in zip(self.data_module.train.batches(0), range(2), strict=False)]
        source, labels = batches[0].source, batches[0].labels[:COMPARED]
        rows, indices = batches[0].rows[:COMPARED], batches[0].indices[:COMPARED]
        found = augment.augment(source, indices, 0, rows)
        if mixes:
            found = augment(source, labels, indices, 0, 0, rows)[0]
        images = torch.from_numpy(np.array(self.data_module.train_images))
        wanted = by_reference(augment, images, indices.cpu(), 0, 0, mixes=mixes)
        assert torch.equal(found.cpu(), wanted), "augmented images have other bits than fastres/augment/reference.py's"
        self.ours.step.restart(self.first, self.recipe.train.seed)
        self.ours.epoch_metrics.clear()
        for _ in self.ours.epoch(0, 2):
            pass
        mean, _, _ = self.ours.epoch_metrics.read()
        update = flat(self.ours.step.network) - flat(self.first)
        order = torch.cat([batch.indices for batch in batches])
        return {"order": order, "loss": mean, "update": update, "update_length": update.norm()}


class PlainTraining(Turns):
    """The default by plain.py, from the weights of `ours`."""

    def __init__(self, ours: Training, dry: bool) -> None:
        self.ours, self.recipe = ours, ours.recipe
        self.training = plain.Plain(ours.drawn, self.recipe, ours.data_module, DEVICE)
        self.fill(len(self.training.loader), dry)

    def epoch(self) -> Iterator[int]:
        return (1 for _ in self.training.epoch())

    def untrained_loss(self) -> dict[str, Tensor]:
        """As that of `Training`, of the same batch."""
        network = plain.stock(self.ours.drawn, self.recipe).to(DEVICE).train()
        batch, augment = next(iter(self.ours.data_module.train.batches(0))), self.ours.data_module.augment
        pixels = self.ours.data_module.train_images[batch.indices.cpu().numpy()]
        images = plain.normalised(pixels, augment).to(DEVICE)
        with torch.no_grad():
            return {"loss": F.cross_entropy(network(images), batch.labels)}
