"""Optimizers, parameter groups, schedules and averages."""

from fastres.optim.averaging import Ema
from fastres.optim.groups import build_optimizer, parameter_groups
from fastres.optim.schedules import factor

__all__ = ["Ema", "build_optimizer", "factor", "parameter_groups"]
