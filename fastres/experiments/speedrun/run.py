"""Many runs of one recipe back to back, compiled once: how long one takes, how accurate they are on average.

The number of runs is fixed first, and every finished run counts: stopping at a good mean would make the p-value wrong.
"""

import time
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import torch

from fastres.engine import cuda_graph
from fastres.engine.device import choose_device
from fastres.errors import Interrupted, UserError
from fastres.evaluation.metrics import measure, passes
from fastres.experiments.speedrun.results import FIGURE, PLAN, ROWS, SUMMARY, check_plan, read_rows
from fastres.recipe import Recipe
from fastres.recipe.portable import self_contained
from fastres.report import run_figures
from fastres.report.style import png
from fastres.runs import directory
from fastres.runs.environment import environment
from fastres.runs.many import Results, continued_folder
from fastres.runs.schema import ENVIRONMENT, Speedrun, SpeedrunPlan, SpeedrunRow
from fastres.training.data import labels_of
from fastres.training.session import Session
from fastres.training.step import StepVariant
from fastres.utils.files import write_bytes, write_text
from fastres.utils.format import duration
from fastres.utils.json_files import write_lines
from fastres.utils.machine import contention
from fastres.utils.paths import expand_home
from fastres.utils.progress import say
from fastres.utils.statistics import Sample

WARM_UP = cuda_graph.WARM_UP + 1
"""Launches of each kind of step before the first run: the first compiles, a GPU captures the last."""

TIMED = (
    "from freshly drawn weights to the test accuracy on the host: initialisation from training images, order, "
    "augmentation, training and the final test with its test-time augmentation"
)
NOT_TIMED = "opening, decoding and uploading the data; compilation and warm-up; drawing the weights"


def speedrun(
    recipe: Recipe,
    count: int,
    *,
    target: float = 0.94,
    out: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    name: str = "recipe",
) -> Results[Speedrun]:
    """Train `recipe` `count` times, run i (from 0) with the seed train.seed + i, and test whether the mean accuracy is
    above `target`, a share; everything goes into the folder `out` (by default runs/<name>-speedrun-<time>).

    Where `out` holds an interrupted speedrun of the same recipe, `count` and `target`, the missing runs are added.
    Raises UserError for what the user can put right; after Ctrl-C or SIGTERM Interrupted, and finished runs are kept.
    """
    recipe.check_single()
    _check(recipe, count, target)
    recipe = self_contained(recipe)
    where = choose_device(device)
    out = out and expand_home(out)
    if out is None or not (Path(out) / PLAN).is_file():
        directory.check_free(out)
    elif (Path(out) / SUMMARY).is_file():
        raise UserError(f"{out} is complete, and a speedrun's number of runs is fixed beforehand: give another --out")
    session = _Series(recipe, where, quiet)
    try:
        machine = environment(str(where))
        key, device_name, data = recipe.hash(), machine.device_name, session.data_module.fingerprint
        plan = SpeedrunPlan(recipe_hash=key, runs=count, target=target, device=device_name, data=data)
        with continued_folder(out, f"{name}-speedrun", PLAN) as folder, cuda_graph.side_stream(where):
            check_plan(folder, plan)
            write_text(folder / "resolved.toml", recipe.to_toml())
            machine.write(folder / ENVIRONMENT)
            rows = session.complete(folder, count)
            summary = session.summary(plan, rows)
            write_bytes(folder / FIGURE, png(run_figures.speedrun(rows, summary)))
            summary.write(folder / SUMMARY)  # last: its presence says that all is done
    finally:
        session.data_module.close()
    return Results(folder, summary)


def _check(recipe: Recipe, count: int, target: float) -> None:
    if count < 1:
        raise UserError(f"--runs {count}: give the number of runs, at least 1")
    if not 0 < target < 1:
        raise UserError(f"--target {target:g}: give an accuracy as a share between 0 and 1, such as 0.94")
    if recipe.train.seed + count > 2**32:
        raise UserError(f"train.seed = {recipe.train.seed} leaves no {count} seeds below 2³²: set a smaller one")
    if recipe.method.several_runs:
        raise UserError(f"a speedrun trains once, and {recipe.method.several_runs}")
    if recipe.method.learns_features:
        raise UserError(f"{recipe.method.setting} learns features; a speedrun times supervised training")
    unsuited = {
        "data.split=none": recipe.data.split != "none",
        "train.best=": recipe.train.best is not None,
        "train.early_stopping=0": recipe.train.early_stopping > 0,
        "eval.test_every=0": recipe.eval.test_every > 0,
    }
    fixes = " ".join(f"--set {setting}" for setting, wrong in unsuited.items() if wrong)
    if fixes:
        raise UserError(f"a speedrun trains on all images and tests once, at the end: add {fixes}")


