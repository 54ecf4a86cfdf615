"""Networks of every family under torch.fx: traced, their features extracted, quantised."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import fx, nn

from fastres.data.compat.torchvision import import_torchvision
from fastres.models import Network, build
from fastres.recipe import ModelConfig, SpeednetConfig

import_torchvision()
from torchvision.models.feature_extraction import create_feature_extractor  # noqa: E402

LISTS: Any = {"blocks": [2, 1], "channels": [8, 16], "strides": [1, 2], "kernels": [3, 3], "skip_kernels": [1, 1]}
TABLES = {
    "resnet": ModelConfig(**LISTS, dropout=0.5, logit_scale=0.5),
    "imagenet": ModelConfig(**LISTS, stem="imagenet", activation="silu"),
    "speednet": SpeednetConfig(widths=[8, 16]),
    "deep speednet": SpeednetConfig(widths=[8], depth=3),
}


@pytest.fixture(params=TABLES)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    model = build(TABLES[request.param], 10, 16)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


def seeded(model: nn.Module, x: torch.Tensor) -> Any:
    torch.manual_seed(1)  # dropout
    return model(x)


def test_a_traced_network_computes_the_same_in_both_modes(network: Network) -> None:
    traced, x = fx.symbolic_trace(copy.deepcopy(network)), torch.randn(4, 3, 16, 16)
    for training in (True, False):
        assert torch.equal(seeded(traced.train(training), x), seeded(network.train(training), x))
        state = traced.state_dict()
        assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_features_are_extracted(network: Network) -> None:
    x, seen = torch.randn(4, 3, 16, 16), []
    network.eval().dropout.register_forward_hook(lambda m, i, o: seen.append(o))
    logits = network(x)
    found = create_feature_extractor(network, ["dropout", "fc"])(x)
    assert torch.equal(found["dropout"], seen[0])
    assert torch.equal(found["fc"].float() * network.logit_scale, logits)


def test_a_quantised_network_is_close(network: Network) -> None:
    """int8 for the classifier; convolutions and norms of fastres stay in fp32."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    x = torch.randn(4, 3, 16, 16)
    logits = network.eval()(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces another home for it
        prepared = prepare_fx(copy.deepcopy(network), get_default_qconfig_mapping(), (x,))
        assert torch.equal(prepared(x), logits)
        quantised = convert_fx(prepared)(x)
    # 7 bits of the features and 8 of the weights, in sums of at most 16 products, some of which cancel: a few percent.
    assert (quantised - logits).abs().max() < 0.15 * logits.abs().max()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripting_is_refused_in_one_sentence(network: Network) -> None:
    wanted = f"torch.jit.script cannot compile {type(network).__name__}: use torch.jit.trace, torch.export or"
    with pytest.raises(RuntimeError, match=wanted):
        torch.jit.script(network)
