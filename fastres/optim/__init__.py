"""Optimizers, parameter groups, schedules and averages."""

from fastres.optim.averaging import Ema, Lookahead
from fastres.optim.muon import Muon
from fastres.optim.rules import build_optimizer, rule_of
from fastres.optim.schedules import factor, fading, total_steps

__all__ = ["Ema", "Lookahead", "Muon", "build_optimizer", "factor", "fading", "rule_of", "total_steps"]
