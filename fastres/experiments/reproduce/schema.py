"""reproduce.json, and the output of `fastres reproduce --list --json`. Times are in seconds, losses in nats an image,
accuracies shares of 1; None is what was not measured."""

from fastres.runs.environment import Environment
from fastres.utils.json_files import Amount, Count, Entry, File, Loss, Share

Interval = tuple[float, float]


class ClaimFacts(Entry):
    """A claim, what was measured of it, and the verdict; `…_shown` is text."""

    name: str
    subject: str
    says: str
    figure: str
    recipes: str
    quantity: str
    unit: str
    values: tuple[int | float | None, ...]
    """Of each seed."""
    measured: str
    """Mean ± SD."""
    seeds: Count
    """How many gave a value."""
    interval: Interval | None
    interval_shown: str
    limits: str
    beside: str
    parameters: list[Count]
    """Of each recipe."""
    parameters_shown: str
    seconds: list[Amount | None]
    seconds_shown: str
    verdict: str
    why: str


class ListedRun(Entry):
    """A run before it is trained."""

    run: str
    recipe: str
    seed: Count
    epochs: Amount
    image_passes: Amount
    claims: tuple[str, ...]


class RunFacts(ListedRun):
    """A finished run."""

    finished: bool
    """Whether it has a result."""
    training_loss: Loss | None
    """Of the last epoch."""
    validation_loss: Loss | None
    split: str
    test_accuracy: Share | None
    test_images: Count | None
    parameters: Count | None
    seconds: Amount | None
    images_per_second: Amount | None
    device: str | None


class Reproduced(File):
    """reproduce.json."""

    command: str
    source: str
    scale: Amount
    seeds: tuple[Count, ...]
    set: tuple[str, ...]
    train_images: Count
    test_images: Count
    claims: list[ClaimFacts]
    runs: list[RunFacts]
    device: str
    workers: Count
    environment: Environment


class Begun(File):
    """plan.json: what all runs of a folder have in common."""

    source: str
    scale: Amount
    set: tuple[str, ...]
    workers: Count
    """Most runs that were side by side."""


class ListedClaim(Entry):
    """A claim before anything is trained."""

    name: str
    subject: str
    says: str
    figure: str
    recipes: list[str]
    trains: bool


class Listed(File):
    """The list."""

    source: str
    scale: Amount
    seeds: tuple[Count, ...]
    claims: list[ListedClaim]
    runs: list[ListedRun]
    image_passes: Amount
