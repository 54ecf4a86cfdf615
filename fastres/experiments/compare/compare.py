"""Runs side by side: what differs in their recipes, which differ by seed alone, which are on the Pareto front."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fastres.errors import UserError
from fastres.experiments.compare.schema import Compared, ComparedRun, Group, TestedOn
from fastres.recipe.loading import Values, dotted
from fastres.report.pareto import COSTS, front
from fastres.runs.reader import Run, find_runs, read_run
from fastres.utils.statistics import Sample

# Where a run was written and how often it was saved: nothing that its numbers depend on.
_APART = ("record.", "data.root", "train.checkpoint_seconds")


@dataclass(frozen=True, eq=False)  # recipes hold lists, which have no hash
class Setting:
    """Runs whose recipes differ in nothing but the seed, on one device and one data set."""

    runs: tuple[Run, ...]

    @property
    def counted(self) -> tuple[Run, ...]:
        """The first tested run of each seed: a repeat of a seed is not another sample of what seeds do."""
        seeds: dict[int, Run] = {}
        for run in self.runs:
            if run.summary.test_accuracy is not None:
                seeds.setdefault(run.recipe.train.seed, run)
        return tuple(seeds.values())

    @property
    def numbers(self) -> str:
        """Numbers of its runs, as in "1–3, 5"."""
        return ranges(numbers(self.runs))

    def sample(self, key: str) -> Sample | None:
        """Mean and spread over the seeds of `key` of summary.json; None where no run has it."""
        return Sample.of_known(run.summary[key] for run in self.counted)


@dataclass(frozen=True)
class DataSet:
    """Settings that were tested on the same images, so that their accuracies can be compared."""

    source: str
    test_images: int | None
    """None where no run says it."""
    settings: tuple[Setting, ...]

    @property
    def runs(self) -> list[Run]:
        """Those of its settings, in the order of the comparison."""
        return sorted((run for setting in self.settings for run in setting.runs), key=lambda run: run.number)

    def __str__(self) -> str:
        known = "" if self.test_images is None else f", {self.test_images:,} test images"
        return f"{self.source}{known}"


@dataclass(frozen=True)
class Comparison:
    """All runs, in the order in which they were given."""

    runs: tuple[Run, ...]
    differences: dict[str, list[Any]]
    """Each key of the recipes whose values differ: the values in the order of the runs, None where one has none."""
    data_sets: tuple[DataSet, ...]
    """More than one where not all accuracies can be compared."""

    @property
    def settings(self) -> list[Setting]:
        """Those of all data sets, in the order of their first runs."""
        settings = [setting for data_set in self.data_sets for setting in data_set.settings]
        return sorted(settings, key=lambda setting: setting.runs[0].number)

    @property
    def groups(self) -> list[Setting]:
        """The settings that several seeds were tested of."""
        return [setting for setting in self.settings if len(setting.counted) > 1]


def compare(paths: Sequence[Path]) -> Comparison:
    """Read the runs at `paths`, run directories or folders of such.

    Raises UserError for a path that is neither, for fewer than two runs, and for a file that is damaged.
    """
    folders = find_runs(paths)
    if len(folders) < 2:
        given = f"{folders[0]} alone" if folders else "no run"
        raise UserError(f"{given}: comparing takes two runs or more; give another run directory or a folder of runs")
    names = [folder.resolve().name for folder in folders]
    runs = tuple(
        read_run(number, folder, name if names.count(name) == 1 else str(folder))
        for number, (folder, name) in enumerate(zip(folders, names, strict=True), 1)
    )
    flat = [dotted(run.recipe.model_dump()) for run in runs]
    return Comparison(runs, differences(flat), _data_sets(runs, flat))


def differences(recipes: Sequence[Values]) -> dict[str, list[Any]]:
    """The keys of flat `recipes` whose values differ, with the value of each recipe, None where one lacks the key: that
    is no other value than None. Keys that change no number of a run are left out."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if not key.startswith(_APART))
    values = {key: [recipe.get(key) for recipe in recipes] for key in keys}
    return {key: column for key, column in values.items() if any(value != column[0] for value in column)}


def ranges(numbers: Sequence[int]) -> str:
    """Rising whole numbers, shortened: 1, 2, 3, 5 becomes "1–3, 5"."""
    # In a row of successive numbers each has the same distance from its place.
    rows = groupby(enumerate(numbers), key=lambda item: item[1] - item[0])
    parts = [[number for _, number in row] for _, row in rows]
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)


def _data_sets(runs: Sequence[Run], recipes: Sequence[Values]) -> tuple[DataSet, ...]:
    """Runs by what they were tested on, and those of one data set by all but the seed."""
    sets: dict[tuple[str, int | None], dict[str, list[Run]]] = {}
    for run, recipe in zip(runs, recipes, strict=True):
        identity = {key: value for key, value in recipe.items() if key != "train.seed" and not key.startswith(_APART)}
        setting = json.dumps([identity, run.device], sort_keys=True)
        sets.setdefault(_tested_on(run, runs), {}).setdefault(setting, []).append(run)
    return tuple(
        DataSet(source, images, tuple(Setting(tuple(members)) for members in settings.values()))
        for (source, images), settings in sets.items()
    )


def _tested_on(run: Run, runs: Iterable[Run]) -> tuple[str, int | None]:
    """Source and number of the test images: where a run does not say how many, as of one that asked for the same."""
    data = run.recipe.data
    asked = (data.source, data.test_images)
    alike = [run, *(other for other in runs if (other.recipe.data.source, other.recipe.data.test_images) == asked)]
    known = [other.summary.test_images for other in alike if other.summary.test_images is not None]
    return data.source, known[0] if known else data.test_images


def facts(comparison: Comparison) -> Compared:
    """The comparison as one JSON object."""
    set_of = {run.number: index for index, data_set in enumerate(comparison.data_sets) for run in data_set.runs}
    runs = [
        ComparedRun.of(
            run,
            run.summary,
            run=str(run.path),
            differences={key: values[index] for key, values in comparison.differences.items()},
            epochs=run.epochs_done,
            epochs_planned=run.recipe.train.epochs,
            data_set=set_of[run.number],
        )
        for index, run in enumerate(comparison.runs)
    ]
    data_sets = [
        TestedOn.of(
            data_set,
            runs=numbers(data_set.runs),
            pareto_front={key: [numbers(setting.runs) for setting in front(data_set.settings, key)] for key in COSTS},
        )
        for data_set in comparison.data_sets
    ]
    groups = [_group(setting) for setting in comparison.groups]
    return Compared(runs=runs, groups=groups, comparable=len(data_sets) == 1, data_sets=data_sets)


def _group(setting: Setting) -> Group:
    samples = {key: setting.sample(key) for key in ("test_accuracy", "seconds", "images_per_second")}
    means = {f"mean_{key}": sample.mean for key, sample in samples.items() if sample}
    deviations = {f"sd_{key}": sample.sd for key, sample in samples.items() if sample}
    interval = samples["test_accuracy"].interval(low=0, high=1) if samples["test_accuracy"] else None
    seeds = [run.recipe.train.seed for run in setting.counted]
    return Group(runs=numbers(setting.runs), seeds=seeds, interval=interval, **means, **deviations)


def numbers(runs: Sequence[Run]) -> list[int]:
    """Those by which runs are referred to."""
    return [run.number for run in runs]
