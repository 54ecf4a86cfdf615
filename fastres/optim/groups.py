"""The optimizer of a recipe over parameter groups."""

from typing import Any

import torch
from torch import nn

from fastres.recipe import Adam, AdamW, Sgd


def parameter_groups(network: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """One group that decays and, where BN and biases shall not, a second one of all parameters with one axis."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if decay_norm_and_bias:
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(options: Sgd | Adam | AdamW, network: nn.Module) -> torch.optim.Optimizer:
    """torch's fused implementation: one kernel over all parameters instead of a loop over them."""
    groups = parameter_groups(network, options.weight_decay, options.decay_norm_and_bias)
    match options:
        case Sgd():
            return torch.optim.SGD(
                groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov, fused=True
            )
        case Adam() | AdamW():
            kind = torch.optim.AdamW if isinstance(options, AdamW) else torch.optim.Adam
            beta1, beta2 = options.betas
            return kind(groups, lr=options.lr, betas=(beta1, beta2), eps=options.eps, fused=True)
