"""The claims of the report ("Report of Deep Learning Mini-Project", Li, Qin, Wang, NYU) and of the code that its
authors published, as a table: `CLAIMS`. Limits that are not in the report say why they are what they are.

To add a claim: an entry here. What it measures is a function in quantities.py.
"""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastres.errors import UserError
from fastres.experiments.reproduce import quantities as q
from fastres.experiments.reproduce.verdicts import Beside, Claim, Form, Measure, Need

BEST = Need("report_best.toml")
_HOLDOUT = Need("report/validation.toml", "split=holdout")
_point, _optimizer = partial(Need, "report/architectures.toml"), partial(Need, "report/optimizers.toml")
_KAGGLE = (
    "nobody has the labels of the challenge's unlabelled set; shown is what the same network does on shifted images"
)
_ROUNDING = "half a point for the report's rounding, half for its one seed"


def _network(name: str, text: str, figure: str, need: Need, low: float, high: float, limits: str) -> Claim:
    return Claim(
        name=f"parameters-{name}",
        subject="parameters",
        says=text,
        figure=figure,
        needs=(need,),
        quantity="trainable parameters of the network",
        measure=q.parameters,
        form="count",
        low=low,
        high=high,
        limits=limits,
        trains=False,
        any_scale=True,
    )


def _rounded(name: str, text: str, millions: float, need: Need) -> Claim:
    low, high = 0.95e6 * millions, 1.05e6 * millions
    return _network(name, text, f"{millions:g} million", need, low, high, "within 5% of a figure in words")


def _counted(name: str, text: str, count: int, need: Need) -> Claim:
    return _network(name, text, f"{count:,}", need, count, count, "the count of the published code")


def _accuracy(
    name: str, subject: str, text: str, figure: str, need: Need, value: float, limits: str = _ROUNDING
) -> Claim:
    return Claim(
        name=name,
        subject=subject,
        says=text,
        figure=figure,
        needs=(need,),
        quantity="test accuracy",
        measure=q.accuracy(),
        form="share",
        low=value - 0.01,
        high=value + 0.01,
        limits=limits,
        pixels=True,
    )


def _unlabelled(name: str, text: str, figure: str, need: Need) -> Claim:
    return Claim(
        name=name,
        subject="unlabelled",
        says=text,
        figure=figure,
        needs=(need,),
        quantity="mean accuracy on 75 shifted test sets",
        measure=q.corrupted(),
        form="share",
        corrupted=True,
        undecidable=_KAGGLE,
        beside=(Beside("accuracy on the test set as it is", q.accuracy(), "share"),),
    )


def _last_loss(part: str, value: float, quantity: str, measure: Measure) -> Claim:
    return Claim(
        name=f"{part}-loss",
        subject="losses",
        says=f"The {part} loss ends at {value:.5f}",
        figure=f"{value:.5f}",
        needs=(BEST,),
        quantity=quantity,
        measure=measure,
        form="loss",
        low=value / 2,
        high=value * 2,
        limits="half to twice the figure: a loss this small moves by as much between epochs",
        pixels=True,
    )


def _compared(by: Callable[[Measure, Measure], Measure], form: Form, one: Beside, other: Beside, **about: Any) -> Claim:
    """A claim about two quantities, such as their difference, which are shown beside it."""
    return Claim(measure=by(one.measure, other.measure), form=form, beside=(one, other), **about)


def _difference(one: str, other: str, **about: Any) -> Claim:
    """A claim about the test accuracies of its two recipes, which are named `one` and `other`."""
    first, second = Beside(one, q.accuracy(0), "share"), Beside(other, q.accuracy(1), "share")
    return _compared(q.difference, "points", first, second, **about)


def _epochs(number: int) -> Need:
    return Need("report/epochs.toml", f"epochs={number}")


