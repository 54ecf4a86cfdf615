"""Trains the runs of a plan, several side by side where that is asked for, and reads what they measured.

| file | what |
|---|---|
| `plan.json` | source, scale, settings, most runs side by side; its presence says that a folder is one of ours |
| `runs/<hash>/` | the runs, ordinary run directories; `diverged.json` in one says why it has no result |
| `report.md`, `report.html`, `figures/` | the page, when all runs are done |
| `reproduce.json` | its numbers, written last |
"""

import json
import multiprocessing
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from fastres.data import open_dataset
from fastres.engine.device import choose_device
from fastres.errors import Interrupted, UserError
from fastres.evaluation.corrupted import evaluate_corrupted
from fastres.experiments.reproduce import page
from fastres.experiments.reproduce.plan import UNLABELLED, Job, Plan, make
from fastres.experiments.reproduce.results import RUNS, corrupted_accuracy_of, find, read_all
from fastres.experiments.reproduce.schema import Begun, Reproduced
from fastres.experiments.sweep.results import DIVERGED
from fastres.experiments.sweep.run import check_folder, train_run
from fastres.recipe import Recipe
from fastres.runs import directory
from fastres.runs.many import Results, continued_folder
from fastres.runs.reader import read_run
from fastres.runs.schema import SUMMARY
from fastres.utils import workers as search_workers
from fastres.utils.files import write_bytes
from fastres.utils.format import duration
from fastres.utils.progress import say

PLAN = "plan.json"


def reproduce(
    names: Sequence[str] = (),
    *,
    recipes: Path,
    out: Path = Path("runs/reproduce"),
    source: str | None = None,
    seeds: int = 3,
    scale: float = 1.0,
    settings: Sequence[str] = (),
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
) -> Results[Reproduced]:
    """Measure the claims `names` (all without any) and write the page into the folder `out`.

    Runs that are finished there are picked up, interrupted ones are resumed. `workers` processes train side by side, by
    default one on a CPU and four on a GPU. Raises UserError for what the user can put right, Interrupted after Ctrl-C
    or SIGTERM, when everything can be resumed.
    """
    where = choose_device(device)
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: give the number of processes, at least 1")
    options: dict[str, Any] = {"recipes": recipes, "out": out, "source": source, "seeds": seeds, "scale": scale}
    plan = make(names, **options, settings=settings)
    if not plan.known and plan.jobs:  # how many images there are decides the scaled recipes
        data = plan.jobs[0].recipe.data
        open_dataset(data.source, store=data.store, image_size=data.image_size, root=data.root, quiet=quiet)
        plan = make(names, **options, settings=settings)
    with continued_folder(out, "reproduce", PLAN) as folder:
        count = workers or (4 if where.type == "cuda" else 1)
        begun = Begun.of(plan, set=plan.settings, workers=count)
        most = max(count, _check_plan(folder, begun))
        begun.updated(workers=most).write(folder / PLAN)
        (folder / page.RESULTS).unlink(missing_ok=True)  # its presence says that all is done
        _write_unlabelled(folder, plan, quiet)
        _train_missing(folder, plan, device, count, quiet)
        measured = read_all(folder, plan)
        findings = tuple(find(plan, claim, measured) for claim in plan.claims)
        return Results(folder, page.write(folder, plan, measured, findings, str(where), most))


def _check_plan(folder: Path, plan: Begun) -> int:
    """Raise UserError where `folder` was begun with other data, scale or settings; claims and seeds may change. Returns
    how many runs have been side by side there."""
    begun = Begun.read_if_there(folder / PLAN, "give another --out, or remove that folder") or plan
    for key in ("source", "scale", "set"):
        if begun[key] != plan[key]:
            was, now = (json.dumps(each[key]) for each in (begun, plan))
            raise UserError(f"{folder} was begun with {key} = {was}, not {now}: give another --out")
    return begun.workers


