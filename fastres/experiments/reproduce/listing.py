"""Output of `fastres reproduce --list`: the claims and their runs, before anything is trained."""

from typing import Any

from fastres.experiments.reproduce.plan import Plan
from fastres.utils.format import plural


def claims(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and a line for each claim."""
    lines = [[claim.name, claim.subject, claim.says, "" if claim.trains else "none"] for claim in plan.claims]
    return ["claim", "subject", "the report says", "training"], lines


def runs(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and a line for each recipe, in the order of training; images are those of one seed."""
    lines: dict[str, list[str]] = {}
    for job in plan.jobs:
        line = [str(job.need), str(len(plan.seeds)), f"{job.recipe.train.epochs:g}", f"{job.passes:,.0f}"]
        subjects = dict.fromkeys(claim.subject for claim in plan.claims if claim.name in job.claims)
        lines.setdefault(str(job.need), [*line, ", ".join(subjects)])
    return ["recipe", "seeds", "epochs", "images trained on", "for"], [*lines.values()]


def total(plan: Plan) -> str:
    """Their sum, in a line."""
    passes = f"{sum(job.passes for job in plan.jobs):,.0f} images trained on"
    assumed = "" if plan.known else f"; {plan.source} is not prepared yet: as many images as CIFAR-10 has are assumed"
    return f"{plural(len(plan.jobs), 'run', 'runs')}, {passes}{assumed}"


def facts(plan: Plan) -> dict[str, Any]:
    """The same as one JSON object."""
    return {
        "source": plan.source,
        "scale": plan.scale,
        "seeds": list(plan.seeds),
        "claims": [
            {
                "name": claim.name,
                "subject": claim.subject,
                "says": claim.says,
                "figure": claim.figure,
                "recipes": [str(need) for need in claim.needs],
                "trains": claim.trains,
            }
            for claim in plan.claims
        ],
        "runs": [
            {
                "run": job.name,
                "recipe": str(job.need),
                "seed": job.seed,
                "epochs": job.recipe.train.epochs,
                "image_passes": job.passes,
                "claims": list(job.claims),
            }
            for job in plan.jobs
        ],
        "image_passes": sum(job.passes for job in plan.jobs),
    }
