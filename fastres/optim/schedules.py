"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

import math

from fastres.recipe import ConstantConfig, CosineConfig, KnotsConfig, LinearConfig, OneCycleConfig, StepConfig
from fastres.recipe.schedules import ScheduleConfig


def total_steps(epochs: float, steps_per_epoch: int) -> int:
    """Steps of a run of `epochs`, which may end in the middle of one: at least one step."""
    return max(1, round(epochs * steps_per_epoch))


def factor(schedule: ScheduleConfig, step: int, steps_per_epoch: int, epochs: float) -> float:
    """What the recipe's learning rate is multiplied by at `step` (counted from 0 over the whole run).

    With `per = "epoch"` the factor of an epoch's first step holds in all of it, as of schedulers stepped once an epoch.
    """
    if schedule.per == "epoch":
        now, end, warmup = float(step // steps_per_epoch), epochs, schedule.warmup_epochs
        epoch = now
    else:
        now, end = float(step), float(total_steps(epochs, steps_per_epoch))
        warmup = schedule.warmup_epochs * steps_per_epoch
        epoch = step / steps_per_epoch
    if now < warmup:
        return (now + 1) / (warmup + 1)
    done = (now - warmup) / (end - warmup)
    match schedule:
        case ConstantConfig():
            return 1.0
        case LinearConfig():
            return 1 + (schedule.final - 1) * done
        case CosineConfig():
            return _half_cosine(1.0, schedule.final, done)
        case OneCycleConfig():
            if done < schedule.peak:
                return _half_cosine(schedule.start, 1.0, done / schedule.peak)
            return _half_cosine(1.0, schedule.final, (done - schedule.peak) / (1 - schedule.peak))
        case StepConfig():
            return schedule.gamma ** sum(milestone <= epoch for milestone in schedule.milestones)
        case KnotsConfig():
            return _piecewise_linear(schedule.points, epoch)
    raise LookupError(f"no factor is defined for {type(schedule).__name__}")


def fading(step: int, steps_per_epoch: int, epochs: float) -> float:
    """A factor that falls from 1 at the first step to 0 at the end of `epochs`, and stays there."""
    return max(0.0, 1 - step / (epochs * steps_per_epoch))


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _piecewise_linear(points: list[list[float]], epoch: float) -> float:
    """The line through the points around `epoch`; at a jump, its later end."""
    earlier = [point for point in points if point[0] <= epoch]
    later = [point for point in points if point[0] > epoch]
    if not earlier or not later:
        return (points[-1] if earlier else points[0])[1]
    (start, low), (end, high) = earlier[-1], later[0]
    return low + (high - low) * (epoch - start) / (end - start)
