"""Output of `fastres reproduce`: `report.md` and `report.html` with the same contents, and `reproduce.json`."""

import json
import shlex
from pathlib import Path

from fastres.experiments.reproduce.claims import BEST
from fastres.experiments.reproduce.plan import Job, Plan
from fastres.experiments.reproduce.results import known_of
from fastres.experiments.reproduce.schema import ClaimFacts, Reproduced, RunFacts
from fastres.experiments.reproduce.verdicts import VERDICTS, Finding, Need, interval_of, limits_of, mean_and_sd, shown
from fastres.report import document
from fastres.report.document import Details, Heading, Link, Note, Part, Picture, Table
from fastres.report.run_figures import honest_loss
from fastres.report.style import png
from fastres.runs.environment import environment
from fastres.runs.reader import Run
from fastres.runs.schema import Epoch
from fastres.utils.format import DASH, number, plural, wall_time
from fastres.utils.untrusted import read_regular

RESULTS, MARKDOWN, PAGE = "reproduce.json", "report.md", "report.html"
_HOLDOUT = Need("report/validation.toml", "split=holdout")
_PICTURE_BYTES = 32 << 20


def write(
    folder: Path, plan: Plan, measured: dict[str, Run], findings: tuple[Finding, ...], device: str, workers: int
) -> Reproduced:
    """Write the pages, their figures and reproduce.json, whose contents are returned."""
    facts = Reproduced.of(
        plan,
        command=command(plan),
        set=plan.settings,
        claims=[_claim(plan, measured, finding) for finding in findings],
        runs=[_run(job, measured[job.name]) for job in plan.jobs],
        device=device,
        workers=workers,
        environment=environment(),
    )
    document.write(folder, [MARKDOWN, PAGE], "The report's claims, measured", _parts(plan, measured, facts))
    facts.write(folder / RESULTS)
    return facts


def command(plan: Plan) -> str:
    """The command that measures `plan` again."""
    command = ["fastres", "reproduce", *plan.asked, "--source", plan.source, "--seeds", str(len(plan.seeds))]
    command += [] if plan.scale == 1 else ["--scale", f"{plan.scale:g}"]
    return shlex.join([*command, *(word for text in plan.settings for word in ("--set", text))])


