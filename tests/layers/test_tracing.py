"""torch.fx writes a layer down as one node, whichever tracer it is; torch.jit.script refuses it in one sentence."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from fusion_nets import shaken
from torch import Tensor, fx, nn

from fastres.data.compat.torchvision import import_torchvision
from fastres.layers import (
    BatchNormAct2d,
    BatchNormAddAct2d,
    DualBatchNormAddAct2d,
    dual,
    fuse,
    fused_sites,
    norm_act,
    unfuse,
)
from fastres.layers.convolution import Conv2d

import_torchvision()
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names  # noqa: E402


class Block(nn.Module):
    """Each layer once, a forked pair, and the functions for norms that stay where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv2d(4, 4, 3)
        self.first, self.last = BatchNormAct2d(4), BatchNormAddAct2d(4, activation="silu")
        self.both = DualBatchNormAddAct2d(4, activation="gelu")
        self.bn, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.first(self.conv(x), fork=True)
        y = self.both(self.last(one, two), x)
        y = norm_act(self.bn, y, x, "relu")
        return dual(self.bn, self.bn2, y, x, "silu") + norm_act(self.bn2, y)  # type: ignore[operator]


def test_a_traced_model_computes_the_same_in_both_modes() -> None:
    torch.manual_seed(0)
    model = shaken(Block())
    for training in (True, False):
        traced = fx.symbolic_trace(copy.deepcopy(model).train(training))
        traced.graph.lint()
        calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        assert sorted(calls) == ["bn", "bn", "bn2", "bn2", "both", "conv", "first", "last"]
        for again in (traced, pickle.loads(pickle.dumps(traced))):
            for mode in (training, not training):  # the mode is the layers', not the graph's
                twin, x = copy.deepcopy(model).train(mode), torch.randn(2, 4, 5, 5)
                again.load_state_dict(model.state_dict())
                assert torch.equal(again.train(mode)(x), twin(x))
                state = again.state_dict()
                assert all(torch.equal(state[name], value) for name, value in twin.state_dict().items())


def test_features_are_extracted() -> None:
    model = shaken(nn.Sequential(Block(), nn.Conv2d(4, 2, 1))).eval()
    names, _ = get_graph_node_names(model)
    assert {"0.conv", "0.first", "0.last", "0.both", "1"} <= set(names)
    x, seen = torch.randn(2, 4, 5, 5), []
    model[0].last.register_forward_hook(lambda m, i, o: seen.append(o))
    model(x)
    found = create_feature_extractor(model, ["0.last", "1"])(x)
    assert torch.equal(found["0.last"], seen[0])
    assert torch.equal(found["1"], model(x))


def test_a_layer_with_an_activation_of_its_own_has_no_node_in_norm_act() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = BatchNormAct2d(4)

        def forward(self, x: Tensor) -> Any:
            return norm_act(self.norm, x)

    with pytest.raises(TypeError, match=r"torch\.fx cannot trace a BatchNormAct2d in norm_act or dual"):
        fx.symbolic_trace(Inner())
    assert fused_sites(fuse(Inner())) == []


def test_what_calls_norm_act_is_not_fused_again() -> None:
    model = shaken(Block()).eval()
    x = torch.randn(2, 4, 5, 5)
    expected = model(x)
    assert fused_sites(fuse(model)) == []
    assert torch.equal(model(x), expected)


def test_a_fused_model_is_traced_as_its_original() -> None:
    model = fuse(shaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))).eval()
    assert len(fused_sites(model)) == 1
    traced, x = fx.symbolic_trace(model), torch.randn(2, 3, 5, 5)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize(
    "module",
    [BatchNormAct2d(4), BatchNormAddAct2d(4), DualBatchNormAddAct2d(4), Conv2d(4, 4, 3)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripting_is_refused_in_one_sentence(module: nn.Module) -> None:
    name = type(module).__name__
    for model in (module, nn.Sequential(nn.ReLU(), module)):
        with pytest.raises(RuntimeError) as caught:
            torch.jit.script(model)
        wanted = f"torch.jit.script cannot compile {name}: use torch.jit.trace, torch.export or torch.compile"
        assert str(caught.value) == wanted


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripting_needs_a_model_unfused_and_tracing_does_not() -> None:
    model = fuse(shaken(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))).eval()
    x = torch.randn(2, 4, 5, 5)
    expected = model(x)
    with pytest.raises(RuntimeError, match=r"cannot compile Sequential: .*, or call fastres.layers.unfuse\(model\)"):
        torch.jit.script(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.jit.trace(model, x)(x), expected)
        assert torch.equal(torch.jit.trace(shaken(BatchNormAct2d(4)).eval(), x)(x), shaken(BatchNormAct2d(4)).eval()(x))
        assert torch.equal(torch.jit.script(unfuse(model))(x), expected)
