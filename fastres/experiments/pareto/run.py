"""`fastres bench pareto`: trains a list of recipes to their end, over seeds, and reads what each costs and reaches.

| file | what |
|---|---|
| `plan.json` | recipes, seeds, settings; its presence says that a folder is one of ours |
| `<recipe>,seed=<n>/` | the runs, ordinary run directories; `diverged.json` in one says why it has no result |
| `pareto.md`, `pareto.png` | table and figure, when all runs are done |
| `pareto.json` | their numbers, written last |
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastres.data import info
from fastres.data.sources.resolve import is_cifar10
from fastres.engine.device import choose_device
from fastres.errors import UserError
from fastres.experiments.pareto import page
from fastres.experiments.pareto.published import CLASSES, RECORDS
from fastres.experiments.pareto.schema import Means, Pareto, Plan, RecipeFacts, RunFacts
from fastres.experiments.sweep.plan import SweepPoint
from fastres.experiments.sweep.run import check_folder, complete, work_of
from fastres.recipe import DataConfig, Recipe
from fastres.recipe.data import NAMED
from fastres.recipe.portable import self_contained
from fastres.report.pareto import COSTS, Mark, front
from fastres.runs.environment import environment, to_publish
from fastres.runs.many import Results, continued_folder
from fastres.runs.schema import SUMMARY, Point, Summary

PLAN = "plan.json"


@dataclass(frozen=True)
class Entry:
    """A recipe of the list."""

    name: str
    """In table and figure: the file's name, with its folder's where two are alike."""
    path: Path
    points: tuple[SweepPoint, ...]
    """Its seeds, from `train.seed` on."""


# ---------------------------------------------------------------------------------------------------- the plan


def plan(paths: Sequence[Path], seeds: int, settings: Sequence[str] = ()) -> list[Entry]:
    """The recipes at `paths` with their seeds; `settings`, such as `"train.epochs=3"`, hold for all.

    Raises UserError for recipes that do not load, that are the same one, or that test on different images.
    """
    if not 1 <= seeds <= 1000:
        raise UserError(f"--runs {seeds}: give the number of seeds of each recipe, from 1 to 1000")
    entries: list[Entry] = []
    twins: dict[str, str] = {}
    for path, name in zip(paths, _names(paths), strict=True):
        recipe = Recipe.load(path, [*settings])
        recipe.check_single()
        points = tuple(
            SweepPoint(f"{name},seed={seed}", name, {"train.seed": seed}, _seeded(recipe, seed))
            for seed in range(recipe.train.seed, recipe.train.seed + seeds)
        )
        other = twins.setdefault(json.dumps(recipe.model_dump(exclude={"record"}), sort_keys=True), name)
        if other != name:
            raise UserError(f"{other} and {name} are the same recipe: leave one of them out")
        entries.append(Entry(name, path, points))
    tested = {entry.name: _tested_on(entry) for entry in entries}
    first_name, images = next(iter(tested.items()))
    odd = next((name for name, own in tested.items() if own != images), None)
    if odd is not None:
        raise UserError(
            f"{first_name} and {odd} are tested on different images, whose accuracies cannot be compared: bring them "
            "together with --set data.source=… or --set data.test_images=…"
        )
    return entries


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})


def _names(paths: Sequence[Path]) -> list[str]:
    stems = [path.stem for path in paths]
    parents = [f"{path.absolute().parent.name}-" if stems.count(path.stem) > 1 else "" for path in paths]
    names = [parent + stem for parent, stem in zip(parents, stems, strict=True)]
    names = [re.sub(r"[^A-Za-z0-9._=+-]", "-", name)[:100] for name in names]  # they become names of folders
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two recipes have the name {twice}: leave one of them out, or give it another name")
    return names


def _tested_on(entry: Entry) -> tuple[str, int | None]:
    data = self_contained(entry.points[0].recipe).data
    return data.source, data.test_images


# ---------------------------------------------------------------------------------------------------- the runs


def pareto(
    paths: Sequence[Path],
    *,
    seeds: int = 3,
    settings: Sequence[str] = (),
    out: Path | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Results[Pareto]:
    """Train the recipes at `paths` with `seeds` seeds each into run directories of the folder `out` (by default
    runs/pareto-<time>), and write table and figure.

    What is finished there is picked up, what was interrupted is resumed; a run whose loss is not finite is listed as
    diverged. Raises UserError for what the user can put right; after Ctrl-C or SIGTERM Interrupted, and all goes on.
    """
    choose_device(device)
    entries = plan(paths, seeds, settings)
    points = [point for entry in entries for point in entry.points]
    work = [work_of(point) for point in points]
    with continued_folder(out, "pareto", PLAN) as folder:
        for point in points:
            check_folder(folder / point.name, point.recipe)
        about = Plan(recipes=[*map(str, paths)], runs=seeds, set=[*settings])
        about.write(folder / PLAN)
        (folder / page.RESULTS).unlink(missing_ok=True)  # its presence says that all is done
        rows = complete(folder, points, work, device, quiet)
        facts = _facts(folder, entries, rows, about, _command(paths, seeds, settings))
        page.write(folder, facts)
    return Results(folder, facts)


def _command(paths: Sequence[Path], seeds: int, settings: Sequence[str]) -> str:
    command = ["fastres", "bench", "pareto", *map(str, paths), "--runs", str(seeds)]
    return shlex.join([*command, *(word for text in settings for word in ("--set", text))])


# ---------------------------------------------------------------------------------------------------- the numbers


def _facts(folder: Path, entries: Sequence[Entry], rows: Sequence[Point], about: Plan, command: str) -> Pareto:
    row_of = {row.name: row for row in rows}
    runs = [[_run(folder / point.name, row_of[point.name]) for point in entry.points] for entry in entries]
    done = [[run for run in each if run.state == "complete"] for each in runs]
    marks = [Mark(entry.name, entry.name, 0, each) for entry, each in zip(entries, done, strict=True)]
    fronts = {key: front(marks, key) for key in COSTS}
    recipes = []
    for entry, each, mark in zip(entries, runs, marks, strict=True):
        best = entry.points[0].recipe.train.best
        samples = {key: mark.sample(key) for key in Means.model_fields}
        accuracy, parameters = samples["test_accuracy"], mark.sample("parameters")
        recipe = RecipeFacts(
            name=entry.name,
            chosen_on_test=best is not None and best.startswith("test_"),
            runs=each,
            parameters=None if parameters is None else round(parameters.mean),
            mean=Means(**{key: None if sample is None else sample.mean for key, sample in samples.items()}),
            sd_test_accuracy=None if accuracy is None else accuracy.sd,
            front=[key for key, marked in fronts.items() if mark in marked],
        )
        recipes.append(recipe)
    data = entries[0].points[0].recipe.data
    pixels, everything = pixels_of(data), [run for each in runs for run in each]
    return Pareto.of(
        about,
        command=command,
        entries=recipes,
        source=data.source if data.source in NAMED else Path(data.source).name,
        test_images=max((run.test_images for run in everything if run.test_images is not None), default=None),
        pixels=pixels,
        records=[*RECORDS] if pixels else [],
        devices=sorted({run.device for run in everything if run.device is not None}),
        environment=to_publish(environment()),
    )


def _run(run: Path, row: Point) -> RunFacts:
    summary = Summary.read_if_there(run / SUMMARY) or Summary()  # a diverged run has none
    return RunFacts.of(row, summary, run=run.name, seed=row.settings["train.seed"])


def pixels_of(data: DataConfig) -> Literal["original", "copy"] | None:
    """`original` for CIFAR-10's own images, `copy` for other files of all of them, else None, in a prepared source."""
    if is_cifar10(data.source):
        return "original"
    facts = info(data.source, store=data.store, image_size=data.image_size, root=data.root)
    counts = {name: part["images"] for name, part in facts.get("parts", {}).items()}
    alike = facts.get("classes") == list(CLASSES) and facts["image_size"] == 32
    return "copy" if alike and counts.get("train") == 50_000 and counts.get("test") == 10_000 else None
