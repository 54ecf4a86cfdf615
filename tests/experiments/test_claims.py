"""The claims of the report: the rule of their verdicts, their quantities, how runs are scaled, planned and shown."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastres.data.order import split
from fastres.errors import UserError
from fastres.experiments.reproduce import page, quantities
from fastres.experiments.reproduce.claims import BEST, CLAIMS, choose
from fastres.experiments.reproduce.plan import Plan, make
from fastres.experiments.reproduce.results import find
from fastres.experiments.reproduce.scaling import STEPS, TESTED, scaled, trained_images
from fastres.experiments.reproduce.verdicts import (
    NOT_REPRODUCED,
    OTHER_MACHINE,
    REPRODUCED,
    UNDECIDED,
    UNTESTABLE,
    Claim,
    Measured,
    Need,
    interval_of,
    judge,
    limits_of,
    mean_and_sd,
)
from fastres.recipe import Recipe
from fastres.report.document import Details, Heading, Link, Note, Picture, Table, Tiles, html, markdown
from fastres.report.run_figures import honest_loss
from fastres.report.style import png
from fastres.runs.schema import Epoch, Round, Summary
from fastres.utils.statistics import TWO_SEEDS, Sample
from tests.pages import Page

RECIPES = Path(__file__).parents[2] / "recipes"


def plan(*names: str, **options: Any) -> Plan:
    """A plan from the report's recipes on a set that needs no preparing to be known."""
    given = {"out": Path("runs/x"), "source": "shapes10", "seeds": 2, "scale": 1.0, "settings": []} | options
    return make(names, recipes=RECIPES, **given)


def claim(**changes: Any) -> Claim:
    """A claim of an accuracy between 91% and 93%."""
    about: dict[str, Any] = {"name": "a", "subject": "a", "says": "", "figure": "92%", "needs": (BEST,)}
    about |= {"quantity": "", "measure": quantities.accuracy(), "form": "share", "low": 0.91, "high": 0.93}
    return Claim(**about | changes)


# ---------------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("changes", "values", "scale", "original", "verdict"),
    [
        ({}, [0.919, 0.920, 0.921], 1, True, REPRODUCED),  # 92% ± t(2) 4.303 · 0.1% / √3 = ± 0.25 points
        ({}, [0.800, 0.801, 0.802], 1, True, NOT_REPRODUCED),
        ({}, [0.905, 0.910, 0.915], 1, True, UNDECIDED),  # 91% ± 1.24 points reaches across 91%
        ({}, [0.92], 1, True, UNDECIDED),
        ({}, [0.919, None, 0.921], 1, True, UNDECIDED),
        ({}, [None, None], 1, True, UNDECIDED),
        ({}, [0.919, 0.920, 0.921], 0.5, True, UNTESTABLE),
        ({"any_scale": True}, [0.919, 0.920, 0.921], 0.5, True, REPRODUCED),
        ({"undecidable": "no labels"}, [0.919, 0.920, 0.921], 1, True, UNDECIDED),
        ({"pixels": True}, [0.919, 0.920, 0.921], 1, True, REPRODUCED),
        ({"pixels": True}, [0.919, 0.920, 0.921], 1, False, UNDECIDED),
        ({}, [0.919, 0.920, 0.921], 1, False, REPRODUCED),  # what compares recipes can be told on other images
        # An effect: a factor of 2 or more. Logarithms of 4 and 4.4: mean 1.434, ± 12.71 · 0.0674 / √2 = ± 0.606.
        ({"form": "factor", "low": 2.0, "high": math.inf}, [4.0, 4.4], 1, True, REPRODUCED),
        ({"form": "factor", "low": 2.0, "high": math.inf}, [1.00, 1.01], 1, True, NOT_REPRODUCED),
        ({"form": "factor", "low": 2.0, "high": math.inf}, [1.5, 3.0], 1, True, UNDECIDED),
        # What takes no training is certain, by a single seed too.
        ({"trains": False, "form": "count", "low": 10, "high": 12}, [11], 1, True, REPRODUCED),
        ({"trains": False, "form": "count", "low": 10, "high": 12}, [13, 14], 1, True, NOT_REPRODUCED),
        ({"trains": False, "form": "count", "low": 10, "high": 12}, [11, 14], 1, True, UNDECIDED),
    ],
)
def test_verdicts(changes: dict[str, Any], values: list[float], scale: float, original: bool, verdict: str) -> None:
    found = judge(claim(**changes), values, scale, original=original)
    assert found.verdict == verdict
    assert found.why


