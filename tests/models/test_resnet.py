"""Networks: the report's sizes, torchvision's names and numbers, the options' shapes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fastres.data.compat.torchvision import import_torchvision
from fastres.errors import UserError
from fastres.layers import fuse, fused_sites
from fastres.models import ResNet, build, count_parameters, layers
from fastres.recipe import ModelConfig


@pytest.mark.parametrize(
    ("blocks", "channels", "parameters"),
    [
        ([2, 2, 2, 2], [64, 128, 256, 512], 11_173_962),
        ([1, 1, 1, 1], [64, 128, 256, 512], 4_903_242),
        ([2, 2, 2, 2], [32, 64, 128, 256], 2_797_610),
        ([2, 1, 1, 1], [32, 64, 128, 256], 1_247_530),
        ([3, 4, 6, 3], [64, 128, 256, 512], 21_282_122),
    ],
)
def test_the_reports_networks_have_their_parameters(blocks: list[int], channels: list[int], parameters: int) -> None:
    network = build(ModelConfig(blocks=blocks, channels=channels), 10, 32)
    assert count_parameters(network) == parameters
    assert sum(layer.parameters for layer in layers(network, 32)) == parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_torchvisions_state_dict_loads_strictly_and_gives_its_logits(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(import_torchvision().models, name)().eval()
    ours = build(ModelConfig(preset=f"{name}-imagenet"), 1000, 64).eval()  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        # The same operations in the same order: equal to the bit, so no tolerance.
        assert torch.equal(ours(images), theirs(images))


def train_once(network: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Logits, gradients and buffers of one training pass; with `dtype` under autocast."""
    network.train().zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits = network(images)
    logits.square().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"logits": logits.detach().clone(), **gradients, **{name: b.clone() for name, b in network.named_buffers()}}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_trains_like_torchvisions_unfused_one(dtype: torch.dtype | None, compiled: bool) -> None:
    """Fused layers and forked skips against separate layers: as near to fp64 as those are."""
    torch.manual_seed(0)
    theirs = import_torchvision().models.resnet18(num_classes=10)
    ours = build(ModelConfig(preset="resnet18-imagenet"), 10, 64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert fused_sites(fuse(ours)) == [], "there is nothing left to fuse"
    exact = copy.deepcopy(theirs).double()
    for network in (ours, theirs, exact):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    reference, usual = train_once(exact, images.double()), train_once(theirs, images, dtype)
    if compiled:
        # aot_eager runs the compiled graph's operators one by one: the graph is what differs, and it takes seconds.
        ours.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    found = train_once(ours, images, dtype)
    assert found.keys() == reference.keys()
    for name, expected in reference.items():
        scale = expected.double().norm()
        error, unfused = ((each[name].double() - expected).norm() / scale for each in (found, usual))
        # Twice the error of the separate layers, and two roundings of fp32 where those happen to be exact.
        assert error <= 2 * unfused + 2 * 1.2e-7, name


def test_initial_weights_follow_kaiming_fan_out() -> None:
    torch.manual_seed(0)
    network = build(ModelConfig(), 10, 32)
    weight = network.get_submodule("layer4")[1].conv1.weight
    expected = (2 / (512 * 9)) ** 0.5
    # 2.4 million draws: the standard error of their standard deviation is 0.05%; 1% is twenty of those.
    assert weight.std().item() == pytest.approx(expected, rel=0.01)
    assert network.bn1.weight.eq(1).all()
    assert network.bn1.bias.eq(0).all()


def test_zero_init_makes_blocks_start_as_their_skip() -> None:
    network = build(ModelConfig(zero_init_residual=True), 10, 32).eval()
    block = network.get_submodule("layer1")[0]
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(block(x), x.relu())


def test_a_uniform_stride_of_three() -> None:
    """The report's text: 32 → 11 → 4 → 2 → 1."""
    network = build(ModelConfig(strides=[3, 3, 3, 3]), 10, 32)
    shapes = {layer.name: layer.output for layer in layers(network, 32)}
    assert [shapes[f"layer{stage}.0.bn2"][1] for stage in (1, 2, 3, 4)] == [11, 4, 2, 1]
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("size", [28, 32, 33, 64])
@pytest.mark.parametrize("pool", [0, 2, 3])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_options_give_logits_of_the_right_shape(size: int, pool: int, stem: str) -> None:
    model = ModelConfig(
        blocks=[1, 2, 1],
        channels=[8, 12, 16],
        strides=[1, 2, 1],
        kernels=[3, 5, 1],
        skip_kernels=[1, 3, 1],
        pool=pool,
        stem=stem,  # type: ignore[arg-type]
        dropout=0.5,
    )
    network = build(model, 7, size)
    assert network(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_multiply_adds_against_a_hand_count() -> None:
    network = ResNet([1], [4], [2], [3], [1], classes=5, image_size=8)
    # Stem: 3·4·9·64. Block: 4·4·9·16 twice, skip 4·4·16. Classifier: 4·5.
    expected = 3 * 4 * 9 * 64 + 2 * 4 * 4 * 9 * 16 + 4 * 4 * 16 + 4 * 5
    assert sum(layer.multiply_adds for layer in layers(network, 8)) == expected


def test_layers_leave_the_network_alone() -> None:
    network = build(ModelConfig(), 10, 32)
    layers(network, 32)
    assert network.training
    assert not network._forward_hooks
    assert next(network.parameters()).device.type == "cpu"


def test_errors_name_the_cure() -> None:
    with pytest.raises(UserError, match=r"model\.pool to at most 4"):
        build(ModelConfig(pool=5), 10, 32)
    with pytest.raises(UserError, match="11,173,962 trainable parameters"):
        build(ModelConfig(max_parameters=5_000_000), 10, 32)
