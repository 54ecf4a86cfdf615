"""Output of `fastres reproduce`: `report.md` and `report.html` with the same contents, and `reproduce.json`.

The contents are a list of parts (parts.py), which each form writes in its way.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastres.experiments.reproduce.claims import BEST
from fastres.experiments.reproduce.figures import leak
from fastres.experiments.reproduce.plan import Job, Plan
from fastres.experiments.reproduce.results import known_of
from fastres.experiments.reproduce.verdicts import VERDICTS, Finding, Need, interval_of, limits_of, mean_and_sd, shown
from fastres.report.document import Heading, Part, Picture, Table, Text, Verbatim, html, markdown
from fastres.report.html import Link
from fastres.report.style import png
from fastres.runs.environment import environment
from fastres.runs.reader import Run
from fastres.utils.files import write_bytes, write_json, write_text
from fastres.utils.format import plural, wall_time
from fastres.utils.untrusted import read_regular

RESULTS, MARKDOWN, PAGE = "reproduce.json", "report.md", "report.html"
_HOLDOUT = Need("report/validation.toml", "split=holdout")
_PICTURE_BYTES = 32 << 20


def write(
    folder: Path, plan: Plan, measured: dict[str, Run], findings: tuple[Finding, ...], device: str, workers: int
) -> dict[str, Any]:
    """Write the pages, their figures and reproduce.json, which is returned."""
    facts = {
        **_facts(plan, measured, findings),
        "device": device,
        "workers": workers,
        "environment": environment().to_json(),
    }
    parts = _parts(plan, measured, findings, facts)
    for part in parts:
        if isinstance(part, Picture):
            write_bytes(folder / "figures" / f"{part.name}.png", part.data)
    title = "The report's claims, measured"
    write_text(folder / MARKDOWN, markdown(title, parts))
    write_bytes(folder / PAGE, html(title, parts))
    write_json(folder / RESULTS, facts)
    return facts


def command(plan: Plan) -> str:
    """The command that measures `plan` again."""
    command = ["fastres", "reproduce", *plan.asked, "--source", plan.source, "--seeds", str(len(plan.seeds))]
    command += [] if plan.scale == 1 else ["--scale", f"{plan.scale:g}"]
    return shlex.join([*command, *(word for text in plan.settings for word in ("--set", text))])


def counts(findings: Sequence[Finding]) -> str:
    """Number of claims with each verdict, in a line."""
    outcomes = [finding.verdict for finding in findings]
    return ", ".join(f"{outcomes.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in outcomes)


def claims_table(facts: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of claims."""
    header = ["Claim", "Recipe", "Report", "Measured, mean ± SD", "Seeds", "Parameters", "Seconds a run", "Verdict"]
    keys = ("recipes", "figure", "measured", "seeds", "parameters_shown", "seconds_shown", "verdict")
    return header, [[f"{row['name']}: {row['says']}", *(str(row[key]) for key in keys)] for row in facts["claims"]]


# ---------------------------------------------------------------------------------------------------- the numbers


def _facts(plan: Plan, measured: dict[str, Run], findings: tuple[Finding, ...]) -> dict[str, Any]:
    return {
        "command": command(plan),
        "source": plan.source,
        "scale": plan.scale,
        "seeds": list(plan.seeds),
        "set": list(plan.settings),
        "train_images": plan.train_images,
        "test_images": plan.test_images,
        "claims": [_claim_facts(plan, measured, finding) for finding in findings],
        "runs": [_run_facts(job, measured[job.name]) for job in plan.jobs],
    }


def _claim_facts(plan: Plan, measured: dict[str, Run], finding: Finding) -> dict[str, Any]:
    claim, known = finding.claim, known_of(plan, finding.claim, measured)
    interval = interval_of(finding)
    parameters = [known[0][index].parameters for index in range(len(claim.needs))]
    seconds = [
        [time for line in known if (time := line[index].seconds) is not None] for index in range(len(claim.needs))
    ]
    beside = [f"{one.what} {mean_and_sd([one.measure(line) for line in known], one.form)}" for one in claim.beside]
    return {
        "name": claim.name,
        "subject": claim.subject,
        "says": claim.says,
        "figure": claim.figure,
        "recipes": "; ".join(map(str, claim.needs)),
        "quantity": claim.quantity,
        "unit": claim.form,
        "values": list(finding.values),
        "measured": mean_and_sd(finding.values, claim.form),
        "seeds": sum(value is not None for value in finding.values),
        "interval": interval,
        "interval_shown": "–" if interval is None else " to ".join(shown(end, claim.form) for end in interval),
        "limits": limits_of(claim),
        "beside": "; ".join(beside),
        "parameters": parameters,
        "parameters_shown": " / ".join(dict.fromkeys(f"{count:,}" for count in parameters)),
        "seconds": [sum(times) / len(times) if times else None for times in seconds],
        "seconds_shown": " / ".join(f"{sum(times) / len(times):,.1f}" for times in seconds if times) or "–",
        "verdict": finding.verdict,
        "why": finding.why,
    }


