"""Searches: trials of a recipe with `[sweep.search]`, chosen and pruned by Optuna (Akiba et al. 2019) by a validation
metric. No test image has a part in it.

Each trial is an ordinary run directory, `trial-0001` and on; what Optuna knows of them is in study.db. A trial that was
interrupted is entered anew with the same values and the same folder, so that the same command goes on where it stopped.
Several processes can work on one study.
"""

import itertools
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from fastres.engine.device import choose_device
from fastres.errors import Interrupted, UserError
from fastres.experiments.sweep import results
from fastres.experiments.sweep.page import write_results
from fastres.experiments.sweep.plan import Settings, SweepPoint, check_overrides, value_at
from fastres.experiments.sweep.run import check_folder, train_run
from fastres.experiments.sweep.study import (
    STUDY,
    counted,
    facts_of,
    import_optuna,
    open_study,
    reading,
    recover,
    storage_faults,
    values_of,
)
from fastres.models import build
from fastres.recipe import RangeConfig, Recipe, SearchConfig
from fastres.recipe.loading import Layer, nested, resolve
from fastres.recipe.loading import layers as read_layers
from fastres.recipe.portable import self_contained
from fastres.runs.directory import PLAN
from fastres.runs.many import Results, continued_folder
from fastres.runs.schema import BestTrial, Epoch, Point, Sweep, read_epochs
from fastres.training.data import shape_of
from fastres.utils import workers as search_workers
from fastres.utils.files import write_text
from fastres.utils.format import duration
from fastres.utils.paths import expand_home
from fastres.utils.progress import say

if TYPE_CHECKING:
    import optuna

RANDOM_TRIALS = 10
"""Trials that TPE draws at random first."""


@dataclass(frozen=True)
class SearchPlan:
    """A recipe with a search, and what its trials are made of. Can be pickled, for processes that work on it."""

    path: Path
    below: list[Layer]
    """The files and overrides of the recipe, beneath the values of a trial."""
    recipe: Recipe
    """The recipe without a trial's values, with its search."""

    @property
    def search(self) -> SearchConfig:
        """The search."""
        assert self.recipe.sweep is not None and self.recipe.sweep.search is not None
        return self.recipe.sweep.search

    @property
    def metric(self) -> str:
        """`val_accuracy` or `val_loss`."""
        assert self.recipe.sweep is not None
        return self.recipe.sweep.by

    def point(self, name: str, values: Settings) -> SweepPoint:
        """The trial `name` with values for all parameters. Raises UserError where that is no valid recipe."""
        layer = (f"{self.path}, {name}", nested(values))
        recipe: Recipe = resolve(Recipe, [*self.below, layer], self.path).model_copy(update={"sweep": None})
        return SweepPoint(name, "", {key: value_at(recipe, key) for key in values}, recipe)


def load(path: str | Path, overrides: list[str] | None = None) -> SearchPlan:
    """Read the search of the recipe at `path`.

    Raises UserError where the ends of a range or a choice make no valid recipe, or where test or training images would
    have a part in the choice.
    """
    path, overrides = expand_home(path), overrides or []
    below = read_layers(path, overrides)
    plan = SearchPlan(path, below, resolve(Recipe, below, path))
    parameters = plan.search.parameters
    check_overrides(overrides, [*parameters], {})
    for key in parameters:
        if key.startswith("data.") or key == "train.seed":
            raise UserError(
                f"{path}: '{key}' changes the validation images, by which trials are compared: leave it out"
            )
    ends: dict[str, list[Any]] = {}
    for key, inside in parameters.items():
        ends[key] = [inside.low, inside.high] if isinstance(inside, RangeConfig) else inside
    first = {key: values[0] for key, values in ends.items()}
    for key, values in ends.items():
        for value in values:
            recipe = plan.point(f"{key} = {value}", first | {key: value}).recipe
            if recipe.data.split != "holdout":
                raise UserError(
                    f"{path}: a search needs validation images that are never trained on: add --set data.split=holdout"
                )
            if recipe.method.several_runs:
                raise UserError(f"{path}: a trial is one run, and {recipe.method.several_runs}")
            if (recipe.train.best or "").startswith("test_"):
                raise UserError(
                    f"{path}: train.best = '{recipe.train.best}' chooses by test images: "
                    f"add --set train.best={plan.metric}"
                )
    return plan


# ---------------------------------------------------------------------------------------------------- the work