def _write_unlabelled(folder: Path, plan: Plan, quiet: bool) -> None:
    """Write the test images as the challenge's file has its images, where pseudo-labels are asked for."""
    path = folder / UNLABELLED
    job = next((job for job in plan.jobs if job.recipe.method.labels_images), None)
    if job is None or path.exists():
        return
    data = job.recipe.data
    dataset = open_dataset(data.source, store=data.store, image_size=data.image_size, root=data.root, quiet=quiet)
    assert dataset.test is not None, "the plan has asked for its number"
    images = np.asarray(dataset.test.images[: data.test_images])
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    write_bytes(path, pickle.dumps({b"data": rows, b"ids": np.arange(len(rows))}))


# ---------------------------------------------------------------------------------------------------- the runs


def finished(folder: Path, job: Job) -> bool:
    """Whether nothing is left to do of a run in `folder`. Raises UserError where its folder holds another one, or a
    damaged one: before anything is trained, not when all is done."""
    run = folder / RUNS / job.name
    check_folder(run, _recipe(run, job))
    if (run / DIVERGED).is_file():
        return True
    if not (run / SUMMARY).is_file():
        return False
    return read_run(1, run, job.name).finished and (not job.corrupted or corrupted_accuracy_of(run) is not None)


def _recipe(run: Path, job: Job) -> Recipe:
    """The job's; what was begun with or without a page is completed that way."""
    if not (run / "recipe.toml").is_file():
        return job.recipe
    return job.recipe.model_copy(update={"record": directory.read_recipe(run).record})


def _train_missing(folder: Path, plan: Plan, device: str, workers: int, quiet: bool) -> None:
    missing = [job for job in plan.jobs if not finished(folder, job)]
    if len(missing) < len(plan.jobs):
        say(f"{len(plan.jobs) - len(missing)} of {len(plan.jobs)} runs are finished already", quiet=quiet)
    # A rate that is measured beside other runs is none: these come after them, alone.
    alone = [job for job in missing if job.timed or workers == 1]
    together = sorted((job for job in missing if not job.timed and workers > 1), key=lambda job: -job.work)
    try:
        for jobs, most in ((together, workers), (alone, 1)):
            count = min(most, len(jobs))
            taken = multiprocessing.get_context("spawn").Value("i", 0)
            group = [Worker(jobs, folder, device, quiet, number, count, taken) for number in range(count)]
            search_workers.run(group)
    except (KeyboardInterrupt, Interrupted):
        done = sum(finished(folder, job) for job in plan.jobs)
        raise Interrupted(
            f"interrupted; {done} of {len(plan.jobs)} runs are finished; "
            f"the same command with --out {quote(str(folder))} goes on"
        ) from None


@dataclass
class Worker:
    """One process at work on `jobs`. Can be pickled for a new process, and shares them with others by `taken`."""

    jobs: list[Job]
    folder: Path
    device: str
    quiet: bool
    number: int
    workers: int
    taken: Any
    """Number of jobs that any worker has taken: a shared int."""
    began: float = 0.0
    done: float = field(default=0.0, init=False)
    """Work that this process has done."""

    def work(self) -> None:
        """Train what nobody else has taken, until there is nothing left."""
        self.began = time.perf_counter()
        while (index := self._next()) < len(self.jobs):
            self._train(index)

    def _next(self) -> int:
        with self.taken.get_lock():
            self.taken.value += 1
            return self.taken.value - 1

    def _train(self, index: int) -> None:
        job, quiet = self.jobs[index], self.quiet or self.workers > 1
        run = self.folder / RUNS / job.name
        who = f"worker {self.number + 1}: " if self.workers > 1 else ""
        left = sum(job.work for job in self.jobs[index:])  # at this process's pace, once it has one
        seconds = left * (time.perf_counter() - self.began) / self.done / self.workers if self.done else None
        time_left = "" if seconds is None else f"  {duration(seconds)} left"
        say(f"{who}run {index + 1}/{len(self.jobs)}: {job.need}, seed {job.seed}{time_left}", quiet=self.quiet)
        if not (run / SUMMARY).is_file() and not (run / DIVERGED).is_file():
            train_run(run, _recipe(run, job), self.device, quiet, search_workers.stop_without_parent)
        if job.corrupted and not (run / DIVERGED).is_file() and corrupted_accuracy_of(run) is None:
            evaluate_corrupted(run, device=self.device, quiet=quiet)
        self.done += job.work