@settings(deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=2, max_size=8),
    low=st.floats(0, 1),
    width=st.floats(0, 1),
    data=st.data(),
)
def test_a_verdict_follows_from_interval_and_limits_alone(
    values: list[float], low: float, width: float, data: st.DataObject
) -> None:
    asked = claim(low=low, high=low + width)
    found = judge(asked, values, 1)
    ends = interval_of(found)
    assert ends is not None
    # Of shares, Student's interval on the logit scale.
    assert ends == Sample.of(values).interval(low=0, high=1) and 0 <= ends[0] <= ends[1] <= 1
    inside = low <= ends[0] and ends[1] <= low + width
    outside = ends[1] < low or low + width < ends[0]
    assert found.verdict == (REPRODUCED if inside else NOT_REPRODUCED if outside else UNDECIDED)
    assert judge(asked, data.draw(st.permutations(values)), 1).verdict == found.verdict


def test_an_interval_stays_where_its_values_can_be() -> None:
    # Two values far apart: ± t(1) standard errors alone would reach from -107 to 147 points, from -31 to 51 seconds.
    points = interval_of(judge(claim(form="points"), [0.1, 0.3], 1))
    seconds = interval_of(judge(claim(form="seconds", low=0.0, high=25.0), [5.0, 15.0], 1))
    assert points is not None and -1 <= points[0] < 0.1 < 0.3 < points[1] <= 1
    assert seconds is not None and 0 < seconds[0] < 5 < 15 < seconds[1]


def test_two_seeds_say_little() -> None:
    assert TWO_SEEDS.startswith("two seeds say little")
    assert TWO_SEEDS in judge(claim(), [0.919, 0.921], 1).why
    assert TWO_SEEDS not in judge(claim(), [0.919, 0.920, 0.921], 1).why


def test_a_claim_about_a_machine_is_tested_there_alone() -> None:
    [asked] = choose(["epoch-time"])
    slow = [185.0, 185.3, 185.1]
    for devices in ((), ("a processor",), ("Tesla T4", "a processor")):
        assert judge(asked, slow, 1, devices=devices).verdict == OTHER_MACHINE == "not testable on this machine"
    assert judge(asked, slow, 1, devices=("Tesla T4", "Tesla P100-PCIE-16GB")).verdict == NOT_REPRODUCED
    assert judge(asked, [20.0, 20.1, 20.2], 0.1, devices=("Tesla T4",)).verdict == REPRODUCED


def test_numbers_are_shown_with_their_spread() -> None:
    assert mean_and_sd([0.90, 0.92], "share") == "91.00% ± 1.41%"
    assert mean_and_sd([0.01, None, 0.03], "points") == "+2.00 points ± 1.41 points"
    # The mean is √(1 · 4); the SD of 0 and ln 4 is 0.980, of which e to the power is 2.665.
    assert mean_and_sd([1.0, 4.0], "factor") == "2× ± 166.5%"
    assert mean_and_sd([4_903_242, 4_903_242], "count") == "4,903,242"
    assert mean_and_sd([20.0], "seconds") == "20 s"
    assert mean_and_sd([None], "loss") == "–"
    assert limits_of(claim(form="points", low=-0.01, high=math.inf, limits="why")) == "-1.00 points or more: why"


# ---------------------------------------------------------------------------------------------------- the quantities


def epochs(train: Sequence[float], val: Sequence[float | None] = (None,) * 4) -> tuple[Epoch, ...]:
    return tuple(
        Epoch(epoch=number, train_loss=one, val_loss=other)
        for number, (one, other) in enumerate(zip(train, val, strict=True), 1)
    )


