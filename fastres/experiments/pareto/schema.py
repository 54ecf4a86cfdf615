"""pareto.json. Accuracies are shares of 1, times seconds; None is what was not measured."""

from typing import Literal

from fastres.report.pareto import Record
from fastres.runs.environment import Environment
from fastres.utils.json_files import Amount, Count, Entry, File, Share


class RunFacts(Entry):
    """A run of a recipe."""

    run: str
    seed: Count
    state: str
    """`complete`, or why it has no result: then `error` says more."""
    error: str | None
    test_accuracy: Share | None = None
    test_images: Count | None = None
    parameters: Count | None = None
    seconds: Amount | None = None
    images_per_second: Amount | None = None
    cold_seconds: Amount | None = None
    warm_seconds: Amount | None = None
    device: str | None = None


class Means(Entry):
    """Over the seeds."""

    test_accuracy: Share | None
    images_per_second: Amount | None
    seconds: Amount | None
    cold_seconds: Amount | None
    warm_seconds: Amount | None


class RecipeFacts(Entry):
    """A recipe of the list."""

    name: str
    chosen_on_test: bool
    """Whether the epoch that was kept is the best one by the test images."""
    runs: list[RunFacts]
    parameters: Count | None
    mean: Means
    sd_test_accuracy: Amount | None
    front: list[str]
    """Costs against which its accuracy is on the Pareto front."""

    @property
    def done(self) -> list[RunFacts]:
        """Runs with a result."""
        return [run for run in self.runs if run.state == "complete"]


class Plan(File):
    """plan.json: what was asked for."""

    recipes: list[str]
    runs: Count
    """Seeds of each recipe."""
    set: list[str]


class Pareto(Plan):
    """pareto.json."""

    command: str
    entries: list[RecipeFacts]
    source: str
    test_images: Count | None
    pixels: Literal["original", "copy"] | None
    """Of CIFAR-10; None for other images."""
    records: list[Record]
    devices: list[str]
    environment: Environment