def _run_facts(job: Job, run: Run) -> dict[str, Any]:
    last = run.epochs[-1] if run.epochs else None
    return {
        "run": job.name,
        "recipe": str(job.need),
        "seed": job.seed,
        "claims": list(job.claims),
        "finished": run.finished,
        "epochs": run.recipe.train.epochs,
        "image_passes": job.passes,
        "training_loss": last and last.train_loss,
        "validation_loss": last and last.val_loss,
        "split": run.recipe.data.split,
        **run.summary.model_dump(
            include={"test_accuracy", "test_images", "parameters", "seconds", "images_per_second"}
        ),
        "device": run.device,
    }


# ---------------------------------------------------------------------------------------------------- the parts


def _parts(plan: Plan, measured: dict[str, Run], findings: tuple[Finding, ...], facts: dict[str, Any]) -> list[Part]:
    judged = [
        [row["name"], row["quantity"], row["interval_shown"], row["limits"], row["beside"] or "–", row["why"]]
        for row in facts["claims"]
    ]
    return [
        Text(f"{plural(len(findings), 'claim', 'claims')}: {counts(findings)}."),
        *_warnings(plan, measured, facts),
        Heading("Claims"),
        Table(*claims_table(facts)),
        Heading("How each verdict comes about"),
        Text(
            "Each seed gives one number. Where the 95% interval of their mean over all possible seeds (Student's t) "
            "lies within the claim's limits, the claim is reproduced; where it lies outside, it is not; where it "
            "reaches across one, or a single seed gives none, it cannot be told. Claims that compare recipes are "
            "measured seed by seed. Factors (×) and losses are judged by their logarithms: their mean is geometric, "
            "their SD relative. What takes no training (parameters, splits) is certain and needs no interval. An "
            "interval covers seeds, not the choice of the test images; and of twenty intervals, one misses its mean by "
            "chance."
        ),
        Table(["Claim", "What is measured", "95% interval", "Holds within", "Beside it", "Why"], judged),
        Heading("What this cannot say"),
        *(Text(text) for text in _limits(plan, facts)),
        Heading("Figures"),
        *_pictures(plan, measured),
        Heading("Runs"),
        _runs_table(plan, facts),
        Heading("How it was made"),
        Text("This measures it again; in the same folder, it picks up what is finished:"),
        Verbatim("Command", facts["command"]),
        Verbatim("Environment", json.dumps(facts["environment"], indent=2, ensure_ascii=False)),
    ]


def _warnings(plan: Plan, measured: dict[str, Run], facts: dict[str, Any]) -> list[Text]:
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
    if facts["workers"] > 1:
        texts.append(
            f"Up to {facts['workers']} runs shared the device, so that their seconds are longer than alone; those of "
            "the claims about time ran alone."
        )
    return [Text(text, warning=True) for text in texts]


def _limits(plan: Plan, facts: dict[str, Any]) -> list[str]:
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
        return [Text("The report's figures come from the run of its best recipe, which none of these claims needs.")]
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
            parts.append(Text(f"{caption} It is missing: the run {run.name} has not drawn it."))
    if honest is not None:
        about = (
            "The leak: the validation loss of the code's split (red, dashed) beside the training loss (blue), and that "
            "of a split whose validation images are never trained on (black)."
        )
        parts.append(Picture("leak", png(leak(run.epochs, measured[honest.name].epochs)), about))
    return parts


def _runs_table(plan: Plan, facts: dict[str, Any]) -> Part:
    if not plan.jobs:
        return Text("None: these claims take no training.")
    forms = {
        "test_accuracy": ".2%",
        "training_loss": ".4f",
        "validation_loss": ".4f",
        "epochs": "g",
        "image_passes": ",.0f",
        "images_per_second": ",.0f",
    }
    header = ["Recipe", "Seed", "Test accuracy", "Training loss", "Validation loss", "Epochs", "Images trained on"]
    lines: list[list[str | Link]] = []
    for row in facts["runs"]:
        cells = ["–" if row[key] is None else format(row[key], form) for key, form in forms.items()]
        if not row["finished"]:
            cells[0] = "diverged"
        if row["split"] == "report":
            cells[2] += " (leaky)"
        link = Link(row["run"], f"runs/{row['run']}/")
        lines.append([row["recipe"], str(row["seed"]), *cells, wall_time(row["seconds"]), link])
    return Table([*header, "Images/s", "Time", "Run"], lines)
