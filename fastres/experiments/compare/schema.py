"""The output of `fastres compare --json`. Runs go by their numbers, from 1; times are in seconds, accuracies shares."""

from pydantic import JsonValue

from fastres.utils.json_files import Amount, Count, Entry, File, Share


class ComparedRun(Entry):
    """A run beside others."""

    number: Count
    name: str
    run: str
    """Its directory."""
    finished: bool
    status: str
    differences: dict[str, JsonValue]
    """Its values of the keys whose values differ, None where it has none."""
    interval: tuple[Share, Share] | None
    """Of its accuracy, for the choice of the test images."""
    epochs: Count | Amount | None
    epochs_planned: Amount
    parameters: Count | None
    test_accuracy: Share | None
    test_images: Count | None
    images_per_second: Amount | None
    seconds: Amount | None
    device: str | None
    data_set: Count
    """Index in `data_sets`."""


class Group(Entry):
    """Runs that differ by their seed alone."""

    runs: list[Count]
    seeds: list[Count]
    """Those that count: the first tested run of each."""
    interval: tuple[float, float] | None
    """Of the mean accuracy of all possible seeds."""
    mean_test_accuracy: Share | None
    sd_test_accuracy: Amount | None
    mean_seconds: Amount | None
    sd_seconds: Amount | None
    mean_images_per_second: Amount | None
    sd_images_per_second: Amount | None


class TestedOn(Entry):
    """Runs whose accuracies can be compared."""

    source: str
    test_images: Count | None
    runs: list[Count]
    pareto_front: dict[str, list[list[Count]]]
    """By cost: the runs of each setting on the front, the cheapest first."""


class Compared(File):
    """All of it."""

    runs: list[ComparedRun]
    groups: list[Group]
    comparable: bool
    """Whether there is only one data set."""
    data_sets: list[TestedOn]