def test_quantities_by_hand() -> None:
    # Changes of the second half, 1 → 2 → 1, are +1 and −1: their SD is √2.
    assert quantities.restlessness([9, 5, 3, 1, 2, 1]) == pytest.approx(math.sqrt(2), rel=1e-15)
    assert quantities.restlessness([9, 5, 3, 3.0, 2.0, 1.0]) == 0, "a steady fall is not erratic"
    assert quantities.restlessness([3, 2, 1]) is None and quantities.restlessness([9, 5, 3, 1, None, 1]) is None
    assert quantities.epochs_until([3, 2, 1], 1.5) == 2.5
    assert quantities.epochs_until([3, 2, 1], 3.5) == 1
    assert quantities.epochs_until([3, 2, 1], 0.5) is None
    one = Measured(
        10, summary=Summary(images_per_second=2000, test_accuracy=0.9), epochs=epochs((4, 3, 2, 1), (4, 3, 2, 0.5))
    )
    rounds = tuple(Round(test_accuracy=accuracy) for accuracy in (0.8, 0.7, 0.81))
    other = replace(one, summary=Summary(test_accuracy=0.8, rounds=rounds), epochs=epochs((3.5, 2.5, 2, 2)))
    # After half of its epochs the first has a loss of 3, by epoch 2; the second falls through 3 at epoch 1.5.
    assert quantities.faster([one, other]) == pytest.approx(2 / 1.5, rel=1e-15)
    assert quantities.faster([one, replace(one, epochs=epochs((9, 9, 9, 9)))]) == 0.5, "never counts as the last epoch"
    assert quantities.faster([one, Measured(10)]) is None
    difference = quantities.difference(quantities.accuracy(0), quantities.accuracy(1))
    assert difference([one, other]) == pytest.approx(0.1, rel=1e-12) and difference([one, Measured(10)]) is None
    assert quantities.ratio(quantities.last_training_loss(), quantities.last_validation_loss())([one]) == 2
    assert quantities.epoch_seconds()([one]) == 20  # 40,000 images
    assert quantities.gain_of_pseudo_labels([other]) == pytest.approx(0.01, rel=1e-12)
    assert quantities.gain_of_pseudo_labels([one]) is None


@pytest.mark.parametrize("asked", CLAIMS, ids=lambda claim: claim.name)
def test_a_claim_without_runs_has_no_number(asked: Claim) -> None:
    """As after a divergence: nothing fails, nothing is made up."""
    values = [asked.measure([Measured(10, leaked=0.8)] * len(asked.needs)) for _ in range(2)]
    if asked.trains:
        assert values == [None, None]
        assert judge(asked, values, 1).verdict == (OTHER_MACHINE if asked.devices else UNDECIDED)
    else:
        assert None not in values


# ---------------------------------------------------------------------------------------------------- the scale


@settings(deadline=None, max_examples=200)
@given(
    scale=st.floats(1e-6, 1, exclude_max=True),
    epochs=st.integers(1, 300),
    batch=st.integers(1, 300),
    share=st.sampled_from([None, 0.05, 0.1, 0.2, 0.5]),
    train_images=st.integers(1000, 60_000),
    test_images=st.integers(10, 20_000),
    limit=st.none() | st.integers(500, 30_000),
)
def test_scaling(
    scale: float, epochs: int, batch: int, share: float | None, train_images: int, test_images: int, limit: int | None
) -> None:
    recipe = Recipe.model_validate(
        {
            "data": {"split": "none"} if share is None else {"split": "holdout", "validation_share": share},
            "train": {"epochs": epochs, "batch_size": batch},
        }
    )
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train_images": limit})})
    cut = scaled(recipe, scale, train_images, test_images)
    whole, kept = min(train_images, limit or train_images), cut.data.train_images
    assert kept is not None and 0 < kept <= whole
    trained, before = trained_images(cut, train_images), trained_images(recipe, train_images)
    assert cut.train.epochs == max(1, round(math.sqrt(scale) * epochs))
    # Whole batches, ten at least, and the nearest number of them: all images where there are fewer.
    wanted = batch * max(STEPS, round(math.sqrt(scale) * before / batch))
    assert trained == min(wanted, before)
    chosen, held = split(cut.data, kept, 0) if share is None or round(kept * share) else (np.arange(trained), [])
    assert len(chosen) == trained and len(chosen) + len(held) == kept
    tested = cut.data.test_images
    assert tested == max(min(TESTED, test_images), round(math.sqrt(scale) * test_images))
    # Nothing else is touched.
    undone = cut.model_dump()
    undone["train"]["epochs"], undone["data"]["train_images"], undone["data"]["test_images"] = epochs, limit, None
    assert undone == recipe.model_dump()
    assert scaled(recipe, scale, train_images, test_images, timed=True).train.epochs == epochs


