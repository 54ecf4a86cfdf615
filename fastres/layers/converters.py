"""Converters that would drop what a layer of ours computes after its BatchNorm are refused while they convert.

A converter that goes by isinstance takes our layers for the `nn.BatchNorm2d` that they are, makes its own norm of what
it reads, and drops activation and addition without a word.

Refused: `convert_sync_batchnorm` of torch, timm and apex; timm's `freeze_batch_norm_2d` (and `timm.utils.freeze`) and
`convert_splitbn_model`; torch's `fuse_conv_bn_eval` and `to_mkldnn`; detectron2's `convert_frozen_batchnorm`; and any
other function whose name says that it converts (`CONVERTS`), once it reads `eps` or `num_features` of a layer. One that
reads `activation` too knows the layer and may. `vars(layer)["eps"]` is open to everybody.

Kept, as the layer stays where it is: `torch.optim.swa_utils.update_bn`, `torch.func.replace_all_batch_norm_modules_`,
Lightning's `BaseFinetuning`, and those that go by the exact class: `torch.fx.experimental.optimization.fuse`,
`torch.ao.quantization`. The children of `DualBatchNormAddAct2d` and BatchNorms in a model given to `fuse` are plain:
all converters but the first may replace them.

torch's `convert_sync_batchnorm` takes children one by one and replaces those before ours, so that refusing when the
layer's turn comes leaves a model half converted. Importing this module therefore puts a check of the whole model in
front of it; others meet the refusal of the single layer.
"""

import re
import sys
import types
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import nn

# torch's and timm's, apex's. Each asks every module, ours too, for its children.
_TO_SYNC = ("convert_sync_batchnorm", "convert_syncbn_model")
CONVERTS = re.compile("convert|freez|frozen|fuse|fold|merge|absorb|replace|split|mkldnn", re.IGNORECASE)
"""What the name of a function has that makes another module or weights of a BatchNorm."""


def _refuse_to_sync(layer: nn.Module) -> NoReturn:
    raise RuntimeError(
        f"{type(layer).__name__} would lose its activation or add in the conversion to SyncBatchNorm and has no "
        f"synchronised form yet: {getattr(layer, '_instead_of_converting', '')}"
    )


def named_children(self: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`nn.Module.named_children`; RuntimeError where a conversion to SyncBatchNorm asks."""
    if sys._getframe(1).f_code.co_name in _TO_SYNC:
        _refuse_to_sync(self)
    return nn.Module.named_children(self)


def prepare_scriptable(self: nn.Module) -> NoReturn:
    """What torch.jit.script asks a module for before it compiles it. Raises RuntimeError."""
    raise RuntimeError(
        f"torch.jit.script cannot compile {type(self).__name__}: use torch.jit.trace, torch.export or torch.compile"
        + (", or call fastres.layers.unfuse(model) first" if hasattr(type(self), "_fastres_plan") else "")
    )


def _converts(code: types.CodeType) -> bool:
    """Whether a function is named like a converter, is in one or makes one; and knows nothing of activations."""
    names = code.co_qualname
    if code.co_name != "__init__":  # there the class tells what is made of the BatchNorm, elsewhere nothing
        names = " ".join([*re.findall(r"(\w+)\.<locals>", names), code.co_name])
    return CONVERTS.search(names) is not None and "activation" not in code.co_names


def _guarded(name: str) -> Any:
    """A plain attribute, but that a converter which asks for it is refused."""

    def get(self: nn.Module) -> Any:
        if not torch.compiler.is_compiling():
            code = sys._getframe(1).f_code
            if code.co_name in _TO_SYNC:
                _refuse_to_sync(self)
            if _converts(code):
                raise RuntimeError(
                    f"{code.co_name} would drop the activation or add of {type(self).__name__}: "
                    f"{getattr(self, '_instead_of_converting', '')}; .eval() and .requires_grad_(False) freeze a layer"
                )
        return self.__dict__[name]

    def set_(self: nn.Module, value: Any) -> None:
        self.__dict__[name] = value

    return property(get, set_)


class NotScriptable:
    """Mixin of a module that torch.jit.script refuses in one sentence."""

    __prepare_scriptable__ = prepare_scriptable


class NotSynchronised(NotScriptable):
    """Mixin of a layer that refuses to be converted to SyncBatchNorm."""

    _instead_of_converting = "build the model with nn.BatchNorm2d and a separate activation there"
    named_children = named_children


class NotConverted(NotSynchronised):
    """Mixin of a BatchNorm with more behind it, which refuses to be replaced by a BatchNorm alone."""

    num_features, eps = _guarded("num_features"), _guarded("eps")


def _check_first() -> None:
    """Put the check in front of torch's function, once."""
    convert = nn.SyncBatchNorm.convert_sync_batchnorm.__func__  # type: ignore[attr-defined]
    if getattr(convert, "checks_first", False):
        return

    def convert_sync_batchnorm(cls: type, module: nn.Module, process_group: Any = None) -> nn.Module:
        for layer in module.modules():
            if hasattr(layer, "_instead_of_converting"):
                _refuse_to_sync(layer)
        return convert(cls, module, process_group)

    convert_sync_batchnorm.__doc__ = convert.__doc__
    convert_sync_batchnorm.checks_first = True  # type: ignore[attr-defined]
    nn.SyncBatchNorm.convert_sync_batchnorm = classmethod(convert_sync_batchnorm)  # type: ignore[assignment,method-assign]


_check_first()
