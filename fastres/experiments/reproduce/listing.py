"""Output of `fastres reproduce --list`: the claims and their runs, before anything is trained."""

from fastres.experiments.reproduce.plan import Plan
from fastres.experiments.reproduce.schema import Listed, ListedClaim
from fastres.report.document import Table
from fastres.utils.format import plural


def claims(plan: Plan) -> Table:
    """A line for each claim."""
    lines = [[claim.name, claim.subject, claim.says, "" if claim.trains else "none"] for claim in plan.claims]
    return Table(["claim", "subject", "the report says", "training"], lines, text_columns=3)


def runs(plan: Plan) -> Table:
    """A line for each recipe, in the order of training; images are those of one seed."""
    lines: dict[str, list[str]] = {}
    for job in plan.jobs:
        line = [str(job.need), str(len(plan.seeds)), f"{job.recipe.train.epochs:g}", f"{job.passes:,.0f}"]
        subjects = dict.fromkeys(claim.subject for claim in plan.claims if claim.name in job.claims)
        lines.setdefault(str(job.need), [*line, ", ".join(subjects)])
    return Table(["recipe", "seeds", "epochs", "images trained on", "for"], [*lines.values()])


def total(plan: Plan) -> str:
    """Their sum, in a line."""
    passes = f"{sum(job.passes for job in plan.jobs):,.0f} images trained on"
    assumed = "" if plan.known else f"; {plan.source} is not prepared yet: as many images as CIFAR-10 has are assumed"
    return f"{plural(len(plan.jobs), 'run', 'runs')}, {passes}{assumed}"


def facts(plan: Plan) -> Listed:
    """The same as one JSON object."""
    claims = [ListedClaim.of(claim, recipes=[*map(str, claim.needs)]) for claim in plan.claims]
    runs, passes = [job.listed() for job in plan.jobs], sum(job.passes for job in plan.jobs)
    return Listed.of(plan, claims=claims, runs=runs, image_passes=passes)
