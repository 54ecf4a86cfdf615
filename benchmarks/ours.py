"""The training loop of fastres, driven by a benchmark: the steps of `fastres train`, without its records."""

from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from fastres.augment import Augment
from fastres.data.loaders import ResidentLoader
from fastres.models import build
from fastres.position import Tally
from fastres.recipe import Recipe
from fastres.stall import StallMeter
from fastres.step import DTYPES, Step

try:
    from fastres.runner import Runner
except ImportError:  # the loop is still a part of training.py
    Runner = None  # type: ignore[assignment,misc]


class Launch(NamedTuple):
    """What one launch trained on."""

    steps: int
    images: int


class _OneByOne:
    """The steps of `feed.train` as training.py takes them, launched from Python one by one."""

    captured, note = False, "steps are launched one by one"

    def __init__(self, step: Step, feed: Any, tally: Tally, stall: StallMeter) -> None:
        self.step, self.feed, self.tally, self.stall = step, feed, tally, stall

    def epoch(self, epoch: int, first_step: int, count: int) -> Iterator[Launch]:
        before, augment = epoch * len(self.feed.train), self.feed.augment
        batches = islice(self.feed.train.batches(epoch, first_step), count)
        for at, batch in enumerate(self.stall.watch(batches), first_step):
            if self.step.recipe.mix.active:
                inputs = augment(batch.source, batch.labels, batch.indices, epoch, at, batch.rows)
            else:
                inputs = augment.unmixed(batch.source, batch.indices, epoch, batch.rows), batch.labels
            loss, correct = self.step(before + at, *inputs)
            self.tally.add(before + at + 1, loss, correct, len(batch.rows))
            yield Launch(1, len(batch.rows))


class Ours:
    """`recipe` made ready to train on `feed`, of which `train` and `augment` are used (and `sample`, by networks that
    look at images before their first step)."""

    def __init__(self, recipe: Recipe, feed: Any, classes: int, image_size: int, device: torch.device) -> None:
        self.recipe, self.feed, self.device = recipe, feed, device
        torch.manual_seed(recipe.train.seed)
        network = build(recipe.model, classes, image_size)
        network.initialise(feed.sample(network.initial_images) if network.initial_images else ())
        if recipe.train.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.step = Step(network.to(device), recipe, len(feed.train), device)
        self.tally, self.stall = Tally(device), StallMeter(device)
        self.runner: Any = (Runner or _OneByOne)(self.step, feed, self.tally, self.stall)

    @property
    def captured(self) -> bool:
        """Whether steps are replays of CUDA graphs."""
        return bool(self.runner.captured)

    @property
    def note(self) -> str | None:
        """Why they are not."""
        return self.runner.note

    def epoch(self, number: int, count: int | None = None) -> Iterator[Any]:
        """Train on epoch `number`, or its first `count` steps; yields launches, with their `steps` and `images`."""
        return self.runner.epoch(number, 0, len(self.feed.train) if count is None else count)

    def endless(self) -> Iterator[Any]:
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

    def __init__(self, launches: Iterator[Any], count: int) -> None:
        self.launches, self.count = launches, count
        self.ahead = 0

    def __call__(self) -> None:
        """Enqueue the steps."""
        self.ahead -= self.count
        while self.ahead < 0:
            self.ahead += next(self.launches).steps


def random_feed(recipe: Recipe, images: int, device: torch.device, side: int = 32, classes: int = 10) -> Any:
    """A resident set of random pixels on `device`, for timing where what the images show does not matter: an object
    with `train`, a loader of the recipe's batch size, and `augment`, the recipe's policy."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(0, classes, (images,), generator=generator).numpy()
    options = recipe.train
    train = ResidentLoader(pixels, labels, torch.arange(images).numpy(), options.batch_size, seed=0, drop_last=True)
    augment = Augment(
        recipe.augment,
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
        mix=recipe.mix,
        seed=options.seed,
        dtype=DTYPES[options.precision],
        channels_last=options.channels_last,
    )
    return SimpleNamespace(train=train, augment=augment)
