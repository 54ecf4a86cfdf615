"""Normalisations and activations of PyTorch and others whose forward is known, by the names of their classes, so that
neither timm nor torchvision is imported for them.

A subclass of `nn.BatchNorm2d` may compute anything: only these are taken for what they are derived from. SyncBatchNorm
and timm's SyncBatchNormAct are none of them: no call here exchanges statistics between processes.
"""

import torch
from torch import nn

BATCH_NORM_ACT = "timm.layers.norm_act.BatchNormAct2d"
"""BatchNorm2d, then its children `drop` and `act`."""
CONV_NORM_ACT = "timm.layers.conv_bn_act.ConvNormAct"
"""Its children `conv`, `bn` and, where there is one, `aa`."""
FROZEN = "torchvision.ops.misc.FrozenBatchNorm2d"
"""Normalises by buffers, always; timm's `freeze_batch_norm_2d` makes them too."""
FROZEN_ACT = "timm.layers.norm_act.FrozenBatchNormAct2d"
"""The same, then its children `drop` and `act`."""
_ACTIVATIONS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.GELU: "gelu"}
_TIMM_GELU = "timm.layers.activations.GELU"


def class_name(module: nn.Module) -> str:
    """Full name of its class."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def is_plain(module: nn.Module) -> bool:
    """Whether calling `module` does no more than its class's forward: no hooks, no forward of its own."""
    forward_hooks = module._forward_pre_hooks or module._forward_hooks
    backward_hooks = module._backward_pre_hooks or module._backward_hooks
    return not (forward_hooks or backward_hooks or "forward" in module.__dict__)


def has_global_hooks() -> bool:
    """Whether a hook is registered that runs at every call of every module."""
    return not torch.compiler.is_compiling() and bool(torch.nn.modules.module._has_any_global_hook())


def activation_of(module: nn.Module) -> str | None:
    """Name of the activation that `module` is, as in `fastres.kernels.ACTIVATIONS`; None if it is none of them."""
    if not is_plain(module) or getattr(module, "approximate", "none") != "none":
        return None
    return "gelu" if class_name(module) == _TIMM_GELU else _ACTIVATIONS.get(type(module))


def is_batch_norm(module: nn.Module) -> bool:
    """Whether its forward is that of `nn.BatchNorm2d`."""
    return type(module) is nn.BatchNorm2d or (class_name(module) == BATCH_NORM_ACT and _adds_nothing(module))


def is_frozen(module: nn.Module) -> bool:
    """Whether its forward normalises by buffers and does nothing else."""
    name = class_name(module)
    return name == FROZEN or (name == FROZEN_ACT and _adds_nothing(module))


def inner_activation(module: nn.Module) -> str | None:
    """Name of the activation with which the forward of a BatchNorm ends; None if there is none, or not only that."""
    if class_name(module) not in (BATCH_NORM_ACT, FROZEN_ACT):
        return None
    act, drop = module.get_submodule("act"), module.get_submodule("drop")
    return activation_of(act) if type(drop) is nn.Identity and is_plain(drop) else None


def is_sequence(module: nn.Module) -> bool:
    """Whether calling it calls its children one after the other and does nothing else."""
    kind = type(module)
    sequential = isinstance(module, nn.Sequential) and (
        kind.forward is nn.Sequential.forward and vars(nn.Sequential)["__iter__"] is getattr(kind, "__iter__", None)
    )
    return (sequential or class_name(module) == CONV_NORM_ACT) and is_plain(module)


def is_known(module: nn.Module) -> bool:
    """Whether it is a norm of one of the kinds above."""
    return is_batch_norm(module) or is_frozen(module) or inner_activation(module) is not None


def _adds_nothing(module: nn.Module) -> bool:
    children = (module.get_submodule("act"), module.get_submodule("drop"))
    return all(type(child) is nn.Identity and is_plain(child) for child in children)