def test_the_whole_is_the_recipe_itself_and_warmups_are_refused() -> None:
    recipe = Recipe.model_validate({"schedule": {"name": "cosine", "warmup_epochs": 5}, "train": {"epochs": 20}})
    assert scaled(recipe, 1, 50_000, 10_000) is recipe
    with pytest.raises(UserError, match=r"--scale 0.0001 leaves no valid recipe: .*warmup_epochs"):
        scaled(recipe, 0.0001, 50_000, 10_000)


# ---------------------------------------------------------------------------------------------------- the plan


def test_the_table_of_claims() -> None:
    names = [claim.name for claim in CLAIMS]
    assert len({*names}) == len(names)
    for claim in CLAIMS:
        others = {other.name for other in CLAIMS if other.subject == claim.name}
        assert others <= {claim.name}, f"{claim.name} would mean a claim and a subject of others"
        assert claim.low <= claim.high and claim.says and claim.quantity
    assert choose([]) == CLAIMS
    assert [claim.name for claim in choose(["leak", "epochs-50"])] == [
        "epochs-50",
        "held-out",
        "leak-loss",
        "honest-split",
    ]
    with pytest.raises(UserError, match=r"no claim weight_decay: did you mean weight-decay\?"):
        choose(["weight_decay"])


def test_runs_are_shared_between_claims() -> None:
    made = plan()
    jobs = {job.name: job for job in made.jobs}
    assert len(jobs) == len(made.jobs) == 2 * 13
    # report_best.toml is also 100 epochs, SGD, the leaky split and the report's own augmentation.
    for same in (Need("report/epochs.toml", "epochs=100"), Need("report/optimizers.toml", "sgd")):
        assert made.job(same, 0) is made.job(BEST, 0)
    best = made.job(BEST, 0)
    assert best is not None and best.corrupted and not best.timed
    assert {"best", "epochs-100", "sgd-generalises", "training-loss", "leak-loss"} <= {*best.claims}
    # Hashes leave the loader's workers out, and these two are about nothing else.
    none, many = (made.job(Need("report/workers.toml", f"workers={which}"), 1) for which in ("0", "default"))
    assert none is not None and many is not None and none is not many and none.recipe.hash() == many.recipe.hash()
    assert [job.timed for job in made.jobs] == [False] * 22 + [True] * 4, "those are last, and run alone"
    # 100 epochs of 80% of shapes10's 10,000 images.
    assert best.passes == 800_000
    labelled = made.job(Need("methods/pseudo_label_report.toml"), 0)
    assert labelled is not None and labelled.passes == 100 * (8_000 + 8_000 + 2_000)


