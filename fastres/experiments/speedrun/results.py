"""Files and output of a speedrun: its plan, a row a run, the summary, the figure.

| file | what |
|---|---|
| `plan.json` | recipe hash, number of runs, target, device and data, fixed before the first run |
| `resolved.toml`, `environment.json` | the whole recipe; the machine |
| `runs.jsonl` | a line a finished run: seed, accuracy, loss (null where it is not finite), seconds, whether compiled |
| `speedrun.json`, `speedrun.png` | the summary and its figure, when all runs are done |
"""

from pathlib import Path

from fastres.errors import UserError
from fastres.runs.schema import Speedrun, SpeedrunPlan, SpeedrunRow
from fastres.utils.format import plural
from fastres.utils.json_files import damaged, read_lines
from fastres.utils.statistics import TWO_SEEDS

PLAN, ROWS, SUMMARY, FIGURE = "plan.json", "runs.jsonl", "speedrun.json", "speedrun.png"
_OTHER = "give another --out"


def check_plan(folder: Path, plan: SpeedrunPlan) -> None:
    """Write the plan, or raise UserError where the speedrun in `folder` was begun with another one."""
    begun = SpeedrunPlan.read_if_there(folder / PLAN, _OTHER)
    if begun is None:
        plan.write(folder / PLAN)
        return
    fixes = {
        "recipe_hash": f"{folder} was begun with another recipe, {folder / 'resolved.toml'}: run that one",
        "runs": f"{folder} was begun with --runs {begun.runs}, not {plan.runs}: give that number, fixed beforehand",
        "target": f"{folder} was begun with --target {begun.target}, not {plan.target}: give that one",
        "device": f"{folder} was begun on {begun.device}, and this is {plan.device}: go on there",
        "data": f"{folder} was begun with other data: restore it",
    }
    for key, fix in fixes.items():
        if begun[key] != plan[key]:
            raise UserError(f"{fix}, or give another --out")


def read_rows(folder: Path) -> list[SpeedrunRow]:
    """The finished runs, in order. Raises UserError where the file is none of ours."""
    rows = read_lines(folder / ROWS, SpeedrunRow, _OTHER)
    if [row.run for row in rows] != list(range(len(rows))):
        raise damaged(folder / ROWS, "runs are missing", _OTHER)
    return rows


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