@dataclass
class _Worker:
    """One process at work on a study."""

    plan: SearchPlan
    folder: Path
    device: str
    quiet: bool
    number: int
    workers: int

    def work(self) -> None:
        """Train trials until there are as many as the search wants."""
        study = open_study(self.folder, self.plan.search, self.plan.metric)
        with storage_faults(self.folder / STUDY):
            while (trial := self._ask(study)) is not None:
                self._try(study, trial)

    def _ask(self, study: "optuna.Study") -> "optuna.Trial | None":
        """The next trial with its values and folder; None when there are enough."""
        from optuna.trial import TrialState

        trials = self.plan.search.trials
        known = counted(study)
        waiting = any(trial.state == TrialState.WAITING for trial in known)
        if len(known) >= trials and not waiting:
            return None
        study.sampler = self._sampler(len(known))
        with reading():
            trial = study.ask()
            for key, inside in self.plan.search.parameters.items():
                _suggest(trial, key, inside)
            earlier = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number]
        if facts_of(trial).folder is not None:
            return trial
        # Another worker may have asked meanwhile: who comes after the last place steps back.
        folders = [(facts_of(one).folder, one.state) for one in earlier]
        begun = {folder for folder, _ in folders if folder is not None}
        asking = sum(folder is None and state == TrialState.RUNNING for folder, state in folders)
        if len(begun) + asking >= trials:
            study.tell(trial, state=TrialState.FAIL)
            return None
        # The first free name, beyond those that the ones asking will take. A process killed in between leaves a gap.
        free = (name for number in itertools.count(1) if (name := f"trial-{number:04}") not in begun)
        trial.set_user_attr("folder", next(itertools.islice(free, asking, None)))
        return trial

    def _sampler(self, count: int) -> Any:
        """Seeded by the number of trials so far: an interrupted search then draws what it would have drawn."""
        optuna = import_optuna()
        search = self.plan.search
        seed = int(np.random.SeedSequence((search.seed, count, self.number)).generate_state(1)[0])
        if search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Trials that others are at work on count as bad, so that workers do not all go to the same place.
            return optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed, constant_liar=self.workers > 1)

    def _try(self, study: "optuna.Study", trial: "optuna.Trial") -> None:
        from optuna.trial import TrialState

        name = facts_of(trial).folder
        assert name is not None, "_ask gave it one"
        run = self.folder / name
        try:
            point = self.plan.point(name, values_of(trial, self.plan.search))
            build(point.recipe.model, *shape_of(point.recipe.data)[:2])
        except UserError as error:  # values that do not go together
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=TrialState.FAIL)
            self._say(f"{name}: {error}")
            return
        check_folder(run, point.recipe)
        row = results.read_point(run, name, "", point.settings)
        if row is None:
            values = {key: f"{each:.4g}" if isinstance(each, float) else each for key, each in point.settings.items()}
            shown = "  ".join(f"{key} = {value}" for key, value in values.items())
            self._say(f"{name} of {self.plan.search.trials}: {shown}  {self._left(study)}".rstrip())
            train_run(run, point.recipe, self.device, self.quiet or self.workers > 1, _Watch(self, trial, point))
            row = results.read_point(run, name, "", point.settings)
            assert row is not None, "a run that ends without an error has a summary"
        else:
            _Watch(self, trial, point).report(read_epochs(run) if row.state != "diverged" else [])
        value = row[self.plan.metric]
        with reading():
            if row.state == "pruned":
                study.tell(trial, state=TrialState.PRUNED)
            elif value is None:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, value)
        state = "" if row.state == "complete" else f", {row.state}"
        metric = self.plan.metric
        self._say(f"{name}: {results.metric_name(metric)} {results.measure_shown(value, metric)}{state}")

    def _left(self, study: "optuna.Study") -> str:
        """The time that is left, in words, from the mean of the trials so far."""
        with reading():
            trials = study.get_trials(deepcopy=False)
            took = [one.duration.total_seconds() for one in trials if one.duration is not None]
        left = self.plan.search.trials - sum(one.state.is_finished() for one in counted(study))
        return f"{duration(left * sum(took) / len(took) / self.workers)} left" if took else ""

    def _say(self, text: str) -> None:
        say(text if self.workers == 1 else f"worker {self.number + 1}: {text}", quiet=self.quiet)


