"""The runs that the claims need: recipes, seeds, costs. A run that several claims need is there once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastres.data import info
from fastres.data.order import split
from fastres.data.sources.named import SETS
from fastres.data.sources.resolve import is_cifar10
from fastres.errors import UserError
from fastres.experiments.reproduce.claims import BEST, choose
from fastres.experiments.reproduce.scaling import scaled, trained_images
from fastres.experiments.reproduce.schema import ListedRun
from fastres.experiments.reproduce.verdicts import Claim, Measured, Need
from fastres.experiments.sweep.plan import load
from fastres.models import build, count_parameters, layers
from fastres.recipe import Recipe
from fastres.recipe.portable import self_contained

UNLABELLED = "unlabelled.pkl"
"""The test images without their labels, in the form of the challenge's file: what pseudo-labels are made for."""

_APART = ("train.seed", "data.source", "data.train_images", "data.test_images")


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    """Of its folder: the recipe's hash, and the loader where the recipe names one, which the hash leaves out."""
    need: Need
    """The first that it meets."""
    recipe: Recipe
    seed: int
    claims: tuple[str, ...]
    """Names of the claims that need it."""
    corrupted: bool
    """Whether it is also tested on corrupted images."""
    timed: bool
    """Whether it has the device for itself."""
    passes: float
    """Images that it trains on, each as often as it is met."""
    work: float
    """Multiply-adds of a forward pass of all of these."""

    def listed(self) -> ListedRun:
        """The run as JSON has it before it is trained."""
        epochs = self.recipe.train.epochs
        return ListedRun.of(self, run=self.name, recipe=str(self.need), epochs=epochs, image_passes=self.passes)


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first run."""

    asked: tuple[str, ...]
    """Names of claims and subjects as they were given; none for all."""
    claims: tuple[Claim, ...]
    seeds: tuple[int, ...]
    scale: float
    source: str
    settings: tuple[str, ...]
    """Values that hold for all recipes, as for `--set`."""
    train_images: int
    test_images: int
    """Of the whole source."""
    original: bool
    """Whether the images are CIFAR-10's own pixels, and no JPEG files of them."""
    known: bool
    """Whether these are the source's; one that was never prepared is taken to be as large as CIFAR-10."""
    jobs: tuple[Job, ...]
    """In the order of training."""
    names: dict[tuple[Need, int], str]
    """The run of each recipe and seed that is trained."""
    facts: dict[tuple[Need, int], Measured]
    """Quantities of each recipe and seed that need no training."""

    def job(self, need: Need, seed: int) -> Job | None:
        """The run of a recipe, None where nothing that was asked for needs one."""
        name = self.names.get((need, seed))
        return next((job for job in self.jobs if job.name == name), None)


