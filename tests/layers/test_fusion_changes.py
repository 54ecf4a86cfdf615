"""A fused model that is frozen, hooked, changed or converted afterwards behaves as the original would."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fusion_nets import shaken, small_timm
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from fastres.data.compat.torchvision import import_torchvision
from fastres.layers import fuse, fused_sites, unfuse

import_torchvision()
import timm.layers  # noqa: E402 (imports torchvision)
import timm.models.resnet  # noqa: E402


def test_frozen_parts() -> None:
    plain = shaken(small_timm()).train()
    fused = fuse(copy.deepcopy(plain))
    for model in (plain, fused):
        for module in (model.layer1, model.layer2[0].downsample, model.layer3[0].bn2):
            module.eval().requires_grad_(False)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(fused(x), plain(x))
    fused(x).sum().backward()
    without = {name for name, p in fused.named_parameters() if p.grad is None}
    assert without == {name for name, p in fused.named_parameters() if not p.requires_grad}
    plain(x)
    for (name, mine), other in zip(fused.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("late", [False, True])
def test_hooks_run_as_before(late: bool) -> None:
    def hook(model: nn.Module) -> list[str]:
        seen: list[str] = []
        modules = dict(model.named_modules())
        for name in [
            "",
            "layer1",
            "layer1.0",
            "layer2.0.conv1",
            "layer3.0.bn1",
            "layer3.0.act2",
            "layer4.0.downsample",
        ]:
            modules[name].register_forward_hook(lambda m, i, o, name=name: seen.append(name))
            modules[name].register_forward_pre_hook(lambda m, i, name=name: seen.append(f"before {name}"))
        modules["layer2.0"].register_full_backward_hook(lambda m, i, o: seen.append("backward"))
        return seen

    plain, fused = small_timm(), small_timm()
    expected = hook(plain)
    if late:
        fuse(fused)
        seen = hook(fused)
    else:
        seen = hook(fused)
        fuse(fused)
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, fused):
        model(x).sum().backward()
    assert len(expected) == 2 * 7 + 1
    assert seen == expected
    forms: dict[str, list[str]] = {"layer2.0": [], "layer3.0": [], "layer4.0": []}
    for site in fused_sites(fused):
        forms.setdefault(site.module, []).append(site.form)
    assert forms["layer2.0"] == ["bn+relu", "bn+bn+add+relu"]
    # A hook that was there is kept out of the one call; one that comes later silences the whole block.
    assert forms["layer3.0"] == ([] if late else ["bn+bn+add"])
    assert forms["layer4.0"] == ([] if late else ["bn+relu", "bn+add+relu"])


def replace_norm(block: Any) -> None:
    block.bn1 = nn.GroupNorm(2, 8)


def parametrize_norm(block: Any) -> None:
    nn.utils.parametrize.register_parametrization(block.bn1, "weight", nn.Tanh())


def replace_activation(block: Any) -> None:
    block.act2 = nn.Sigmoid()


def give_a_forward(block: Any) -> None:
    block.bn2.forward = lambda x: x * 3


def drop_the_skip(block: Any) -> None:
    block.downsample = None


def lengthen_the_skip(block: Any) -> None:
    block.downsample.append(nn.Sigmoid())


def add_attention(block: Any) -> None:
    block.se = nn.Sigmoid()


@pytest.mark.parametrize(
    "change",
    [
        replace_norm, parametrize_norm, replace_activation, give_a_forward, drop_the_skip, lengthen_the_skip,
        add_attention,
    ],
)  # fmt: skip
def test_a_block_that_changes_after_fusing(change: Callable[[Any], None]) -> None:
    torch.manual_seed(0)
    plain = shaken(timm.models.resnet.BasicBlock(8, 8, downsample=nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))))
    fused = fuse(copy.deepcopy(plain))
    assert len(fused_sites(fused)) == 2
    x = torch.randn(2, 8, 4, 4)
    before = plain(x)
    for block in (plain, fused):
        torch.manual_seed(1)
        change(block)
    expected = plain(x)
    assert not torch.equal(expected, before)
    assert torch.equal(fused(x), expected)
    assert fused_sites(fused) == []


def test_checkpointing_switched_on_afterwards_is_obeyed() -> None:
    model = fuse(small_timm()).train()
    x = torch.randn(2, 3, 64, 64)
    model(x)
    calls: list[int] = []
    model.layer2[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model(x).sum().backward()
    assert len(calls) == 2  # forward, and again in the backward
    # On from the start: the stem stays as it is, the blocks below it are fused.
    model = small_timm()
    model.set_grad_checkpointing()
    assert {site.module.split(".")[0] for site in fused_sites(fuse(model))} == {
        "conv1", "layer1", "layer2", "layer3", "layer4"
    }  # fmt: skip


def test_an_argument_that_is_no_tensor_takes_the_original_way() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
            return F.relu(self.bn(x)) if skip is None else F.relu(self.bn(x) + skip)

    plain = shaken(Optional()).eval()
    fused = fuse(copy.deepcopy(plain))
    assert [site.form for site in fused_sites(fused)] == ["bn+add+relu"]
    x = torch.randn(2, 4, 3, 3)
    for skip in (x, None):
        assert torch.equal(fused(x, skip=skip), plain(x, skip))


@pytest.mark.parametrize("kind", ["pre", "forward", "backward pre", "backward"])
def test_hooks_of_all_modules_see_every_call(kind: str) -> None:
    register = {
        "pre": nn.modules.module.register_module_forward_pre_hook,
        "forward": nn.modules.module.register_module_forward_hook,
        "backward pre": nn.modules.module.register_module_full_backward_pre_hook,
        "backward": nn.modules.module.register_module_full_backward_hook,
    }[kind]
    seen: list[str] = []
    calls = []
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(4), nn.SiLU()))
    for model in (plain, fuse(copy.deepcopy(plain))):
        seen.clear()
        handle = register(lambda module, *_: seen.append(type(module).__name__))
        try:
            assert fused_sites(model) == []
            model(x).sum().backward()
        finally:
            handle.remove()
        calls.append(list(seen))
    assert len(fused_sites(model)) == 2
    assert calls[0] == calls[1]
    assert len(calls[0]) == 7


def test_a_shallow_copy_is_fused_and_shares_everything() -> None:
    model = fuse(shaken(small_timm())).eval()
    twin, x = copy.copy(model.layer2[0]), torch.randn(2, 16, 16, 16)
    assert type(twin) is type(model.layer2[0])
    assert len(fused_sites(twin)) == len(fused_sites(model.layer2[0])) == 2
    assert twin.bn1 is model.layer2[0].bn1
    assert torch.equal(twin(x), model.layer2[0](x))
    assert fused_sites(unfuse(twin)) == []


def test_fake_tensors() -> None:
    with FakeTensorMode():
        model = small_timm()
        sites = fused_sites(fuse(model))
        y = model(torch.randn(2, 3, 64, 64))
        y.sum().backward()
    assert len(sites) == 11
    assert y.shape == (2, 7)
    assert all(p.grad is not None for p in model.parameters())
    state = torch.get_rng_state()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fuse(small_timm())
    assert torch.equal(torch.get_rng_state(), state)


# --- Sharded by FSDP, in one process ---


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded(model: nn.Module) -> Any:
    mesh = init_device_mesh("cpu", (1,))
    for block in (model.layer1[0], model.layer2[0], model.layer3):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("first", ["fuse", "shard"])
def test_a_sharded_model_keeps_its_sites_and_bits(first: str) -> None:
    plain = shaken(small_timm()).train()
    fused = copy.deepcopy(plain)
    expected = fused_sites(fuse(copy.deepcopy(plain)))
    kinds = [type(module).__name__ for module in sharded(plain).modules()]
    fused = sharded(fuse(fused)) if first == "fuse" else fuse(sharded(fused))
    assert fused_sites(fused) == expected
    assert fused_sites(fuse(fused)) == expected
    assert isinstance(fused, FSDPModule) and isinstance(fused.layer2[0], FSDPModule)
    for _ in range(3):
        x = torch.randn(2, 3, 64, 64)
        losses = []
        for model in (plain, fused):
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
        assert torch.equal(*losses)
    for mine, other in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(*(t.full_tensor() if isinstance(t, DTensor) else t for t in (mine, other)))
    assert len(fused.layer3[:1]) == 1  # a slice makes an nn.Sequential of the class that it finds
    with pytest.raises(AssertionError, match="does not support deepcopy"):
        copy.deepcopy(fused)
    assert fused_sites(fused) == expected
    assert [type(module).__name__ for module in unfuse(fused).modules()] == kinds
    assert fused_sites(fused) == []
    assert isinstance(fused, FSDPModule)
    assert torch.equal(fused.eval()(x), plain.eval()(x))


def test_conversion_to_sync_batch_norm_refuses_and_changes_nothing() -> None:
    model = fuse(nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())))
    before = list(model.modules())
    for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, lambda m: timm.layers.convert_sync_batchnorm(m[1])):
        with pytest.raises(RuntimeError, match=r"Sequential .*no synchronised form yet: call fastres.layers.unfuse"):
            convert(model)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(unfuse(model))
    assert isinstance(converted[1][0], nn.SyncBatchNorm)
    assert fused_sites(fuse(converted)) == []