def _adamw(point: str, which: str) -> tuple[Claim, Claim]:
    """Both halves of "AdamW converges faster, SGD generalises better", with one AdamW."""
    ending = point.removeprefix("adamw")
    needs = (_optimizer("sgd"), _optimizer(point))
    return (
        Claim(
            name=f"adamw-faster{ending}",
            subject="optimizers",
            says=f"AdamW converges faster than SGD (AdamW with {which})",
            needs=needs,
            quantity="how many times sooner AdamW reaches the training loss that SGD has after half of its epochs",
            measure=q.faster,
            form="factor",
            low=1.1,
            limits="a tenth sooner: less nobody would call faster",
        ),
        _difference(
            "test accuracy, SGD",
            "AdamW",
            name=f"sgd-generalises{ending}",
            subject="optimizers",
            says=f"SGD generalises better than AdamW (AdamW with {which})",
            needs=needs,
            quantity="test accuracy of SGD minus that of AdamW",
            low=0.0,
        ),
    )


CLAIMS: tuple[Claim, ...] = (
    _rounded("resnet18", "ResNet-18 has 11 million parameters", 11, _point("resnet18")),
    _rounded("best", "One block a stage has 4.9 million parameters", 4.9, _point("one-block")),
    _rounded("halved", "Halved channels have approximately 2.7 million parameters", 2.7, _point("halved")),
    _counted("notebook", "The network of the published Kaggle notebook", 1_247_530, _point("notebook")),
    _counted(
        "resnet34",
        "The ResNet-34 option of the published code",
        21_282_122,
        Need(BEST.recipe, "", ("model.blocks=[3,4,6,3]", "model.max_parameters=22000000")),
    ),
    _accuracy("best", "best", "The best network reaches 92% on the test batch", "92%", BEST, 0.92),
    _accuracy(
        "crop-flip",
        "augmentation",
        "Padded crops and flips alone, in an earlier notebook, reach 91.80%",
        "91.80%",
        Need("report/augmentation.toml", "crop-flip"),
        0.918,
        "a point for its one seed, and for what is not known of that notebook",
    ),
    *(
        _accuracy(
            f"epochs-{number}", "epochs", f"{number} epochs, test batch", f"{value}%", _epochs(number), value / 100
        )
        for number, value in ((50, 89), (100, 91), (200, 92))
    ),
    *(
        _unlabelled(f"unlabelled-{number}", f"{number} epochs, unlabelled set", figure, _epochs(number))
        for number, figure in ((50, "34%"), (100, "80%"), (200, "36.4%"))
    ),
    _unlabelled("kaggle", "The best network reaches 80.5% on Kaggle's unlabelled set", "80.5%", BEST),
    _compared(
        q.larger,
        "points",
        Beside("lost on clean images", q.difference(q.accuracy(0), q.accuracy(1)), "points"),
        Beside("lost on shifted ones", q.difference(q.corrupted(0), q.corrupted(1)), "points"),
        name="over-fitting",
        subject="unlabelled",
        says="Over-fitting is why 200 epochs score 36.4% on the unlabelled set, and 100 epochs 80%",
        figure="−43.6 points",
        needs=(_epochs(100), _epochs(200)),
        quantity="accuracy lost from 100 to 200 epochs, on clean or on shifted test images, whichever lose more",
        low=0.218,
        limits="half of the 43.6 points that are to be explained",
        corrupted=True,
    ),
    _difference(
        "test accuracy, halved",
        "ResNet-18",
        name="halved",
        subject="halved",
        says="Halving the channels of ResNet-18 keeps its accuracy (“efficacy is preserved”)",
        needs=(_point("halved"), _point("resnet18")),
        quantity="test accuracy with halved channels minus that with all of them",
        low=-0.01,
        limits="a loss of up to a point counts as kept",
    ),
    Claim(
        name="weight-decay",
        subject="weight-decay",
        says="Too small a weight decay makes the validation loss erratic",
        needs=(
            Need("report/weight_decay.toml", "weight_decay=1e-05"),
            Need("report/weight_decay.toml", "weight_decay=0.0001"),
        ),
        quantity="SD of the changes of the held-out validation loss from epoch to epoch, over the second half of the "
        "epochs: that with weight decay 1e-5 divided by that with 1e-4",
        measure=q.ratio(q.validation_restlessness(0), q.validation_restlessness(1)),
        form="factor",
        low=1.25,
        limits="a quarter more: less nobody would see in a figure",
        beside=(
            Beside("last validation loss, 1e-5", q.last_validation_loss(0), "loss"),
            Beside("1e-4", q.last_validation_loss(1), "loss"),
        ),
    ),
    *_adamw("adamw", "Kingma and Ba's rate of 0.001"),
    *_adamw("adamw-notebook", "the notebook's rate of 0.01"),
    Claim(
        name="pseudo-labels",
        subject="pseudo-labels",
        says="Training again with pseudo-labels brings no significant improvement",
        needs=(Need("methods/pseudo_label_report.toml"),),
        quantity="test accuracy with pseudo-labels minus that without; the unlabelled images are the test images",
        measure=q.gain_of_pseudo_labels,
        form="points",
        high=0.01,
        limits="a gain of up to a point counts as none",
        beside=(
            Beside("test accuracy without", q.round_accuracy(0), "share"),
            Beside("with", q.round_accuracy(-1), "share"),
        ),
    ),
    Claim(
        name="epoch-time",
        subject="workers",
        says="An epoch at batch 256 with all workers takes about 20 s (on Kaggle's GPU)",
        figure="20 s",
        needs=(Need("report/workers.toml", "workers=default"),),
        quantity="seconds that an epoch of 40,000 images takes on this machine, at the measured rate",
        measure=q.epoch_seconds(),
        form="seconds",
        low=0.0,
        high=25.0,
        limits="up to a quarter above “about 20 s”",
        devices=("P100", "T4"),  # the GPUs of Kaggle's notebooks; the report does not say which
        any_scale=True,
        timed=True,
    ),
    _compared(
        q.ratio,
        "factor",
        Beside("an epoch without", q.epoch_seconds(0), "seconds"),
        Beside("with", q.epoch_seconds(1), "seconds"),
        name="workers-none",
        subject="workers",
        says="An epoch takes far longer without workers",
        needs=(Need("report/workers.toml", "workers=0"), Need("report/workers.toml", "workers=default")),
        quantity="seconds of an epoch without workers divided by those with one a core",
        low=2.0,
        limits="far longer is twice as long at least",
        any_scale=True,
        timed=True,
    ),
    _last_loss("training", 0.01272, "training loss of the last epoch", q.last_training_loss()),
    _last_loss(
        "validation", 0.00032, "validation loss of the last epoch, by the code's split", q.last_validation_loss()
    ),
    Claim(
        name="held-out",
        subject="leak",
        says="20% of the images are held out for validation",
        figure="0% trained on",
        needs=(BEST,),
        quantity="share of the validation images that are trained on, by the split of the published code",
        measure=q.leaked,
        form="share",
        low=0.0,
        high=0.0,
        limits="what is held out is not trained on",
        trains=False,
        any_scale=True,
    ),
    _compared(
        q.ratio,
        "factor",
        Beside("training loss", q.last_training_loss(), "loss"),
        Beside("leaky validation loss", q.last_validation_loss(), "loss"),
        name="leak-loss",
        subject="leak",
        says="The validation loss ends below the training loss",
        figure="40 times below",
        needs=(BEST,),
        quantity="training loss divided by validation loss in the last epoch, by the code's split, which trains on "
        "most validation images",
        low=1.0,
    ),
    Claim(
        name="honest-split",
        subject="leak",
        says="(Not in the report:) with images that are held out, the validation loss ends above the training loss, so "
        "that the leak explains the report's figures",
        needs=(_HOLDOUT,),
        quantity="validation loss of held-out images divided by the training loss, in the last epoch",
        measure=q.ratio(q.last_validation_loss(), q.last_training_loss()),
        form="factor",
        low=1.0,
        beside=(
            Beside("training loss", q.last_training_loss(), "loss"),
            Beside("held-out validation loss", q.last_validation_loss(), "loss"),
        ),
    ),
)


def choose(names: Sequence[str]) -> tuple[Claim, ...]:
    """The claims whose name or subject is among `names`, all without any, in the order of the table. Raises UserError
    for a name that there is none of."""
    known = {*(claim.name for claim in CLAIMS), *(claim.subject for claim in CLAIMS)}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.lower().replace("_", "-"), sorted(known), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "`fastres reproduce --list` names them"
            raise UserError(f"there is no claim {name}: {hint}")
    return tuple(claim for claim in CLAIMS if not names or claim.name in names or claim.subject in names)