def make(
    names: Sequence[str],
    *,
    recipes: Path,
    out: Path,
    source: str | None,
    seeds: int,
    scale: float,
    settings: Sequence[str],
) -> Plan:
    """Plan the claims `names`, all without any, for the folder `out`.

    Raises UserError for names, recipes and values that cannot be used; nothing is prepared, trained or written.
    """
    claims = choose(names)
    if not 0 < scale <= 1:
        raise UserError(f"--scale {scale:g}: give a number above 0 and up to 1, which is the whole")
    if not 1 <= seeds <= 1000:
        raise UserError(f"--seeds {seeds}: give a number from 1 to 1000")
    for text in settings:
        key = text.partition("=")[0].strip()
        if key in _APART or key in ("data", "train") or key.split(".")[0] == "sweep":
            raise UserError(f"--set {text}: reproduce sets '{key}' itself: use --source, --seeds and --scale")
    if not (recipes / BEST.recipe).is_file():
        raise UserError(
            f"{recipes} does not hold the report's recipes: they are the folder recipes of fastres's source; "
            "give it with --recipes"
        )
    overrides = [*settings, *([] if source is None else [f"data.source={json.dumps(source, ensure_ascii=False)}"])]
    loaded: dict[Need, Recipe] = {}
    for need in dict.fromkeys(need for claim in claims for need in claim.needs):
        loaded[need] = _load(recipes, need, overrides)
    data = self_contained(next(iter(loaded.values()))).data
    train_images, test_images, classes, size, known = _counts(data)
    about = (data.source, tuple(settings), train_images, test_images, is_cifar10(data.source), known)
    planned = Plan(tuple(names), claims, tuple(range(seeds)), scale, *about, (), {}, {})
    timed = {need for claim in claims if claim.timed for need in claim.needs}
    jobs: dict[str, Job] = {}
    run_of: dict[tuple[Need, int], str] = {}
    facts: dict[tuple[Need, int], Measured] = {}
    for need, recipe in loaded.items():
        try:
            network = build(recipe.model, classes, size)
        except UserError as error:
            raise UserError(f"{need}: {error}") from error
        products = sum(layer.multiply_adds for layer in layers(network, size))
        cut = scaled(recipe, scale, train_images, test_images, timed=need in timed)
        for seed in planned.seeds:
            own = _for_run(cut, seed, out, record=scale == 1 or (need == BEST and seed == 0))
            leaked = _leaked(recipe, train_images, seed)
            facts[need, seed] = Measured(count_parameters(network), leaked)
            asking = tuple(claim.name for claim in claims if claim.trains and need in claim.needs)
            if not asking:
                continue
            name = _name(own)
            run_of[need, seed] = name
            labelled = trained_images(own, train_images)
            unlabelled = min(test_images, own.data.test_images or test_images)
            images = own.method.images(labelled, unlabelled)
            passes = own.train.epochs * images
            corrupted = any(claim.corrupted and need in claim.needs for claim in claims)
            job = Job(name, need, own, seed, asking, corrupted, need in timed, passes, passes * products)
            twin = jobs.get(name)
            if twin is not None:
                # The run with a page is the one to keep: `record` is not part of a run's identity.
                base = twin if twin.recipe.record.report else job
                asked = tuple(dict.fromkeys(twin.claims + asking))
                job = replace(base, claims=asked, corrupted=twin.corrupted or corrupted, timed=twin.timed or job.timed)
            jobs[name] = job
    ordered = sorted(jobs.values(), key=lambda job: job.timed)
    return replace(planned, jobs=tuple(ordered), names=run_of, facts=facts)


def _load(recipes: Path, need: Need, overrides: list[str]) -> Recipe:
    path = recipes / need.recipe
    settings = [*overrides, *need.settings]
    if not need.point:
        recipe = Recipe.load(path, settings)
        recipe.check_single()
        return recipe
    points = {point.name: point.recipe for point in load(path, settings).points}
    if need.point not in points:
        raise UserError(f"{path} has no point {need.point}: restore the recipes, or give others with --recipes")
    return points[need.point]


def _counts(data: Any) -> tuple[int, int, int, int, bool]:
    """Training and test images of the source, classes, side in pixels, and whether that is known."""
    facts = info(data.source, store=data.store, image_size=data.image_size, root=data.root)
    size = facts["image_size"]
    if facts["prepared"]:
        parts = facts["parts"]
        for part in ("train", "test"):
            if "classes" not in parts.get(part, {}):
                raise UserError(f"{data.source} has no {part} images with labels: the claims need both parts")
        return parts["train"]["images"], parts["test"]["images"], len(facts["classes"]), size, True
    known = data.source in SETS
    named = SETS[data.source if known else "cifar10"]
    return named.train, named.test, named.classes, size, known


def _for_run(recipe: Recipe, seed: int, out: Path, *, record: bool) -> Recipe:
    """The recipe of one seed as it is trained below `out`."""
    changes: dict[str, Any] = {
        "train": recipe.train.model_copy(update={"seed": seed}),
        "method": recipe.method.with_unlabelled(str((out / UNLABELLED).absolute())),
    }
    if not record:  # figures and page take longer than a short training
        changes["record"] = recipe.record.model_copy(update={"report": False})
    return self_contained(recipe.model_copy(update=changes))


def _name(recipe: Recipe) -> str:
    data = recipe.data
    loader = "" if data.loader == "auto" else f"-{data.loader}"
    return recipe.hash() + loader + ("" if data.workers is None else f"-workers{data.workers}")


def _leaked(recipe: Recipe, train_images: int, seed: int) -> float | None:
    """Share of the validation images that are trained on, of a set of `train_images`."""
    count = min(train_images, recipe.data.train_images or train_images)
    train, validation = split(recipe.data, count, seed)
    return len({*train.tolist()} & {*validation.tolist()}) / len(validation) if len(validation) else None
