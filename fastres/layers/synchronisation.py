"""The layers have no synchronised form yet, so that converting a model to SyncBatchNorm has to fail.

`torch.nn.SyncBatchNorm.convert_sync_batchnorm` turns every instance of a BatchNorm class into a plain SyncBatchNorm:
of a subclass it drops the activation without a word, and of a fused block it would replace what the block's forward
calls. It takes children one by one and replaces those before ours, so a layer that refuses when its turn comes leaves a
model half converted. Importing this module therefore puts a check of the whole model in front of torch's function,
which is otherwise unchanged; timm's and apex's own versions meet the refusal of the single layer.
"""

import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from torch import nn

# torch's and timm's, apex's. Each asks every module, ours too, for its children.
_CONVERTERS = ("convert_sync_batchnorm", "convert_syncbn_model")


def _refuse(layer: nn.Module) -> NoReturn:
    raise RuntimeError(
        f"{type(layer).__name__} would lose its activation or add in the conversion to SyncBatchNorm and has no "
        f"synchronised form yet: {getattr(layer, '_instead_of_synchronising', '')}"
    )


def named_children(self: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`nn.Module.named_children`; RuntimeError where a conversion to SyncBatchNorm asks."""
    if sys._getframe(1).f_code.co_name in _CONVERTERS:
        _refuse(self)
    return nn.Module.named_children(self)


class NotSynchronised:
    """Mixin of a layer that refuses to be converted to SyncBatchNorm."""

    _instead_of_synchronising = "build the model with nn.BatchNorm2d and a separate activation there"
    named_children = named_children


def _check_first() -> None:
    """Put the check in front of torch's function, once."""
    convert = nn.SyncBatchNorm.convert_sync_batchnorm.__func__  # type: ignore[attr-defined]
    if getattr(convert, "checks_first", False):
        return

    def convert_sync_batchnorm(cls: type, module: nn.Module, process_group: Any = None) -> nn.Module:
        for layer in module.modules():
            if hasattr(layer, "_instead_of_synchronising"):
                _refuse(layer)
        return convert(cls, module, process_group)

    convert_sync_batchnorm.__doc__ = convert.__doc__
    convert_sync_batchnorm.checks_first = True  # type: ignore[attr-defined]
    nn.SyncBatchNorm.convert_sync_batchnorm = classmethod(convert_sync_batchnorm)  # type: ignore[assignment,method-assign]


_check_first()
