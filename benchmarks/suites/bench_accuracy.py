"""Time to accuracy: seconds of training until the test images of shapes10 are classified with a fixed accuracy, ours
against plain PyTorch (plain.py) with the same network, weights, batch size, optimizer, schedule and augmentation.

Both measure themselves after every epoch, and the clock stops with the measurement that shows the accuracy. It starts
when data and network are ready and, for ours, the step is compiled; how long that took stands beside it.
"""

import time
from abc import ABC, abstractmethod
from pathlib import Path

import torch

from benchmarks.harness.sameness import near
from benchmarks.harness.versus import DEVICE, Side, Versus, note
from benchmarks.rivals import plain
from fastres.bench.timing import wait
from fastres.recipe import Recipe
from fastres.training.data import labels_of
from fastres.training.session import Session

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
TARGET = 0.7
CHANGES = ["data.source=shapes10", "data.split=none", "train.epochs=6", "train.drop_last=true"]
DRY = ["model.channels=[16,16,16,16]", "data.train_images=200", "data.test_images=100"]
DRY += ["train.epochs=1", "train.compile=false"]
DRY_TARGET = 0.05


class Run(ABC):
    """Trains until TARGET, with another seed at each turn."""

    def __init__(self, session: Session, target: float) -> None:
        self.session, self.recipe, self.data_module, self.target = session, session.recipe, session.data_module, target
        self.seed = -1
        self.reached: list[tuple[int, float]] = []
        """Epochs and accuracy of each turn."""

    @abstractmethod
    def prepare(self) -> None:
        """The next seed, untrained."""

    @abstractmethod
    def epoch(self, number: int) -> None:
        """Train on all images once."""

    @abstractmethod
    def logits(self) -> torch.Tensor:
        """fp32 [N, classes] of the test images."""

    def __call__(self) -> None:
        labels = labels_of(self.data_module.test)
        for number in range(int(self.recipe.train.epochs)):
            self.epoch(number)
            accuracy = float((self.logits().argmax(1) == labels).double().mean())
            if accuracy >= self.target:
                self.reached.append((number + 1, accuracy))
                return
        raise AssertionError(f"{type(self).__name__} ends at {accuracy:.1%}, and {self.target:.0%} had to be reached")

    def outcome(self) -> dict[str, torch.Tensor]:
        """Logits of the network with which the first turn begins."""
        self.prepare()
        self.seed -= 1
        return {"logits": self.logits()}


class OurRun(Run):
    """By fastres's training loop, compiled."""

    def __init__(self, session: Session, target: float) -> None:
        super().__init__(session, target)
        for _ in session.runner.epoch(0, 0, 3):  # a GPU captures the third
            pass
        self.logits()
        wait(DEVICE)
        self.first_step_seconds = time.perf_counter() - session.opened

    def prepare(self) -> None:
        self.seed += 1
        self.session.step.restart(self.session.draw(self.seed), self.seed)
        self.data_module.reseed(self.seed)
        self.session.epoch_metrics.clear()

    def epoch(self, number: int) -> None:
        for _ in self.session.runner.epoch(number, 0, len(self.data_module.train)):
            pass

    def logits(self) -> torch.Tensor:
        return self.session.evaluator.logits(self.data_module.test)


class PlainRun(Run):
    """By plain.py."""

    def prepare(self) -> None:
        self.seed += 1
        self.training = plain.Plain(self.session.draw(self.seed), self.recipe, self.data_module, DEVICE)
        self.images = plain.normalised(self.data_module.test_images, self.data_module.augment)
        torch.manual_seed(self.seed)  # of the loader's order

    def epoch(self, number: int) -> None:
        for _ in self.training.epoch():
            pass

    def logits(self) -> torch.Tensor:
        return plain.logits(self.training.network, self.images, self.recipe.eval.batch_size)


def test_time_to_accuracy(root: str, versus: Versus, dry: bool) -> None:
    """One run of each; with --full five, of five seeds."""
    recipe = Recipe.load(RECIPE, [*CHANGES, f"data.root={root}", *(DRY if dry else [])])
    target = DRY_TARGET if dry else TARGET
    session = Session(recipe, DEVICE, quiet=True)
    ours, rival = OurRun(session, target), PlainRun(session, target)
    versus(
        Side(ours, outcome=ours.outcome, before=ours.prepare),
        Side(rival, outcome=rival.outcome, before=rival.prepare),
        # fp32 on both sides; convolutions may sum in another order.
        same=near(logits=1e-4),
        rounds=5 if versus.full else 1,
        against=f"plain PyTorch, to {target:.0%} too",
        recipe=recipe,
        at_least=1,
        whole=True,
        device=DEVICE,
        source=session.data_module.dataset.name,
        target=target,
        first_step_seconds=ours.first_step_seconds,
        compiled_before=session.step.loss_and_correct.from_cache,
    )
    note(versus.request, versus.benchmark, epochs_and_accuracy=ours.reached, rival_epochs_and_accuracy=rival.reached)
    session.data_module.close()