class _Series(Session):
    """A session in which run follows run."""

    def __init__(self, recipe: Recipe, device: torch.device, quiet: bool) -> None:
        super().__init__(recipe, device, quiet=quiet)
        self.labels = labels_of(self.data_module.test)

    def summary(self, plan: SpeedrunPlan, rows: list[SpeedrunRow]) -> Speedrun:
        """What was planned, facts about recipe, network and data, and mean, spread and significance of the runs."""
        accuracy = Sample.of([row.test_accuracy for row in rows])
        seconds = Sample.of([row.seconds for row in rows])
        low, high = accuracy.interval(low=0, high=1) or (None, None)
        return Speedrun.of(
            plan,
            source=self.recipe.data.source,
            first_seed=self.recipe.train.seed,
            parameters=self.parameters,
            multiply_adds=self.multiply_adds,
            epochs=self.recipe.train.epochs,
            steps=self.step.steps,
            precision=self.recipe.train.precision,
            compile_note=self.step.loss_and_correct.fallback_reason,
            tta=self.recipe.eval.tta,
            tta_passes=passes(self.recipe.eval),
            test_images=len(self.labels),
            loader=self.data_module.loading.name,
            timed=TIMED,
            not_timed=NOT_TIMED,
            mean_accuracy=accuracy.mean,
            sd_accuracy=accuracy.sd,
            interval_low=low,
            interval_high=high,
            p_mean_above_target=accuracy.p_above(plan.target),
            mean_seconds=seconds.mean,
            sd_seconds=seconds.sd,
            cold_seconds=rows[0].cold_seconds,
            compiled_from_cache=rows[0].compiled_from_cache,
            compiled=all(row.compiled for row in rows),
        )

    def complete(self, folder: Path, count: int) -> list[SpeedrunRow]:
        """Add the missing ones of `count` runs to runs.jsonl; returns its rows."""
        rows = read_rows(folder)
        first = len(rows)
        size = f"{self.step.steps} steps, {self.parameters:,} parameters"
        say(f"{folder}: {count} runs of {size}, {self.device}", quiet=self.quiet)
        if rows:
            say(f"{first} runs were finished before", quiet=self.quiet)
        if (busy := contention()) is not None:
            say(busy, quiet=self.quiet)
        try:
            if first < count:
                say("compiling and warming up", quiet=self.quiet)
                self._warm_up()
            progress = _Progress(first, count, self.step.steps, self.quiet)
            for run in range(first, count):
                row = self._run(run, progress.step)
                if run == first:
                    start = time.perf_counter() - self.opened
                    cached = self.step.loss_and_correct.from_cache
                    row = row.updated(cold_seconds=start, compiled_from_cache=cached)
                rows.append(row)
                write_lines(folder / ROWS, rows)
                progress.end(rows)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted: {len(rows)} of {count} runs are kept; "
                f"the same command with --out {quote(str(folder))} adds the rest"
            ) from None
        return rows

    def _warm_up(self) -> None:
        """Compile, and do all that a run does. What comes out is nobody's: each run draws weights of its own."""
        self.step.restart(self.draw(self.recipe.train.seed), self.recipe.train.seed)
        whole, options = len(self.data_module.train), self.recipe.train
        partial = not options.drop_last and len(self.data_module.train.subset) % options.batch_size
        kinds: dict[tuple[StepVariant, bool], int] = {}
        for step in range(self.step.steps):
            kind = self.step.variant(step), bool(partial) and step % whole == whole - 1
            kinds.setdefault(kind, step)
        for first in kinds.values():
            for _ in range(WARM_UP):
                self._train(first, min(first + self.runner.steps_per_launch, self.step.steps))
        measure(self.evaluator.logits(self.data_module.test, self.recipe.eval), self.labels)

    def _run(self, run: int, stepped: Callable[[int], None]) -> SpeedrunRow:
        seed = self.recipe.train.seed + run
        self.data_module.reseed(seed)
        network = self.draw(seed)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        began = time.perf_counter()  # what follows, up to the next look at the clock, is what TIMED says
        self.initialise(network)
        self.step.restart(network, seed)
        self._train(0, self.step.steps, stepped)
        measured = measure(self.evaluator.logits(self.data_module.test, self.recipe.eval), self.labels)
        seconds = time.perf_counter() - began
        accuracy, loss, compiled = measured.accuracy, measured.loss, self.step.loss_and_correct.active
        return SpeedrunRow(
            run=run, seed=seed, test_accuracy=accuracy, test_loss=loss, seconds=seconds, compiled=compiled
        )

    def _train(self, first: int, end: int, stepped: Callable[[int], None] | None = None) -> None:
        """Steps `first` to before `end` of a run; nothing here waits for a GPU. `stepped` hears how many are done."""
        per_epoch = len(self.data_module.train)
        while first < end:
            epoch, begin = divmod(first, per_epoch)
            for done in self.runner.epoch(epoch, begin, min(per_epoch - begin, end - first)):
                first += done.steps
                if stepped is not None:
                    stepped(first)


class _Progress:
    """Lines on standard error: one a run, and in long runs one every 30 seconds, with the time that is left."""

    def __init__(self, first: int, count: int, steps: int, quiet: bool) -> None:
        self.first, self.done, self.count, self.steps, self.quiet = first, first, count, steps, quiet
        self.began = self.said = time.monotonic()

    def step(self, step: int) -> None:
        if time.monotonic() - self.said >= 30:
            self._say(f"step {step}/{self.steps}", self._left(self.done + step / self.steps))

    def end(self, rows: list[SpeedrunRow]) -> None:
        row, sample = rows[-1], Sample.of([row.test_accuracy for row in rows])
        cells = [f"seed {row.seed}", f"test {row.test_accuracy:7.2%}", f"{row.seconds:.2f} s"]
        cells.append(f"mean {sample.mean:.2%}" + ("" if sample.sd is None else f", SD {sample.sd:.2%}"))
        if row.test_loss is None:
            cells.append("its loss is not finite")
        self._say(*cells, *[self._left(len(rows))] * (len(rows) < self.count))
        self.done = len(rows)

    def _say(self, *cells: str) -> None:
        self.said = time.monotonic()
        counted = f"run {self.done + 1:>{len(str(self.count))}}/{self.count}"
        say("  ".join((counted, *cells)), quiet=self.quiet)

    def _left(self, done: float) -> str:
        """Runs take equally long: warmed up, the first is like the others."""
        return f"{duration((self.count - done) * (time.monotonic() - self.began) / (done - self.first))} left"
