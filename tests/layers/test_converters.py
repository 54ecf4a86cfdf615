"""Converters of PyTorch and timm meet the layers: the activation stays, or the conversion raises."""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.mkldnn import to_mkldnn

from fastres.data.compat.torchvision import import_torchvision
from fastres.layers import BatchNormAct2d, BatchNormAddAct2d, DualBatchNormAddAct2d, norm_act
from fastres.models import BasicBlock, Network, build
from fastres.recipe import ModelConfig, SpeednetConfig

import_torchvision()
import timm.layers  # noqa: E402 (imports torchvision)
import timm.utils  # noqa: E402


def small_networks() -> list[Network]:
    torch.manual_seed(0)
    lists: Any = {"blocks": [1, 1], "channels": [8, 16], "strides": [1, 2], "kernels": [3, 3], "skip_kernels": [1, 1]}
    return [build(ModelConfig(**lists), 10, 8), build(SpeednetConfig(widths=[8]), 10, 8)]


class Frozen(nn.Module):
    """A FrozenBatchNorm2d as other libraries have it, with a converter that is a class method."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(features))

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        if isinstance(module, nn.BatchNorm2d):
            return cls(module.num_features, module.eps)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_frozen_batchnorm(child))
        return module


class Folded(nn.Module):
    """Weights of a BatchNorm as scale and shift."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # type: ignore[operator]


def replace_by_group_norm(model: nn.Module) -> nn.Module:
    def visit(module: nn.Module) -> nn.Module:
        for name, child in module.named_children():
            setattr(module, name, visit(child))
        return nn.GroupNorm(1, module.num_features) if isinstance(module, nn.BatchNorm2d) else module

    return visit(model)


def fold_convolution(model: nn.Module) -> nn.Module:
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    return fuse_conv_bn_eval(nn.Conv2d(norm.weight.numel(), norm.weight.numel(), 1).eval(), norm)


def freeze_by_timm_utils(model: nn.Module) -> None:
    timm.utils.freeze(nn.Sequential(model))  # type: ignore[no-untyped-call]


CONVERTERS: list[Callable[[nn.Module], Any]] = [
    timm.layers.freeze_batch_norm_2d,
    freeze_by_timm_utils,
    timm.layers.convert_splitbn_model,
    to_mkldnn,
    fold_convolution,
    Frozen.convert_frozen_batchnorm,
    replace_by_group_norm,
]


@pytest.mark.parametrize("convert", CONVERTERS, ids=lambda convert: convert.__name__)
@pytest.mark.parametrize("kind", [BatchNormAct2d, BatchNormAddAct2d])
def test_a_converter_that_would_drop_the_activation_is_refused(kind: Any, convert: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(kind(8)).eval()
    with pytest.raises(RuntimeError, match=rf"would drop the activation or add of {kind.__name__}: build the model"):
        convert(model)
    assert type(model[0]) is kind
    plain = nn.Sequential(nn.BatchNorm2d(8)).eval()
    convert(plain)  # what is refused is ours alone


@pytest.mark.parametrize("convert", CONVERTERS, ids=lambda convert: convert.__name__)
def test_networks_are_refused(convert: Callable[[nn.Module], Any]) -> None:
    for network in small_networks():
        with pytest.raises(RuntimeError, match="would drop the activation"):
            convert(network.eval())


def test_an_initialiser_of_another_norm_is_refused_and_one_that_asks_for_the_activation_is_not() -> None:
    with pytest.raises(RuntimeError, match="would drop the activation"):
        Folded(BatchNormAct2d(3))

    def convert_with_activation(norm: BatchNormAct2d) -> tuple[float, str]:
        return norm.eps, norm.activation

    assert convert_with_activation(BatchNormAct2d(3, 1e-3)) == (1e-3, "relu")


def test_attributes_keys_and_class_are_open_to_everybody_else() -> None:
    norm, layer = nn.BatchNorm2d(3, 1e-3), BatchNormAct2d(3, 1e-3)
    assert (layer.eps, layer.num_features) == (norm.eps, norm.num_features) == (1e-3, 3)
    assert vars(layer)["eps"] == 1e-3
    layer.eps = 1e-2
    assert (layer.eps, copy.deepcopy(layer).eps, vars(layer)["eps"]) == (1e-2, 1e-2, 1e-2)
    assert list(layer.state_dict()) == list(norm.state_dict())
    assert [name for name, _ in layer.named_parameters()] == [name for name, _ in norm.named_parameters()]
    assert isinstance(layer, nn.BatchNorm2d)


# --- Converters that keep the activation ---


def update_bn(model: nn.Module) -> nn.Module:
    torch.optim.swa_utils.update_bn([torch.randn(4, 8, 3, 3)], model)
    return model


def without_statistics(model: nn.Module) -> nn.Module:
    return torch.func.replace_all_batch_norm_modules_(model)


def fuse_by_fx(model: nn.Module) -> nn.Module:
    import torch.fx.experimental.optimization as optimization

    return optimization.fuse(model)


def quantise(model: nn.Module) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces another home for it
        x = torch.randn(4, 8, 3, 3)
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(), (x,))
        prepared(x)
        return convert_fx(prepared)


@pytest.mark.parametrize("convert", [update_bn, without_statistics, fuse_by_fx, quantise])
def test_a_converter_that_leaves_the_layer_keeps_the_activation(convert: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), BatchNormAct2d(8)).eval()
    x = torch.randn(4, 8, 3, 3)
    y = convert(model).eval()(x)
    assert y.min() == 0
    assert y.max() > 0


# --- Norms that a converter may replace ---


@pytest.mark.parametrize(
    "convert", [timm.layers.freeze_batch_norm_2d, timm.layers.convert_splitbn_model, replace_by_group_norm]
)
def test_the_norms_inside_a_dual_layer_may_be_replaced(convert: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = DualBatchNormAddAct2d(4).eval()
    x, z = torch.randn(4, 4, 3, 3), torch.randn(4, 4, 3, 3)
    converted = convert(copy.deepcopy(layer))
    if convert is timm.layers.convert_splitbn_model:
        converted.train()  # where it differs: each half of the batch by statistics of its own
    expected = torch.relu(converted.main(x) + converted.skip(z))  # type: ignore[operator]
    if converted.training:
        assert not torch.equal(expected, layer.train()(x, z))
    assert torch.equal(converted(x, z), expected)


def test_the_norm_of_a_skip_may_be_replaced() -> None:
    torch.manual_seed(0)
    block = BasicBlock(4, 8, 2).eval()
    assert block.downsample is not None
    block.downsample[1] = nn.GroupNorm(2, 8)
    x = torch.randn(2, 4, 6, 6)
    y = block.conv2(block.bn1(block.conv1(x)))
    assert torch.equal(block(x), block.bn2(y, block.downsample(x)))


def test_a_subclass_with_a_forward_of_its_own_is_called() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    norm = Doubled(3).eval()
    x, r = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(norm_act(norm, x, r, "relu"), torch.relu(norm(x) + r))  # type: ignore[arg-type]


def test_the_message_is_two_lines_at_most() -> None:
    with pytest.raises(RuntimeError) as caught:
        timm.layers.freeze_batch_norm_2d(BatchNormAct2d(3))
    assert str(caught.value).count("\n") < 2
    assert re.search(r"\.eval\(\) and \.requires_grad_\(False\) freeze a layer", str(caught.value))
