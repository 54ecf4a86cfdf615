"""fuse() on the norms of timm and torchvision that compute BatchNorm, with or without what follows it inside."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_nets import results, shaken
from torch import Tensor, nn

import fastres.layers
from fastres.data.compat.torchvision import import_torchvision
from fastres.layers import dual, fuse, fused_sites, norm_act, unfuse

import_torchvision()
import timm.layers  # noqa: E402 (imports torchvision)
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d  # noqa: E402
from torchvision.models import resnet  # noqa: E402
from torchvision.ops import FrozenBatchNorm2d  # noqa: E402


def silent(channels: int) -> BatchNormAct2d:
    return BatchNormAct2d(channels, apply_act=False)


class Residual(nn.Module):
    """conv → norm, its result and x or the shortcut's added, relu."""

    def __init__(self, norm: Callable[[int], nn.Module], shortcut: bool = False) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), norm(4)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), norm(4)) if shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        y += self.shortcut(x)
        return torch.relu(y)


def drawn(model: nn.Module) -> nn.Module:
    """Weights and statistics that are no longer 0 or 1, of frozen norms too."""
    shaken(model)
    for module in model.modules():
        if isinstance(module, (FrozenBatchNorm2d, FrozenBatchNormAct2d)):
            for tensor in module.buffers():
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


CASES: list[tuple[str, Callable[[], nn.Module]]] = [
    ("bn+relu", lambda: nn.Sequential(nn.Conv2d(4, 4, 1), BatchNormAct2d(4))),
    ("bn+silu", lambda: nn.Sequential(nn.Conv2d(4, 4, 1), BatchNormAct2d(4, act_layer=nn.SiLU))),
    ("bn+gelu", lambda: nn.Sequential(nn.Conv2d(4, 4, 1), BatchNormAct2d(4, act_layer="gelu", inplace=False))),
    ("bn+relu", lambda: nn.Sequential(nn.Conv2d(4, 4, 1), BatchNormAct2d(4, momentum=None))),  # type: ignore[arg-type]
    ("bn+relu", lambda: nn.Sequential(nn.Conv2d(4, 4, 1), BatchNormAct2d(4, affine=False, track_running_stats=False))),
    ("bn+relu", lambda: timm.layers.ConvNormAct(4, 4)),
    ("bn+relu", lambda: nn.Sequential(nn.Conv2d(4, 4, 1), silent(4), nn.ReLU())),
    ("bn+add+relu", lambda: Residual(silent)),
    ("bn+bn+add+relu", lambda: Residual(silent, True)),
    ("bn+relu", lambda: nn.Sequential(nn.Conv2d(4, 4, 1), FrozenBatchNormAct2d(4))),
    ("bn+add+relu", lambda: Residual(FrozenBatchNorm2d)),
    ("bn+bn+add+relu", lambda: Residual(FrozenBatchNorm2d, True)),
    ("bn+bn+add+relu", lambda: Residual(lambda c: FrozenBatchNormAct2d(c, apply_act=False), True)),
]  # fmt: skip


@pytest.mark.parametrize(("form", "make"), CASES, ids=[f"{i}:{form}" for i, (form, _) in enumerate(CASES)])
def test_a_known_norm_is_fused_and_computes_the_same(form: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    plain = drawn(make())
    fused = copy.deepcopy(plain)
    keys, kinds, shown = list(fused.state_dict()), [type(module) for module in fused.modules()], repr(fused)
    sites = fused_sites(fuse(fused))
    assert [site.form for site in sites] == [form]
    assert all("BatchNorm" in type(fused.get_submodule(norm)).__name__ for norm in sites[0].norms)
    assert (list(fused.state_dict()), repr(fused)) == (keys, shown)
    for training in (True, False, True):
        x = torch.randn(2, 4, 5, 5)
        expected, ours = results(plain.train(training), x), results(fused.train(training), x)
        # PyTorch's path does the same operations in the same order.
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
    for again in (copy.deepcopy(fused), fuse(pickle.loads(pickle.dumps(fused)))):
        assert fused_sites(again) == sites
    compiled = torch.compile(copy.deepcopy(fused).eval(), fullgraph=True, backend="eager")
    # Compiled without a kernel of its own: PyTorch's operators again.
    torch.testing.assert_close(compiled(x), plain.eval()(x))
    unfuse(fused)
    assert [type(module) for module in fused.modules()] == kinds


def test_half_precision_of_a_frozen_norm_stays_as_it_was() -> None:
    """Its fp32 buffers make fp32 of bf16 activations."""
    plain = drawn(Residual(FrozenBatchNorm2d))
    fused, x = fuse(copy.deepcopy(plain)), torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected, y = plain(x), fused(x)
    assert y.dtype == expected.dtype == torch.float32
    assert torch.equal(y, expected)


def test_errors_and_hooks_are_those_of_the_norm() -> None:
    plain = BatchNormAct2d(4)
    fused = fuse(copy.deepcopy(plain))
    for x in (torch.randn(2, 4), torch.randn(1, 4, 1, 1)):
        with pytest.raises((AssertionError, ValueError)) as theirs:
            plain(x)
        with pytest.raises(theirs.type) as ours:
            fused(x)
        assert str(ours.value) == str(theirs.value)
    seen: list[int] = []
    fused.act.register_forward_hook(lambda *_: seen.append(1))
    assert fused_sites(fused) == []
    fused(torch.randn(2, 4, 3, 3))
    assert seen == [1]


def test_a_backbone_of_frozen_norms_and_one_that_timm_freezes() -> None:
    with torch.device("meta"):
        model = resnet.resnet50(norm_layer=FrozenBatchNorm2d)
    assert sum(len(site.norms) for site in fused_sites(fuse(model))) == 53
    model = drawn(timm.layers.freeze_batch_norm_2d(timm.create_model("efficientnet_lite0", num_classes=3))).eval()
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)
    # relu6 is none of the activations: what is left are additions after the last norm of a block.
    assert {site.form for site in fused_sites(fuse(model))} == {"bn+add"}
    assert torch.equal(model(x), expected)


def test_a_fused_norm_may_still_be_frozen_by_timm() -> None:
    model = drawn(nn.Sequential(BatchNormAct2d(4), nn.BatchNorm2d(4), nn.ReLU())).eval()
    x = torch.randn(2, 4, 3, 3)
    expected = model(x)
    frozen = timm.layers.freeze_batch_norm_2d(fuse(model))
    # Another expression of the same affine function, of fp32 values near 1.
    torch.testing.assert_close(frozen(x), expected, rtol=1e-5, atol=1e-5)


def test_functions_take_known_norms() -> None:
    first, second = drawn(FrozenBatchNorm2d(4)), drawn(silent(4)).eval()
    noisy: Any = drawn(BatchNormAct2d(4)).eval()
    x, z = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    assert torch.equal(dual(first, second, x, z, "relu"), torch.relu(first(x) + second(z)))  # type: ignore[arg-type]
    assert torch.equal(norm_act(noisy, x, z, "silu"), nn.functional.silu(noisy(x) + z))  # its own activation too


def test_nothing_is_imported_for_them() -> None:
    sources = Path(fastres.layers.__file__).parent.glob("*.py")
    assert not any(re.search(r"^\s*(import|from) +(timm|torchvision)", file.read_text(), re.M) for file in sources)
