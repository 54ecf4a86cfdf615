"""Parameter groups: which parameters share a rate and a decay."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from fastres.models.network import GroupRate, Network
from fastres.recipe.optimizers import ElementwiseConfig, OptimizerConfig

Group = dict[str, Any]
Parameters = list[tuple[nn.Parameter, str]]
"""Trainable parameters, each with the group of `Network.groups` that it belongs to."""
Factors = Mapping[nn.Parameter, float]
NONE: Factors = MappingProxyType({})
"""No parameter has a rate of its own."""


def group_names(network: nn.Module) -> Parameters:
    """The trainable parameters in the network's order, each with the group of `Network.groups` that it belongs to. In
    other modules `filters` have four axes, `bias` at most one; what has two or three, such as a linear layer's weight,
    is `matrix`: nobody knows which of them is the classifier."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not isinstance(network, Network):
        names = {0: "bias", 1: "bias", 4: "filters"}
        return [(parameter, names.get(parameter.ndim, "matrix")) for parameter in trained]
    role = {id(parameter): name for name, group in network.groups().items() for parameter in group}
    return [(parameter, role[id(parameter)]) for parameter in trained]


def group_rates(network: nn.Module, options: ElementwiseConfig) -> dict[str, GroupRate]:
    """The rates of groups, by name, that differ from the optimizer's: those of every network, and those that a family
    has of its own, which a method may have wrapped."""
    rates = {"bias": GroupRate(options.bias_lr_factor), "head": GroupRate(options.head_lr_factor)}
    for module in network.modules():
        if isinstance(module, Network):
            rates |= module.group_rates(options)
    return rates


def parameter_groups(
    parameters: Parameters, options: OptimizerConfig, rates: Mapping[str, GroupRate], lr_factors: Factors = NONE
) -> list[Group]:
    """Parameters of one rate and one decay together, as few groups as possible: each is one launch on a GPU.

    A group's `lr` and `initial_lr` are its rate at the schedule's factor 1; `fades_after` the epoch at which its rate
    has reached 0 whatever the schedule says, or 0.
    """
    groups: dict[tuple[float, float, float], Group] = {}
    for parameter, role in parameters:
        factor, fades = rates.get(role, GroupRate())
        rate = options.lr * factor * lr_factors.get(parameter, 1.0)
        # Muon's table has no decay_norm_and_bias, Adam's no decouple_decay.
        decays = parameter.ndim > 1 or getattr(options, "decay_norm_and_bias", True)
        decay = options.weight_decay if decays else 0.0
        if getattr(options, "decouple_decay", False):
            decay /= rate
        new = {"params": [], "lr": rate, "initial_lr": rate, "weight_decay": decay, "fades_after": fades}
        groups.setdefault((rate, decay, fades), new)["params"].append(parameter)
    return list(groups.values())