def test_what_needs_no_training() -> None:
    made = plan("parameters", "held-out", settings=[], scale=0.002)
    assert made.jobs == ()
    found = {finding.claim.name: finding for finding in (find(made, claim, {}) for claim in made.claims)}
    counted = {"resnet18": 11_173_962, "best": 4_903_242, "halved": 2_797_610}
    counted |= {"notebook": 1_247_530, "resnet34": 21_282_122}
    for name, count in counted.items():
        finding = found[f"parameters-{name}"]
        assert (finding.values, finding.verdict) == ((count, count), REPRODUCED)
    # A random 80% of all images are trained on, so 80% of any 2,000 are: ± 5 SD of 0.8% (hypergeometric).
    leaked = found["held-out"]
    assert leaked.verdict == NOT_REPRODUCED
    assert all(value == pytest.approx(0.8, abs=0.04) for value in leaked.values)


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["leek"], {}, "there is no claim leek: did you mean leak?"),
        (["zzz"], {}, "`fastres reproduce --list` names them"),
        (["leak"], {"scale": 0.0}, "--scale 0: give a number above 0"),
        (["leak"], {"scale": 1.5}, "--scale 1.5: give a number above 0"),
        (["leak"], {"scale": math.nan}, "--scale nan: give a number above 0"),
        (["leak"], {"seeds": 0}, "--seeds 0: give a number from 1"),
        (["leak"], {"settings": ["train.seed=3"]}, "reproduce sets 'train.seed' itself"),
        (["leak"], {"settings": ["data={}"]}, "reproduce sets 'data' itself"),
        (["leak"], {"settings": ["optimizer.lrr=3"]}, "did you mean 'optimizer.lr'?"),
        (["optimizers"], {"settings": ["optimizer.lr=3"]}, "the points of the sweep set 'optimizer.lr' themselves"),
        (["leak"], {"source": "shapes1"}, "did you mean 'shapes10'?"),
    ],
)
def test_plans_that_cannot_be(names: list[str], options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as error:
        plan(*names, **options)
    assert expected in str(error.value) and str(error.value).count("\n") <= 1


def test_recipes_that_are_missing(tmp_path: Path) -> None:
    given: dict[str, Any] = {"out": tmp_path, "source": "shapes10", "seeds": 1, "scale": 1, "settings": []}
    with pytest.raises(UserError, match=r"does not hold the report's recipes: .*--recipes"):
        make(["leak"], recipes=tmp_path, **given)
    (tmp_path / "report_best.toml").write_bytes((RECIPES / "report_best.toml").read_bytes())
    with pytest.raises(UserError, match=r"validation\.toml: no such recipe"):
        make(["leak"], recipes=tmp_path, **given)
    (tmp_path / "report").mkdir()
    other = (RECIPES / "report" / "validation.toml").read_text().replace('"holdout"', '"none"')
    (tmp_path / "report" / "validation.toml").write_text(other + '"train.best" = [""]\n')
    with pytest.raises(UserError, match=r"validation\.toml has no point split=holdout: restore the recipes"):
        make(["leak"], recipes=tmp_path, **given)


# ---------------------------------------------------------------------------------------------------- the page


def test_both_pages_say_the_same_and_escape_what_they_are_given() -> None:
    odd = "<b>|a\nb"
    picture = png(honest_loss([Epoch(epoch=1, train_loss=2.0, val_loss=1.0)], [Epoch(epoch=1, val_loss=3.0)]))
    parts = [
        Note(odd),
        odd,
        Heading(odd),
        Tiles([(odd, odd, odd)]),
        Table([odd, "B"], [[odd, Link(odd, "a folder/")]]),
        Picture("leak", picture, odd),
        Details(odd, odd),
        Details("Table", Table(["A", "B"], [[odd, "two"]])),
    ]
    text = html(odd, parts)
    shown = Page(text)
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in text
    assert "<b>" not in text and {tag for tag, _ in shown.tags}.isdisjoint({"b", "script", "link"})
    assert "".join(shown.text).count(odd) == 15
    assert ("a", {"href": "a%20folder/"}) in shown.tags
    assert len(shown.images()) == 1
    written = markdown("Title", parts)
    assert written.startswith("# Title\n") and "| <b>\\|a b | two |" in written and "(figures/leak.png)" in written


def test_the_command_on_the_page_asks_for_the_same() -> None:
    made = plan("leak", scale=0.25, settings=["train.compile=false"])
    words = page.command(made).split(" ", 2)
    assert words == ["fastres", "reproduce", "leak --source shapes10 --seeds 2 --scale 0.25 --set train.compile=false"]
