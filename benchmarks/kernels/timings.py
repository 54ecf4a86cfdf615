"""Time the cases of cases.py, ours against the rivals, and say how near to the machine's copy rate they come."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from benchmarks.kernels.cases import Variant, variants
from benchmarks.kernels.variants import figures, tried
from fastres.bench.ceilings import cache_bytes, copy_rate
from fastres.bench.norms import PASSES, Case, Problem, call, problem
from fastres.bench.timing import DRY, GPU, kernel_names, measure, peak_bytes, sets_for_cold_cache
from fastres.engine.cuda_graph import side_stream
from fastres.kernels.batch_norm.functional import takes_kernels
from fastres.report.document import Table

RIVALS = ("eager", "cudnn", "inductor", "inductor-cooperative")
CACHES = ("cold", "hot")
"""Inputs and outputs in memory, through sets of buffers of three times the L2, or the same buffers again and again."""

# One rate for each size in a run.
_copy_rate = cache(copy_rate)


def time_case(
    case: Case, device: torch.device, *, passes: Sequence[str] = PASSES, dry: bool = False
) -> Iterator[dict[str, Any]]:
    """Measure one case; yields a record, ready for JSON, for each pass and state of the cache.

    Where one set of buffers is by itself three times the L2, there is no hot measurement. A variant that fails is left
    out and named under `missing` with the reason. `path` says what ours ran on, `triton` or `torch`. Times are in
    microseconds a call, rates in bytes a second.
    """
    effort = DRY if dry else GPU
    ready = cache(lambda retained: variants(case, device, dry=dry, retained=retained))
    for which in passes:
        sets = sets_for_cold_cache(case.floor_bytes(which), cache_bytes(device))
        found, unavailable = ready(which == "backward")
        records = []
        with side_stream(device):
            problems = {
                dtype: [problem(replace(case, dtype=dtype), device, seed) for seed in range(sets)]
                for dtype in {variant.dtype for variant in found.values()}
            }
            running, failed = _tried(found, which, problems)
            facts = {
                name: {
                    "dtype": _name(variant.dtype),
                    "peak_bytes": peak_bytes(call(which, variant.forward, problems[variant.dtype][0]), device),
                }
                for name, variant in running.items()
            }
            common = {
                "case": case.name,
                "form": case.form,
                **{key: getattr(case, key) for key in ("batch", "channels", "height", "width")},
                "dtype": _name(case.dtype),
                "pass": which,
                "tensor_bytes": case.tensor_bytes,
                "floor_bytes": case.floor_bytes(which),
                "two_kernel_bytes": case.two_kernel_bytes(which),
                "path": path_of_ours(problems[case.dtype][0], training=which != "eval") if "ours" in running else None,
                "missing": unavailable | failed,
            }
            for state in CACHES:
                if state == "hot" and sets == 1:
                    continue
                count = sets if state == "cold" else 1
                calls = {
                    name: [call(which, variant.forward, each) for each in problems[variant.dtype][:count]]
                    for name, variant in running.items()
                }
                timings = measure(calls, device, effort)
                rate, _ = _copy_rate(case.tensor_bytes, device, cold=state == "cold", effort=effort)
                record = {**common, "cache": state, "sets": count, "copy_bytes_per_second": rate}
                record["variants"] = figures(timings)
                for name, variant in record["variants"].items():
                    moved = case.floor_bytes(which), case.two_kernel_bytes(which)
                    floor, two_kernels = (each / timings[name].seconds for each in moved)
                    variant |= facts[name] | {"floor_bytes_per_second": floor, "share_of_copy": floor / rate}
                    variant["share_of_copy_with_two_kernels_bytes"] = two_kernels / rate
                records.append(record)
        yield from records
    # What was compiled and captured for this case is not used again.
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def path_of_ours(example: Problem, *, training: bool) -> str:
    """`torch` where fastres.kernels calls PyTorch's BatchNorm for this problem, else `triton`."""
    taken = takes_kernels(example.x, example.other, example.norm, example.other_norm, training, insists=False)
    return "triton" if taken else "torch"


def kernels_of_case(case: Case, device: torch.device, *, dry: bool = False) -> Iterator[dict[str, Any]]:
    """Launches of each variant on the device: a record for a training step's two passes and one for evaluation.

    Apart from `time_case`, and best after it: a profiler that has once been attached may slow later launches.
    """
    example: dict[torch.dtype, Problem] = {}
    for which in ("forward+backward", "eval"):
        found, unavailable = variants(case, device, dry=dry, retained=False)
        example |= {variant.dtype: problem(replace(case, dtype=variant.dtype), device) for variant in found.values()}
        running, failed = _tried(found, which, {dtype: [each] for dtype, each in example.items()})
        names = {
            name: kernel_names(call(which, variant.forward, example[variant.dtype]), device)
            for name, variant in running.items()
        }
        yield {"case": case.name, "pass": which, "missing": unavailable | failed, "kernels": names}


def _tried(
    found: dict[str, Variant], which: str, problems: dict[torch.dtype, list[Problem]]
) -> tuple[dict[str, Variant], dict[str, str]]:
    def run(variant: Variant) -> Variant:
        call(which, variant.forward, problems[variant.dtype][0])()
        return variant

    return tried({name: partial(run, variant) for name, variant in found.items()})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def table(records: Sequence[dict[str, Any]], most_characters: int = 9000) -> str:
    """One line for each case and state of the cache, for a terminal.

    A cell has ours in microseconds, the share of the copy rate of the same size and state that the floor's bytes make,
    and how many times as fast ours is as the fastest rival, with the rival's initial (C: Inductor, cooperative). `!`:
    ours took PyTorch's path.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for record in records:
        rows.setdefault((record["case"], record["cache"]), {})[record["pass"]] = _cell(record)
    shown = [[", ".join(name), *(cells.get(which, "") for which in PASSES)] for name, cells in rows.items()]
    lines = Table(["case, cache", *PASSES], shown).for_terminal().split("\n")
    ends = itertools.accumulate(len(line) + 1 for line in lines)
    fitting = [line for line, end in zip(lines, ends, strict=True) if end <= most_characters]
    left_out = len(lines) - len(fitting)
    return "\n".join([*fitting, *[f"... {left_out} more lines: see the JSON"] * bool(left_out)])


def _cell(record: dict[str, Any]) -> str:
    mine = record["variants"].get("ours")
    if mine is None:
        return "failed"
    ratios = {
        name: figures["ours_is_times_as_fast"]
        for name, figures in record["variants"].items()
        if "ours_is_times_as_fast" in figures
    }
    initials = {"eager": "e", "cudnn": "c", "inductor": "i", "inductor-cooperative": "C"}
    best = min(ratios, key=lambda name: ratios[name], default=None)
    rival = "" if best is None else f" {ratios[best]:.2f}{initials[best]}"
    path = "" if record["path"] == "triton" else "!"
    return f"{mine['microseconds']:.4g}{path} {mine['share_of_copy']:.0%}{rival}"
