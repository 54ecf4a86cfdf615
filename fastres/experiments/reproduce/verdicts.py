"""Claims of the report, and the rule by which measured numbers decide it: pure functions.

There is one rule. Each seed gives one number. Where the 95% interval of their mean over all possible seeds (Student's
t, of shares and differences on the logit scale) lies within the claim's limits, the claim is reproduced; where it lies
outside them, it is not; where it reaches across one, or there is no interval, it cannot be told. A claim that compares
recipes is measured seed by seed, as a difference or a factor: the two runs of a seed share initial weights, order and
split as far as their recipes do. A claim about a machine is not testable on another one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fastres.runs.schema import Epoch, Summary
from fastres.utils.statistics import TWO_SEEDS, Sample

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNDECIDED, UNTESTABLE = "cannot be told", "not testable at this scale"
OTHER_MACHINE = "not testable on this machine"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNDECIDED, UNTESTABLE, OTHER_MACHINE)

Form = Literal["share", "points", "factor", "loss", "seconds", "count"]
"""`share`: 0 to 1, shown in percent; `points`: a difference of two; `factor` and `loss` (nats): positive, judged by
their logarithms; `count`: a whole number."""


@dataclass(frozen=True)
class Need:
    """A recipe that a claim measures."""

    recipe: str
    """File below the folder of recipes."""
    point: str = ""
    """Its point where it is a sweep."""
    settings: tuple[str, ...] = ()
    """Values on top, as for `--set`."""

    def __str__(self) -> str:
        return " ".join([self.recipe, *[self.point] * bool(self.point), *self.settings])


@dataclass(frozen=True)
class Measured:
    """What is known of one recipe with one seed: first what needs no training, then what its run gave."""

    parameters: int
    leaked: float | None = None
    """Share of the validation images that are trained on; None without validation."""
    corrupted_accuracy: float | None = None
    """Mean over the corrupted test sets."""
    summary: Summary = field(default_factory=Summary)
    """Without any value where there is no run, or one that diverged."""
    epochs: tuple[Epoch, ...] = ()


Measure = Callable[[Sequence[Measured]], float | None]
"""The number of one seed, from what is known of the claim's recipes in their order; None where it cannot be had."""


