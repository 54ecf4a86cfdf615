"""Optimizers, parameter groups, schedules and averages."""

from fastres.optim.averaging import Ema, Lookahead
from fastres.optim.groups import build_optimizer, renormalise, restart
from fastres.optim.muon import Muon
from fastres.optim.schedules import factor, fading, total_steps

__all__ = ["Ema", "Lookahead", "Muon", "build_optimizer", "factor", "fading", "renormalise", "restart", "total_steps"]