class _Watch:
    """Reports the epochs of a trial, and says when to prune it."""

    def __init__(self, worker: _Worker, trial: "optuna.Trial", point: SweepPoint) -> None:
        self.metric, self.trial, self.epochs = worker.plan.metric, trial, point.recipe.train.epochs
        self.reported = 0

    def report(self, rows: list[Epoch]) -> None:
        """Tell the study of rows that it does not know yet: a resumed trial begins with those of before."""
        for row in rows[self.reported :]:
            if row[self.metric] is not None:
                with reading():
                    self.trial.report(row[self.metric], row.epoch)
        self.reported = len(rows)

    def __call__(self, rows: list[Epoch]) -> str | None:
        search_workers.stop_without_parent()
        self.report(rows)
        with reading():
            return results.PRUNED if rows[-1].epoch < self.epochs and self.trial.should_prune() else None


def _suggest(trial: "optuna.Trial", key: str, inside: RangeConfig | list[Any]) -> None:
    if not isinstance(inside, RangeConfig):
        # Optuna's choices are scalars; a recipe's can be lists.
        trial.suggest_categorical(key, [json.dumps(choice) for choice in inside])
    elif inside.whole:
        trial.suggest_int(key, int(inside.low), int(inside.high), step=int(inside.step or 1), log=inside.log)
    else:
        trial.suggest_float(key, inside.low, inside.high, step=inside.step, log=inside.log)


# ---------------------------------------------------------------------------------------------------- the search


def search(
    plan: SearchPlan,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    quiet: bool = False,
    name: str = "recipe",
) -> Results[Sweep]:
    """Try as many points as the search wants into run directories of the folder `out` (by default
    runs/<name>-sweep-<time>), and write the table and the page. `workers` processes share the cores.

    Where `out` holds the same search, it goes on; only `trials` may have grown. Raises UserError for what the user can
    put right, Interrupted after Ctrl-C or SIGTERM, when everything can be resumed.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: give the number of processes, at least 1")
    import_optuna()
    choose_device(device)
    recipe = self_contained(plan.recipe)
    with continued_folder(out, f"{name}-sweep", PLAN) as folder:
        _check_plan(folder, recipe)
        write_text(folder / PLAN, recipe.to_toml())
        (folder / results.SWEEP).unlink(missing_ok=True)  # its presence says that all trials are done
        study = open_study(folder, plan.search, plan.metric)
        with storage_faults(folder / STUDY):
            recover(study)
            try:
                search_workers.run([_Worker(plan, folder, device, quiet, each, workers) for each in range(workers)])
            except (KeyboardInterrupt, Interrupted):
                done = sum(trial.state.is_finished() for trial in counted(study))
                raise Interrupted(
                    f"interrupted; {done} of {plan.search.trials} trials are finished; "
                    f"the same command with --out {quote(str(folder))} goes on"
                ) from None
            summary = _summarise(folder, plan, study)
        write_results(folder, summary, recipe)
    return Results(folder, summary)


def _check_plan(folder: Path, recipe: Recipe) -> None:
    """Raise UserError where the search in `folder` was begun with another recipe; more trials are welcome."""
    begun = Recipe.load(folder / PLAN) if (folder / PLAN).is_file() else recipe
    asked, before = (each.model_dump(exclude={"sweep": {"search": {"trials"}}}) for each in (recipe, begun))
    if asked != before:
        raise UserError(f"{folder} was begun with another recipe, {folder / PLAN}: run that one, or give another --out")


def _summarise(folder: Path, plan: SearchPlan, study: "optuna.Study") -> Sweep:
    """The summary of a search: no test result but the best trial's."""
    rows = []
    for trial in counted(study):
        facts, values, row = facts_of(trial), values_of(trial, plan.search), None
        name = facts.folder or ""
        if facts.error is None:
            settings = {key: value_at(plan.point(name, values).recipe, key) for key in values}
            row = results.read_point(folder / name, name, "", settings)
        failed = Point(name=name, point="", settings=values, state="failed", error=facts.error)
        rows.append(row or failed)
    summary = results.summarise(rows, plan.metric, source=plan.recipe.data.source)
    first, best = summary.points[0], None
    if first.state == "complete" and first[plan.metric] is not None:
        keys = ("name", "test_accuracy", "test_loss", "test_images", plan.metric)
        best = BestTrial(**{key: first[key] for key in keys})
    untested = dict.fromkeys(["test_accuracy", "test_loss"])
    points = [point.updated(**untested) for point in summary.points]
    return summary.updated(points=points, search=True, best=best)