@dataclass(frozen=True)
class Beside:
    """Another quantity that is shown with a claim and decides nothing."""

    what: str
    measure: Measure
    form: Form


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the report."""

    name: str
    subject: str
    """Claims of one subject are asked for together."""
    says: str
    """The report's statement, in a sentence."""
    figure: str = "–"
    """Its figure, as it is printed there; "–" for a claim in words."""
    needs: tuple[Need, ...]
    quantity: str
    """The measured quantity, in words."""
    measure: Measure
    form: Form
    low: float = -math.inf
    high: float = math.inf
    """The claim holds for values from `low` to `high`."""
    limits: str = ""
    """Why these."""
    trains: bool = True
    """Whether it takes training. What does not is certain: its numbers are compared without an interval."""
    any_scale: bool = False
    """Whether a fraction of epochs and images decides it as well."""
    corrupted: bool = False
    """Whether it needs tests on corrupted images."""
    timed: bool = False
    """Whether it is about time: its runs have the device for themselves."""
    devices: tuple[str, ...] = ()
    """Where it is bound to a machine: parts of the names of the devices that can test it."""
    pixels: bool = False
    """Whether it is about a figure that only CIFAR-10's original pixels can have."""
    undecidable: str = ""
    """Why no measurement here can decide it; empty where one can."""
    beside: tuple[Beside, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A claim, its numbers, and what they say."""

    claim: Claim
    values: tuple[float | None, ...]
    """The number of each seed."""
    verdict: str
    why: str
    """A sentence."""


def judge(
    claim: Claim, values: Sequence[float | None], scale: float, *, original: bool = True, devices: Sequence[str] = ()
) -> Finding:
    """The finding that `values`, a number a seed, make of `claim`; they were measured at `scale`, 1 being the whole, on
    CIFAR-10's `original` pixels or others, and on `devices`."""

    def finding(verdict: str, why: str) -> Finding:
        return Finding(claim, tuple(values), verdict, why)

    known = [value for value in values if value is not None]
    if claim.undecidable:
        return finding(UNDECIDED, claim.undecidable)
    if scale < 1 and not claim.any_scale:
        return finding(UNTESTABLE, f"measured at scale {scale:g}: shown, not compared")
    if claim.devices and not (devices and all(any(name in own for name in claim.devices) for own in devices)):
        return finding(OTHER_MACHINE, f"about {' or '.join(claim.devices)}: shown, not compared")
    if claim.pixels and not original:
        return finding(UNDECIDED, "the images are not CIFAR-10's original pixels: shown, not compared")
    if not known:
        return finding(UNDECIDED, "no run gave a number")
    if len(known) < len(values):
        return finding(UNDECIDED, f"only {len(known)} of {len(values)} seeds gave a number")
    limits = _limits_shown(claim)
    if not claim.trains:
        within = [claim.low <= value <= claim.high for value in known]
        if all(within):
            return finding(REPRODUCED, limits)
        return finding(UNDECIDED if any(within) else NOT_REPRODUCED, f"asked for: {limits}")
    interval = _interval(values, claim.form)
    if interval is None:
        return finding(UNDECIDED, "a single seed has no interval: raise --seeds")
    low, high = interval
    said = f"{TWO_SEEDS}; " if len(known) == 2 else ""
    span = f"{said}the interval, {shown(low, claim.form)} to {shown(high, claim.form)}, "
    if claim.low <= low and high <= claim.high:
        return finding(REPRODUCED, f"{span}lies within {limits}")
    if high < claim.low or claim.high < low:
        return finding(NOT_REPRODUCED, f"{span}lies outside {limits}")
    return finding(UNDECIDED, f"{span}lies partly within {limits}: more seeds narrow it")


def interval_of(finding: Finding) -> tuple[float, float] | None:
    """The 95% interval of the mean, in the claim's unit; None for a single seed and for what is certain."""
    return _interval(finding.values, finding.claim.form) if finding.claim.trains else None


def _interval(values: Sequence[float | None], form: Form) -> tuple[float, float] | None:
    sample = _sample(values, form)
    bounds: dict[Form, tuple[float, float]] = {"share": (0, 1), "points": (-1, 1), "seconds": (0, math.inf)}
    low, high = bounds.get(form, (-math.inf, math.inf))
    ends = sample and sample.interval(low=low, high=high)
    return (_unscaled(form, ends[0]), _unscaled(form, ends[1])) if ends else None


def _sample(values: Sequence[float | None], form: Form) -> Sample | None:
    """Mean and SD of the values there are; of factors and losses those of the logarithms."""
    scaled = math.log if _logarithmic(form) else float
    return Sample.of_known(None if value is None else scaled(value) for value in values)


def mean_and_sd(values: Sequence[float | None], form: Form) -> str:
    """The mean over seeds with its SD, as text: of factors and losses the geometric mean and the relative SD."""
    sample = _sample(values, form)
    if sample is None:
        return "–"
    mean = shown(_unscaled(form, sample.mean), form)
    if sample.sd is None or (form == "count" and not sample.sd):
        return mean
    if _logarithmic(form):
        return f"{mean} ± {math.expm1(sample.sd):.1%}"
    return f"{mean} ± {shown(sample.sd, form).lstrip('+')}"


def shown(value: float, form: Form) -> str:
    """A number with its unit."""
    texts = {"share": "{:.2%}", "seconds": "{:.3g} s", "count": "{:,.0f}", "factor": "{:.3g}×", "loss": "{:.3g}"}
    return f"{100 * value:+.2f} points" if form == "points" else texts[form].format(value)


def _limits_shown(claim: Claim) -> str:
    low, high = shown(claim.low, claim.form), shown(claim.high, claim.form)
    if claim.low == claim.high:
        return low
    if math.isinf(claim.high):
        return f"{low} or more"
    return f"{high} or less" if math.isinf(claim.low) or claim.low == 0 else f"{low} to {high}"


def limits_of(claim: Claim) -> str:
    """The limits within which a claim holds, and why they are these, as text."""
    if claim.undecidable:
        return "–"
    return _limits_shown(claim) + (f": {claim.limits}" if claim.limits else "")


def _logarithmic(form: Form) -> bool:
    return form in ("factor", "loss")


def _unscaled(form: Form, value: float) -> float:
    return math.exp(value) if _logarithmic(form) else value
