"""speednet: sizes by hand, whitening against fp64, initial weights, and every option in a step that resumes exactly."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastres.errors import UserError
from fastres.models import ResNet, Speednet, build, count_parameters, layers
from fastres.models.speednet import whitening_filters
from fastres.recipe import ModelConfig, Recipe
from fastres.recipe import SpeednetConfig as Table
from fastres.training.step import Step

CPU = torch.device("cpu")


def test_airbench94_by_hand() -> None:
    network = build(Table(), 10, 32)
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    trainable = 24 + filters + 2 * 64 + 4 * 256 + 256 * 10  # the whitening's bias, BN's biases, the head
    assert count_parameters(network) == trainable == 1_971_352
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["whiten.weight", *(f"group{g}.norm{n}.weight" for g in (1, 2, 3) for n in (1, 2))]
    found = {layer.name: layer for layer in layers(network, 32)}
    assert sum(layer.parameters for layer in found.values()) == trainable
    products = (
        12 * 24 * 31**2
        + 9 * (24 * 64 * 31**2 + 64 * 64 * 15**2)
        + 9 * (64 * 256 * 15**2 + 256 * 256 * 7**2)
        + 9 * (256 * 256 * 7**2 + 256 * 256 * 3**2)
        + 2560
    )
    assert sum(layer.multiply_adds for layer in found.values()) == products
    assert [found[f"group{g}.norm1"].output[1] for g in (1, 2, 3)] == [15, 7, 3], "BN comes after the pool"


def test_airbench96_by_hand() -> None:
    network = build(Table(widths=[128, 384, 512], depth=3), 10, 32)
    filters = 9 * (24 * 128 + 2 * 128**2 + 128 * 384 + 2 * 384**2 + 384 * 512 + 2 * 512**2)
    assert count_parameters(network) == 24 + filters + 3 * (128 + 384 + 512) + 5120
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("size", [8, 28, 32, 33, 64])
@pytest.mark.parametrize("pool", [0, 1])
@pytest.mark.parametrize("depth", [2, 3])
def test_options_give_logits_of_the_right_shape(size: int, pool: int, depth: int) -> None:
    network = build(Table(widths=[4, 8], depth=depth, pool=pool), 7, size)  # type: ignore[arg-type]
    assert network(torch.randn(2, 3, size, size)).shape == (2, 7)


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    """fp64 images whose neighbouring pixels and channels are alike, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, size + 2, size + 2, generator=generator, dtype=torch.float64)
    smooth = nn.functional.avg_pool2d(noise, 3, 1)
    return smooth + smooth.mean(1, keepdim=True)


def test_whitened_patches_have_the_identity_as_their_covariance() -> None:
    seen = images(300)
    filters = whitening_filters(seen.split(70), 2, 1e-12)
    y = nn.functional.conv2d(seen, filters).permute(0, 2, 3, 1).flatten(0, 2)
    # 15,000 patches in fp64: sums of 1e4 terms near 1 with 1e-16 each; inverting eigenvalues of 1e-2 costs 1e2.
    assert torch.allclose(y[:, :12].t() @ y[:, :12] / len(y), torch.eye(12, dtype=torch.float64), atol=1e-10)
    assert torch.equal(y[:, 12:], -y[:, :12])
    # Any division into batches gives the same, but for the order of fp64 sums, which 1/√eigenvalue magnifies.
    assert torch.allclose(whitening_filters([seen], 2, 1e-12), filters, atol=1e-9)
    # Another way to the same matrix: the filters' own Gram matrix is the inverse of the patches' second moments.
    patches = nn.functional.unfold(seen, 2).permute(0, 2, 1).flatten(0, 1)
    moments = patches.t() @ patches / len(patches)
    rows = filters[:12].flatten(1)
    assert torch.allclose(rows.t() @ rows @ moments, torch.eye(12, dtype=torch.float64), atol=1e-9)


def test_directions_without_contrast_stay_small() -> None:
    """Grey images: 8 of the 12 eigenvalues are 0, and eps is what keeps their filters finite."""
    filters = whitening_filters([images(50).mean(1, keepdim=True).expand(-1, 3, -1, -1)], 2, 5e-4)
    assert filters.isfinite().all()
    # Unit eigenvectors over √(0 + eps); eigenvalues that are 0 come out as 1e-16.
    assert filters[11].norm().item() == pytest.approx(5e-4**-0.5, rel=1e-6)


def test_initialise_sets_the_frozen_filters_and_nothing_else() -> None:
    torch.manual_seed(0)
    network = build(Table(widths=[8], whiten_images=40), 10, 8)
    before = copy.deepcopy(network.state_dict())
    assert network.initial_images == 40
    network.initialise(images(40).float().split(16))
    after = network.state_dict()
    assert [name for name in after if not torch.equal(after[name], before[name])] == ["whiten.weight"]
    expected = whitening_filters(images(40).float().split(16), 2, 5e-4).float()
    assert torch.equal(after["whiten.weight"], expected)
    with pytest.raises(ValueError, match="needs images"):
        network.initialise([])


