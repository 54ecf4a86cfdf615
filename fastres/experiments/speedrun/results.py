"""Files and output of a speedrun: its plan, a row a run, the summary, the figure.

| file | what |
|---|---|
| `plan.json` | recipe hash, number of runs, target, device and data, fixed before the first run |
| `resolved.toml`, `environment.json` | the whole recipe; the machine |
| `runs.jsonl` | a line a finished run: seed, accuracy, loss (null where it is not finite), seconds, whether compiled |
| `speedrun.json`, `speedrun.png` | the summary and its figure, when all runs are done |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastres.errors import UserError
from fastres.report import any_backend
from fastres.runs.schema import Speedrun, SpeedrunPlan, SpeedrunRow
from fastres.utils.files import write_bytes
from fastres.utils.format import plural
from fastres.utils.json_files import damaged, read_lines
from fastres.utils.statistics import TWO_SEEDS, Sample

PLAN, ROWS, SUMMARY, FIGURE = "plan.json", "runs.jsonl", "speedrun.json", "speedrun.png"
_OTHER = "give another --out"
SpeedrunFacts = Mapping[str, Any]
"""Fields of a `Speedrun` that are neither planned nor measured."""


def check_plan(folder: Path, plan: SpeedrunPlan) -> None:
    """Raise UserError where the speedrun in `folder` was begun with another plan."""
    begun = SpeedrunPlan.read(folder / PLAN, _OTHER)
    different = [key for key in plan.model_fields_set if begun[key] != plan[key]]
    if not different:
        return
    key = min(different, key=[*SpeedrunPlan.model_fields].index)
    was, now = begun[key], plan[key]
    fix = {
        "recipe_hash": f"{folder} was begun with another recipe, {folder / 'resolved.toml'}: run that one",
        "runs": f"{folder} was begun with --runs {was}, not {now}: give that number, fixed beforehand",
        "target": f"{folder} was begun with --target {was}, not {now}: give that one",
        "device": f"{folder} was begun on {was}, and this is {now}: go on there",
        "data": f"{folder} was begun with other data: restore it",
    }[key]
    raise UserError(f"{fix}, or give another --out")


def read_rows(folder: Path) -> list[SpeedrunRow]:
    """The finished runs, in order. Raises UserError where the file is none of ours."""
    rows = read_lines(folder / ROWS, SpeedrunRow, _OTHER)
    if [row.run for row in rows] != list(range(len(rows))):
        raise damaged(folder / ROWS, "runs are missing", _OTHER)
    return rows


def summarise(plan: SpeedrunPlan, rows: Sequence[SpeedrunRow], about: SpeedrunFacts) -> Speedrun:
    """The whole summary: what was planned, mean, spread and significance of the runs, and facts about them."""
    accuracy = Sample.of([row.test_accuracy for row in rows])
    seconds = Sample.of([row.seconds for row in rows])
    low, high = accuracy.interval(low=0, high=1) or (None, None)
    return Speedrun(
        **plan.model_dump(exclude_unset=True),
        **about,
        mean_accuracy=accuracy.mean,
        sd_accuracy=accuracy.sd,
        interval_low=low,
        interval_high=high,
        p_mean_above_target=accuracy.p_above(plan.target),
        mean_seconds=seconds.mean,
        sd_seconds=seconds.sd,
        cold_seconds=rows[0].cold_seconds,
        compiled_from_cache=rows[0].compiled_from_cache,
        compiled=all(row.compiled for row in rows),
    )


def describe(summary: Speedrun) -> str:
    """The summary in a few lines."""
    count, last = summary.runs, summary.first_seed + summary.runs - 1
    seeds = f"seed {last}" if count == 1 else f"seeds {summary.first_seed} to {last}"
    lines = [f"{count} {'run' if count == 1 else 'runs'}, {seeds}: mean test accuracy {summary.mean_accuracy:.3%}"]
    seconds = f"{summary.mean_seconds:.3f} s a run"
    if count > 1:
        lines[0] += (
            f", SD {summary.sd_accuracy:.3%}, 95% interval {summary.interval_low:.3%} to "
            f"{summary.interval_high:.3%} (Student's t on the logit scale, {plural(count - 1, 'degree', 'degrees')} of "
            "freedom)"
        )
        p = summary.p_mean_above_target
        p_shown = "no p, as all runs are equal" if p is None else f"p = {p:.2g}" if p >= 1e-9 else "p < 1e-9"
        lines.append(f"mean above {summary.target:.2%}: {p_shown} (one-sided t test)")
        seconds += f", SD {summary.sd_seconds:.3f} s"
    if count == 2:
        lines.append(TWO_SEEDS)
    made = "the start" if summary.compiled_from_cache else "compilation"
    what = f"{made} and warm-up" if summary.compiled else f"warm-up ({summary.compile_note})"
    lines.append(f"{seconds}; the first one with {what} {summary.cold_seconds:.1f} s; on {summary.device}")
    return "\n".join([*lines, f"timed: {summary.timed}", f"not timed: {summary.not_timed}"])


def draw(folder: Path, rows: list[SpeedrunRow], summary: Speedrun) -> None:
    """Draw speedrun.png."""
    with any_backend():
        from fastres.report import run_figures
        from fastres.report.style import png

    figure = run_figures.speedrun(rows, summary)
    write_bytes(folder / FIGURE, png(figure))
