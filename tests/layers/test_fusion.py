"""fuse() changes how a model computes, and nothing that can be seen from outside but the number of calls."""

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from fusion_nets import Forms, assert_close_to_fp64, results, shaken, small_timm
from torch import nn

from fastres.data.compat.torchvision import import_torchvision
from fastres.layers import fuse, fused_sites, unfuse

import_torchvision()
import timm  # noqa: E402 (imports torchvision)
import timm.layers  # noqa: E402
from torchvision.models import resnet  # noqa: E402

# --- What is found ---


@pytest.mark.parametrize(
    ("make", "relu", "add", "dual"),
    [
        # One relu a stem and one, or two in a bottleneck, a block. A stage's first block has the dual form where its
        # shape changes: not in stage 1 of basic blocks.
        (resnet.resnet18, 1 + 8, 5, 3),
        (resnet.resnet34, 1 + 16, 13, 3),
        (resnet.resnet50, 1 + 2 * 16, 12, 4),
        (resnet.wide_resnet50_2, 1 + 2 * 16, 12, 4),
        (resnet.resnext50_32x4d, 1 + 2 * 16, 12, 4),
        (lambda: timm.create_model("resnet18"), 1 + 8, 5, 3),
        (lambda: timm.create_model("resnet50"), 1 + 2 * 16, 12, 4),
        (lambda: timm.create_model("resnet18d"), 3 + 8, 5, 3),
    ],
)
def test_every_site_of_a_resnet_is_found(make: Callable[[], nn.Module], relu: int, add: int, dual: int) -> None:
    with torch.device("meta"):
        model = make()
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    sites = fused_sites(fuse(model))
    assert Counter(site.form for site in sites) == {"bn+relu": relu, "bn+add+relu": add, "bn+bn+add+relu": dual}
    found = [norm for site in sites for norm in site.norms]
    assert sorted(found) == sorted(norms)  # each once


def test_the_report_can_be_printed() -> None:
    with torch.device("meta"):
        sites = [str(site) for site in fused_sites(fuse(resnet.resnet18()))]
    assert sites[0] == "(model): bn+relu (bn1)"
    assert "layer2.0: bn+bn+add+relu (layer2.0.bn2, layer2.0.downsample.1)" in sites
    assert "layer4.1: bn+add+relu (layer4.1.bn2)" in sites


# --- Same numbers ---


@pytest.mark.parametrize(
    ("make", "autocast"),
    [
        (resnet.resnet18, False),
        (lambda: timm.create_model("resnet18"), True),
        (small_timm, False),
        (small_timm, True),
    ],
    ids=["torchvision-fp32", "timm-bf16", "small-fp32", "small-bf16"],
)
def test_outputs_and_gradients_are_as_close_to_fp64_as_unfused(make: Callable[[], nn.Module], autocast: bool) -> None:
    torch.manual_seed(0)
    plain = shaken(make()).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fused, exact = fuse(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    x = torch.randn(2, 3, 64, 64)
    ours, theirs, truth = results(fused, x, autocast), results(plain, x, autocast), results(exact, x.double())
    assert list(ours) == list(truth)
    assert_close_to_fp64(ours, theirs, truth)
    assert torch.equal(fused.eval()(x), plain.eval()(x))


def test_parameters_names_and_modules_stay_and_unfuse_gives_everything_back() -> None:
    model = shaken(small_timm()).eval()
    x = torch.randn(2, 3, 64, 64)
    tensors = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    modules = {name: id(module) for name, module in model.named_modules()}
    kinds, shown, expected = [type(m) for m in model.modules()], repr(model), model(x)
    assert fuse(model) is model
    sites = fused_sites(model)
    assert len(sites) == 3 + 4 + 4
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == tensors
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert all(isinstance(module, kind) for module, kind in zip(model.modules(), kinds, strict=True))
    assert repr(model) == shown
    once = [type(m) for m in model.modules()]
    assert fused_sites(fuse(model)) == sites
    assert [type(m) for m in model.modules()] == once
    assert unfuse(model) is model
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(x), expected)
    assert fused_sites(model) == fused_sites(unfuse(model)) == []


def test_nothing_to_fuse() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    kinds = [type(m) for m in model.modules()]
    assert fused_sites(fuse(model)) == []
    assert [type(m) for m in model.modules()] == kinds


def test_checkpoints_both_ways() -> None:
    plain, fused = shaken(small_timm()), fuse(small_timm())
    x = torch.randn(2, 3, 64, 64)
    for source, target in ((plain, fused), (fuse(shaken(small_timm())), small_timm())):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert torch.equal(target.eval()(x), source.eval()(x))


def test_copies_and_pickles() -> None:
    model = fuse(shaken(small_timm()))
    sites, x = fused_sites(model), torch.randn(2, 3, 64, 64)
    before = model.eval()(x)
    twin = copy.deepcopy(model)
    assert fused_sites(twin) == sites
    twin.train()(x).sum().backward()
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model(x), before)
    assert not torch.equal(twin.eval()(x), before)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert fused_sites(again) == []  # a pickle is of the original classes
        assert torch.equal(again(x), before)
        assert fused_sites(fuse(again)) == sites
    assert fused_sites(model) == sites


def test_compiles_without_a_graph_break() -> None:
    model = fuse(shaken(resnet.resnet18()))
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for training in (True, False):
        model.train(training)
        expected = unfuse(copy.deepcopy(model)).double()(x.double())
        y = compiled(x)
        # fp32 through 17 norms, each of which may amplify a relative error several times, from 6e-8; a wrong layer is
        # wrong by the values themselves, about 1.
        assert (y - expected).abs().max() < 1e-3 * expected.abs().max()
    y.sum().backward()
    explained = torch._dynamo.explain(model)(x)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_inductor_computes_the_same() -> None:
    torch.manual_seed(0)
    plain = shaken(Forms(lambda s, y, r: s.silu(s.relu(y) + s.bn2(r))))
    fused = fuse(copy.deepcopy(plain))
    assert len(fused_sites(fused)) == 2
    compiled = torch.compile(fused, fullgraph=True)
    x = torch.randn(2, 4, 3, 3)
    assert_close_to_fp64(results(compiled, x), results(plain, x), results(copy.deepcopy(plain).double(), x.double()))


def test_blocks_that_are_alike_share_what_the_compiler_made() -> None:
    with torch.device("meta"):
        model = fuse(resnet.resnet50())
    kinds = {type(block) for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage}
    assert len(kinds) == 2  # with and without downsample; torch.compile gives up after 8
