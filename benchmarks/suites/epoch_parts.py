"""Parts of an epoch's time: loader, augmentation, forward, backward, optimizer, and the gaps between them.

Seconds come from steps without the profiler, shares from others under it. There each part of a step runs in a range of
the profiler. On a CPU a part is what operators and compiled graphs cover of its range (loader and augmentation, which
are no operators of torch, count whole), and the host gap is the rest of the steps' wall time: Python, guards, metrics.
On a GPU a part is the time of the kernels that were launched within its range, kernel by kernel instead of by CUDA
graphs, and the gap is what they do not account for of a step as a run launches it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.gpu.epochs import covered
from benchmarks.harness.summary import PARTS, number
from fastres.bench.timing import wait
from fastres.bench.training import Ours
from fastres.data.loaders import Batch
from fastres.report.style import BLACK, BLUE, GREEN, ORANGE, SKY, SMALL, TEXT, WIDTH, dress, own_settings
from fastres.training.epoch import Runner

EPOCH = 1
"""The one that is trained on, again and again: nothing that a schedule changes comes between two turns."""
LEAD = 2
"""Steps before those that are measured, with which a loader begins to read ahead."""
GAP = PARTS[-1]
# Okabe and Ito's palette with light grey for the gap; neighbours differ in lightness too.
COLOURS = dict(zip(PARTS, (SKY, "#e69f00", BLUE, GREEN, ORANGE, "#dddddd"), strict=True))
_WRITTEN = 0.06
"""The least share of a bar that has room for its figure."""

Span = tuple[float, float]


def parts(ours: Ours, steps: int, step_seconds: float) -> dict[str, float]:
    """Seconds a step of each of PARTS, by the profile of `steps` steps; together `step_seconds`, the time of a step
    without the profiler (on a GPU more, where kernels take longer than that)."""
    on_gpu = ours.device.type == "cuda"
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, *([kinds.CUDA] if on_gpu else [])]
    for _ in range(2):  # the first attaches the profiler, which takes its time
        with ranges(ours) as runner:
            launches = runner.epoch(EPOCH, 0, LEAD + steps)
            for _ in range(LEAD):
                next(launches)
            wait(ours.device)
            # The launches are not exhausted, here and wherever steps are timed: a loader would end its processes.
            with torch.profiler.profile(activities=activities, acc_events=True) as profile:
                began = time.perf_counter()
                for _ in range(steps):
                    next(launches)
                wait(ours.device)
                window = time.perf_counter() - began
    events = list(profile.events())
    found = kernels_by_range(events) if on_gpu else operators_by_range(events)
    scale = 1 / steps if on_gpu else step_seconds / window
    seconds = {part: found.get(part, 0.0) / 1e6 * scale for part in PARTS[:-1]}
    return {**seconds, GAP: max(0.0, step_seconds - sum(seconds.values()))}


@contextmanager
def ranges(ours: Ours) -> Iterator[Runner]:
    """A runner of the same step, launch by launch, that goes through the parts in ranges of their names."""
    step, data_module = ours.step, ours.data_module
    read = data_module.train.batches

    def batches(epoch: int, first_step: int) -> Iterator[Batch]:
        delivered = read(epoch, first_step)
        following = named("loader", lambda: next(delivered, None))
        yield from iter(following, None)

    marked: Any = SimpleNamespace(
        train=data_module.train,
        augment=named("augmentation", data_module.augment),
        augment_batch=named("augmentation", data_module.augment_batch),
    )
    with (
        mock.patch.object(data_module.train, "batches", batches),
        mock.patch.object(step, "loss_and_correct", named("forward", step.loss_and_correct)),
        mock.patch.object(Tensor, "backward", named("backward", Tensor.backward)),
        mock.patch.object(step.optimizer, "step", named("optimizer", step.optimizer.step)),
        mock.patch.object(step.optimizer, "zero_grad", named("optimizer", step.optimizer.zero_grad)),
    ):
        yield Runner(step, marked, ours.epoch_metrics, ours.stall, on_device=False)


def named(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` in a range of that name."""

    def run(*arguments: Any, **options: Any) -> Any:
        with torch.profiler.record_function(part):
            return function(*arguments, **options)

    return run


def operators_by_range(events: list[Any]) -> dict[str, float]:
    """Microseconds of each part on a CPU: of its ranges, as far as operators cover them."""
    inside = [_span(event) for event in events if event.name not in PARTS and not event.is_user_annotation]
    inside.sort()
    found: dict[str, float] = {}
    for event in events:
        if event.name in PARTS:
            begin, end = _span(event)
            whole = event.name in ("loader", "augmentation")
            clipped = [(max(begin, first), min(end, last)) for first, last in inside if first < end and last > begin]
            found[event.name] = found.get(event.name, 0.0) + (end - begin if whole else covered(clipped))
    return found


def kernels_by_range(events: list[Any]) -> dict[str, float]:
    """Microseconds of each part on a GPU: of the kernels whose launch on the host, by any thread, is within a range."""
    cuda = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    ranges = [event for event in events if event.name in PARTS and event.device_type != cuda]
    spans = sorted((*_span(event), event.name) for event in ranges)
    found: dict[str, float] = {}
    for event in events:
        launched = _span(event)[0]
        for begin, end, part in spans:
            if begin <= launched <= end:
                found[part] = found.get(part, 0.0) + sum(kernel.duration for kernel in event.kernels)
    return found


def _span(event: Any) -> Span:
    return event.time_range.start, event.time_range.end


@own_settings()
def bars(entries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Seconds of an epoch by part, a bar for each entry of the record, a panel for each network and batch size."""
    panels: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in entries.values():
        panels.setdefault(entry["setting"], {})[entry["factor"]] = entry
    heights = [len(panel) + 0.9 for panel in panels.values()]
    figure = Figure(figsize=(WIDTH, 0.8 + 0.3 * sum(heights)), layout="constrained", facecolor="white")
    columns = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (setting, panel) in zip(columns, panels.items(), strict=True):
        dress(axes)
        axes.grid(visible=False, axis="y")
        names = list(panel)
        longest = max(sum(entry["parts"].values()) for entry in panel.values())
        for place, entry in enumerate(panel.values()):
            left = 0.0
            for part in PARTS:
                seconds = entry["parts"][part]
                axes.barh(place, seconds, left=left, color=COLOURS[part], edgecolor="white", linewidth=0.6, height=0.78)
                if seconds > _WRITTEN * longest:
                    ink = "white" if part in ("forward", "backward", "optimizer") else BLACK
                    share = f"{seconds / sum(entry['parts'].values()):.0%}"
                    axes.text(left + seconds / 2, place, share, ha="center", va="center", color=ink, fontsize=SMALL)
                left += seconds
            axes.text(left + 0.01 * longest, place, f"{number(left)} s", va="center", fontsize=SMALL)
        axes.set_yticks(range(len(names)), names, fontsize=SMALL)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.1 * longest)
        axes.set_title(setting, loc="left", fontsize=TEXT)
    columns[-1].set_xlabel("seconds of an epoch", fontsize=TEXT)
    boxes = [columns[0].barh(0, 0, color=COLOURS[part], label=part) for part in PARTS]
    figure.legend(handles=boxes, loc="outside upper center", ncols=len(PARTS), fontsize=SMALL, frameon=False)
    return figure