def test_a_resnet_needs_no_images() -> None:
    network = build(ModelConfig(blocks=[1], channels=[4], strides=[1], kernels=[3], skip_kernels=[1]), 10, 8)
    before = copy.deepcopy(network.state_dict())
    assert network.initial_images == 0
    network.initialise([])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_dirac_filters_pass_their_input_on() -> None:
    torch.manual_seed(0)
    speednet = build(Table(widths=[32, 16]), 10, 16)
    resnet = build(ModelConfig(blocks=[1, 1], channels=[4, 6], dirac_init=True), 10, 16)
    for network in (speednet, resnet):
        inner = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and n not in ("whiten", "conv1")}
        assert len(inner) >= 4
        for name, convolution in inner.items():
            x = torch.randn(2, convolution.in_channels, 6, 6)
            passed = min(convolution.in_channels, convolution.out_channels)
            stride = convolution.stride[0]
            # Every other product is with 0: equal to the bit.
            assert torch.equal(convolution(x)[:, :passed], x[:, :passed, ::stride, ::stride]), name
            assert convolution.weight[passed:].ne(0).all(), "the others are drawn"
    assert not torch.equal(resnet.conv1.weight[0, 0], torch.eye(3)), "the stem is drawn as always"
    plain = build(Table(widths=[8], dirac_init=False), 10, 8).get_submodule("group1")
    assert plain.conv2.weight.ne(0).all()