def counts(facts: Reproduced) -> str:
    """Number of claims with each verdict, in a line."""
    outcomes = [claim.verdict for claim in facts.claims]
    return ", ".join(f"{outcomes.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in outcomes)


# ---------------------------------------------------------------------------------------------------- the numbers


def _claim(plan: Plan, measured: dict[str, Run], finding: Finding) -> ClaimFacts:
    claim, known = finding.claim, known_of(plan, finding.claim, measured)
    interval, form = interval_of(finding), claim.form
    recipes = [*zip(*known, strict=True)]  # of each recipe, what is known by seed
    seconds = [[run.summary.seconds for run in runs if run.summary.seconds is not None] for runs in recipes]
    means = [sum(times) / len(times) if times else None for times in seconds]
    beside = [f"{one.what} {mean_and_sd([one.measure(line) for line in known], one.form)}" for one in claim.beside]
    return ClaimFacts.of(
        claim,
        finding,
        recipes="; ".join(map(str, claim.needs)),
        unit=form,
        measured=mean_and_sd(finding.values, form),
        seeds=sum(value is not None for value in finding.values),
        interval=interval,
        interval_shown=DASH if interval is None else " to ".join(shown(end, form) for end in interval),
        limits=limits_of(claim),
        beside="; ".join(beside),
        parameters=[runs[0].parameters for runs in recipes],
        parameters_shown=" / ".join(dict.fromkeys(f"{runs[0].parameters:,}" for runs in recipes)),
        seconds=means,
        seconds_shown=" / ".join(f"{mean:,.1f}" for mean in means if mean is not None) or DASH,
    )


def _run(job: Job, run: Run) -> RunFacts:
    last = run.epochs[-1] if run.epochs else Epoch(epoch=0)
    losses = {"training_loss": last.train_loss, "validation_loss": last.val_loss}
    return RunFacts.of(job.listed(), run, run.summary, split=run.recipe.data.split, **losses)


# ---------------------------------------------------------------------------------------------------- the parts


def _parts(plan: Plan, measured: dict[str, Run], facts: Reproduced) -> list[Part]:
    header = ["Claim", "Recipe", "Report", "Measured, mean ± SD", "Seeds", "Parameters", "Seconds a run", "Verdict"]
    keys = ("recipes", "figure", "measured", "seeds", "parameters_shown", "seconds_shown", "verdict")
    claims = [[f"{claim.name}: {claim.says}", *(str(claim[key]) for key in keys)] for claim in facts.claims]
    judged = ["Claim", "What is measured", "95% interval", "Holds within", "Beside it", "Why"]
    rule = ("name", "quantity", "interval_shown", "limits", "beside", "why")
    judgements = [[claim[key] or DASH for key in rule] for claim in facts.claims]
    return [
        f"{plural(len(claims), 'claim', 'claims')}: {counts(facts)}.",
        *map(Note, _warnings(plan, measured, facts)),
        Heading("Claims"),
        Table(header, claims, text_columns=len(header)),
        Heading("How each verdict comes about"),
        "Each seed gives one number. Where the 95% interval of their mean over all possible seeds (Student's t, of "
        "shares and their differences on the logit scale, of seconds on the logarithmic one) lies within the claim's "
        "limits, the claim is reproduced; where it lies outside, it is not; where it reaches across one, or a single "
        "seed gives none, it cannot be told. A claim about a machine is not testable on another one. Claims that "
        "compare recipes are measured seed by seed. "
        "Factors (×) and losses are judged by their logarithms: their mean is geometric, their SD relative. What takes "
        "no training (parameters, splits) is certain and needs no interval. An interval covers seeds, not the choice "
        "of the test images; and of twenty intervals, one misses its mean by chance.",
        Table(judged, judgements, text_columns=len(judged)),
        Heading("What this cannot say"),
        *_limits(plan),
        Heading("Figures"),
        *_pictures(plan, measured),
        Heading("Runs"),
        _runs(facts) if facts.runs else "None: these claims take no training.",
        Heading("How it was made"),
        "This measures it again; in the same folder, it picks up what is finished:",
        Details("", facts.command),
        Details("Environment", json.dumps(facts.environment.to_json(), indent=2, ensure_ascii=False)),
    ]


def _warnings(plan: Plan, measured: dict[str, Run], facts: Reproduced) -> list[str]:
    texts = []
    if plan.scale < 1:
        texts.append(
            f"Scale {plan.scale:g}: a fraction of epochs and images. Accuracies and losses are shown and say nothing "
            "about the report; only what holds at any scale has a verdict."
        )
    if not plan.original:
        texts.append(
            f"The images are those of {plan.source}. The report's are CIFAR-10's original pixels: other images, or the "
            "same ones after lossy compression, have other accuracies and losses."
        )
    if plan.settings:
        texts.append(f"All recipes were changed by {', '.join(plan.settings)}.")
    if len({run.device for run in measured.values()}) > 1:
        texts.append("The runs were made on different devices: their seconds cannot be compared.")
    if facts.workers > 1:
        texts.append(
            f"Up to {facts.workers} runs shared the device, so that their seconds are longer than alone; those of "
            "the claims about time ran alone."
        )
    return texts


def _limits(plan: Plan) -> list[str]:
    texts = [
        "Nobody but the challenge has the labels of its unlabelled set. In its place stand the test images after 15 "
        "kinds of corruption at five severities: they show whether more epochs cost accuracy on other images, not what "
        "that set holds. Pseudo-labels are made for the test images, whose own labels are not looked at.",
        "The recipes follow the published code where it and the text disagree. Activations are bf16 instead of fp32 "
        "(train.precision), unless --set changes it.",
        "Images of fastres are decoded once and augmented in compiled code: what workers are worth in the report's own "
        "pipeline, which decodes and augments in them, is another question.",
    ]
    if plan.scale < 1:
        factor = plan.scale**0.5
        texts.append(
            f"Scale {plan.scale:g} multiplies epochs and training images by its square root, {factor:.3g} each, so "
            f"that both stay as far from nothing as they can: {100 * factor:.3g} of 100 epochs, rounded, one at least, "
            "on images for whole batches, ten at least. Schedules shrink with the epochs. Of the test images, 1,000 "
            "stay at least. Claims about time keep their epochs, and their seconds are those of a whole epoch at the "
            "measured rate: starting the workers weighs more in it than in a whole one. Parameters and shares of the "
            "split are those of the whole set."
        )
    return texts


def _pictures(plan: Plan, measured: dict[str, Run]) -> list[Part]:
    """The report's four figures, as the run of the best recipe has drawn them, and the leak."""
    best, honest = plan.job(BEST, plan.seeds[0]), plan.job(_HOLDOUT, plan.seeds[0])
    if best is None:
        return ["The report's figures come from the run of its best recipe, which none of these claims needs."]
    run = measured[best.name]
    captions = {
        "samples": "The report's Figure 1: sample images.",
        "class_counts": "The report's Figure 2: images of each class for training (blue) and validation (red, "
        "hatched).",
        "augmented": "The report's Figure 3: training images (above) and the same after augmentation (below).",
        "loss": "The report's Figure 4: training (blue) and validation loss (red, dashed) by epoch. By the code's "
        "split most validation images are trained on.",
    }
    parts: list[Part] = []
    for name, caption in captions.items():
        path = run.path / "figures" / f"{name}.png"
        if path.is_file():
            data = read_regular(path, _PICTURE_BYTES, "it is none that fastres drew; remove the run's folder")
            parts.append(Picture(name, data, caption))
        else:
            parts.append(f"{caption} It is missing: the run {run.name} has not drawn it.")
    if honest is not None:
        about = (
            "The leak: the validation loss of the code's split (red, dashed) beside the training loss (blue), and that "
            "of a split whose validation images are never trained on (black)."
        )
        parts.append(Picture("leak", png(honest_loss(run.epochs, measured[honest.name].epochs)), about))
    return parts


def _runs(facts: Reproduced) -> Table:
    forms = {"test_accuracy": ".2%", "training_loss": ".4f", "validation_loss": ".4f", "epochs": "g"}
    forms |= {"image_passes": ",.0f", "images_per_second": ",.0f"}
    header = ["Recipe", "Seed", "Test accuracy", "Training loss", "Validation loss", "Epochs", "Images trained on"]
    header += ["Images/s", "Time", "Run"]
    lines: list[list[str | Link]] = []
    for run in facts.runs:
        cells = [number(run[key], form) for key, form in forms.items()]
        if not run.finished:
            cells[0] = "diverged"
        if run.split == "report":
            cells[2] += " (leaky)"
        link = Link(run.run, f"runs/{run.run}/")
        lines.append([run.recipe, str(run.seed), *cells, wall_time(run.seconds), link])
    return Table(header, lines)
