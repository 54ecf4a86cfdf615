"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

import math

from fastres.recipe import Constant, Cosine, Linear, OneCycle, Step

Schedule = Constant | Linear | Cosine | OneCycle | Step


def factor(schedule: Schedule, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What the recipe's learning rate is multiplied by at `step` (counted from 0 over the whole run).

    With `per = "epoch"` the factor of the epoch's first step holds throughout the epoch, as with schedulers that are
    stepped once an epoch.
    """
    if schedule.per == "epoch":
        now, end, warmup = float(step // steps_per_epoch), float(epochs), schedule.warmup_epochs
        epoch = now
    else:
        now, end, warmup = float(step), float(epochs * steps_per_epoch), schedule.warmup_epochs * steps_per_epoch
        epoch = step / steps_per_epoch
    if now < warmup:
        return (now + 1) / (warmup + 1)
    done = (now - warmup) / (end - warmup)
    match schedule:
        case Constant():
            return 1.0
        case Linear():
            return 1 + (schedule.final - 1) * done
        case Cosine():
            return _half_cosine(1.0, schedule.final, done)
        case OneCycle():
            if done < schedule.peak:
                return _half_cosine(schedule.start, 1.0, done / schedule.peak)
            return _half_cosine(1.0, schedule.final, (done - schedule.peak) / (1 - schedule.peak))
        case Step():
            return schedule.gamma ** sum(milestone <= epoch for milestone in schedule.milestones)


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
