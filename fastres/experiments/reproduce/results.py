"""Measurements of a plan's runs: from run directories to findings."""

from dataclasses import replace
from pathlib import Path

from fastres.evaluation.corruptions.registry import KINDS, SEVERITIES
from fastres.experiments.reproduce.plan import Plan
from fastres.experiments.reproduce.verdicts import Claim, Finding, Measured, judge
from fastres.experiments.sweep.results import DIVERGED
from fastres.runs.reader import Run, read_run
from fastres.runs.schema import Corruptions

RUNS = "runs"
"""Folder of the run directories."""
_CORRUPTIONS = "shift.json"


def read_all(folder: Path, plan: Plan) -> dict[str, Run]:
    """The runs of a plan by their names, all finished. Raises UserError where a file of one is damaged."""
    return {job.name: read_run(number, folder / RUNS / job.name, job.name) for number, job in enumerate(plan.jobs, 1)}


def corrupted_accuracy_of(run: Path) -> float | None:
    """Mean accuracy on all corrupted test sets; None where it was not measured on all."""
    summary = Corruptions.read_if_there(run / _CORRUPTIONS)
    if summary is None or {*summary.accuracy} != {*KINDS} or summary.severities != [*SEVERITIES]:
        return None
    return summary.mean_corruption_accuracy


def measured_by(facts: Measured, run: Run) -> Measured:
    """`facts` with what `run` gave; of a run that diverged, nothing."""
    if (run.path / DIVERGED).is_file():
        return facts
    return replace(
        facts,
        parameters=run.summary.parameters or facts.parameters,
        corrupted_accuracy=corrupted_accuracy_of(run.path),
        summary=run.summary,
        epochs=run.epochs,
    )


def known_of(plan: Plan, claim: Claim, measured: dict[str, Run]) -> list[list[Measured]]:
    """For each seed what is known of each recipe of the claim."""
    lines = []
    for seed in plan.seeds:
        line = []
        for need in claim.needs:
            facts, name = plan.facts[need, seed], plan.names.get((need, seed))
            line.append(measured_by(facts, measured[name]) if claim.trains and name else facts)
        lines.append(line)
    return lines


def find(plan: Plan, claim: Claim, measured: dict[str, Run]) -> Finding:
    """The claim with its numbers and verdict."""
    values = [claim.measure(line) for line in known_of(plan, claim, measured)]
    names = [plan.names.get((need, seed)) for need in claim.needs for seed in plan.seeds]
    devices = [measured[name].device or "" for name in names if name in measured]
    return judge(claim, values, plan.scale, original=plan.original, devices=devices)