def test_the_norms_take_their_options() -> None:
    options: dict[str, Any] = {"bn_momentum": 0.3, "bn_eps": 1e-4, "bn_scale": False, "activation": "silu"}
    for table in (Table(widths=[8, 8], depth=3, **options), ModelConfig(blocks=[1, 1], **options)):
        norms = [m for m in build(table, 10, 16).modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            assert (norm.momentum, norm.eps) == (0.3, 1e-4)
            assert (norm.weight.requires_grad, norm.bias.requires_grad) == (False, True)
            assert norm.weight.eq(1).all()
    default = [m for m in build(Table(widths=[8]), 10, 16).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in default} == {(0.4, 1e-12)}


def test_head_and_logits() -> None:
    torch.manual_seed(0)
    assert Table(widths=[8, 32]).logit_scale == 1 / 32
    assert Table(widths=[8, 32], logit_scale=0.25).logit_scale == 0.25
    network = build(Table(widths=[8, 32], logit_scale=1.0), 10, 16).eval()
    assert network.fc.bias is None
    assert network.fc.weight.std().item() == pytest.approx(1, rel=1e-5)  # fp32 rounding of 320 weights
    # Uniform within ±1/√32 has a standard deviation of 1/√96; 320 draws know it to 4%, and 15% are four of those.
    drawn = build(Table(widths=[8, 32], unit_std_head=False), 10, 16)
    assert drawn.fc.weight.std().item() == pytest.approx(96**-0.5, rel=0.15)
    x = torch.randn(3, 3, 16, 16)
    for name in ("speednet", "resnet"):
        network = build(Table(widths=[8]) if name == "speednet" else ModelConfig(blocks=[1]), 10, 16).eval()
        network.logit_scale = 1.0
        plain = network(x)
        network.logit_scale = 0.25  # a power of two: exact
        assert torch.equal(network(x), plain / 4)


def test_a_group_of_depth_three_is_a_residual_block() -> None:
    torch.manual_seed(0)
    group = build(Table(widths=[6], depth=3, activation="relu"), 10, 12).get_submodule("group1").eval()
    x = torch.randn(2, 24, 11, 11)
    pooled = group.norm1(nn.functional.max_pool2d(group.conv1(x), 2))
    inside = nn.functional.batch_norm(
        group.conv3(group.norm2(group.conv2(pooled))), group.norm3.running_mean, group.norm3.running_var, eps=1e-12
    )
    # The same fp32 operations, but for the addition inside the fused layer: one rounding of values near 1.
    assert torch.allclose(group(x), (inside + pooled).relu(), atol=1e-6)


def test_parameters_by_group() -> None:
    network = build(Table(widths=[8, 8], bn_scale=True), 10, 16)
    groups = network.groups()
    assert {name: len(group) for name, group in groups.items()} == {
        "whiten_bias": 1, "filters": 4, "bias": 8, "head": 1
    }  # fmt: skip
    assert groups["whiten_bias"] == [network.whiten.bias]
    assert sum(p.numel() for group in groups.values() for p in group) == count_parameters(network)
    resnet = build(ModelConfig(blocks=[1]), 10, 16)
    assert {name: len(group) for name, group in resnet.groups().items()} == {"filters": 3, "bias": 6, "head": 2}


SMALL: dict[str, dict[str, Any]] = {
    "speednet": {"name": "speednet", "widths": [8, 8], "whiten_images": 20},
    "resnet": {"name": "resnet", "blocks": [1, 1], "channels": [8, 16]},
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("speednet", {}),
    ("speednet", {"depth": 3}),
    ("speednet", {"depth": 3, "activation": "silu", "bn_scale": True, "dropout": 0.2}),
    ("speednet", {"activation": "relu", "dirac_init": False, "unit_std_head": False, "pool": 2}),
    ("speednet", {"bn_eps": 1e-5, "bn_momentum": 0.1, "logit_scale": 1.0, "whiten_eps": 0.1}),
    ("resnet", {"activation": "gelu"}),
    ("resnet", {"activation": "silu", "dirac_init": True, "logit_scale": 0.3}),
    ("resnet", {"bn_scale": False, "bn_eps": 1e-4, "bn_momentum": 0.4}),
]
COMPILED = [OPTIONS[0], OPTIONS[2], OPTIONS[6]]


def step_for(kind: str, options: dict[str, Any], **train: Any) -> Step:
    recipe = Recipe.model_validate(
        {
            "model": SMALL[kind] | options,
            "optimizer": {"lr": 0.02, "momentum": 0.8, "nesterov": True},
            "schedule": {"name": "constant"},
            "train": {"compile": False} | train,
        }
    )
    torch.manual_seed(0)
    network = build(recipe.model, 10, 16)
    network.initialise(images(network.initial_images, 16).float().split(10))
    return Step(network.to(memory_format=torch.channels_last), recipe, 10, CPU)  # type: ignore[call-overload]


def batch(number: int) -> tuple[Tensor, Tensor]:
    x = images(12, 16, 100 + number).float().contiguous(memory_format=torch.channels_last)
    return x, torch.arange(12) % 10


def tensors(step: Step) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in step.network.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "options", "compiled"),
    [(*option, False) for option in OPTIONS]
    + [pytest.param(*option, True, marks=pytest.mark.slow) for option in COMPILED],
    ids=str,
)
def test_every_option_trains_and_resumes_to_the_bit(kind: str, options: dict[str, Any], compiled: bool) -> None:
    straight = step_for(kind, options, compile=compiled)
    before = tensors(straight)
    losses = [straight(number, *batch(number % 2))[0].item() for number in range(2)]
    state = copy.deepcopy(straight.state())
    losses += [straight(number, *batch(number % 2))[0].item() for number in range(2, 8)]
    assert straight.loss_and_correct.active == compiled, straight.loss_and_correct.fallback_reason
    assert min(losses[6:]) < losses[0], "it learns"
    after = tensors(straight)
    for name, parameter in straight.network.named_parameters():
        assert torch.equal(after[name], before[name]) != parameter.requires_grad, f"{name} moves if it may"
    resumed = step_for(kind, options, compile=compiled)
    with torch.no_grad():
        for parameter in resumed.network.parameters():
            parameter.fill_(7.0)  # frozen weights too come from the checkpoint
    resumed.load_state(state)
    for number in range(2, 8):
        resumed(number, *batch(number % 2))
    for name, value in tensors(resumed).items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_every_option_is_one_graph_with_the_same_gradients(kind: str, options: dict[str, Any]) -> None:
    """aot_eager runs the compiled graph's operators one by one; a break in it would be an error."""
    found = []
    for compiled in (False, True):
        network = step_for(kind, options | {"dropout": 0.0}).network.train()
        x, labels = batch(0)
        if compiled:
            network.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        found.append([loss.detach()] + [p.grad for p in network.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    for eager, compiled_one in zip(*found, strict=True):
        # fp32 in another order of sums; a BN of 12 images on small maps magnifies 1e-7 by its inverse deviation.
        assert torch.allclose(eager, compiled_one, rtol=1e-3, atol=1e-5 * max(1.0, eager.abs().max().item()))


def test_the_whole_map_is_pooled_of_images_of_any_size() -> None:
    """Multi-crop methods give views of half the size to the same network."""
    network = build(Table(widths=[4, 8, 8]), 10, 32).eval()
    assert isinstance(network, Speednet)
    maps: list[torch.Tensor] = []
    for side, left in ((32, 3), (16, 1)):
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        with network.group3.register_forward_hook(lambda *about: maps.append(about[2])):
            found = network.features(x)
        assert maps[-1].shape == (2, 8, left, left)
        assert torch.equal(found, maps[-1].amax((2, 3)))


def test_errors_name_the_cure() -> None:
    with pytest.raises(UserError, match=r"model\.widths has 5 groups.*nothing left after 4: take fewer"):
        build(Table(widths=[4] * 5), 10, 32)
    with pytest.raises(UserError, match=r"model\.pool to at most 3"):
        build(Table(pool=4), 10, 32)
    with pytest.raises(UserError, match="1,971,352 trainable parameters"):
        build(Table(max_parameters=1_900_000), 10, 32)
    assert isinstance(build(Table(), 10, 32), Speednet)
    assert isinstance(build(ModelConfig(), 10, 32), ResNet)
