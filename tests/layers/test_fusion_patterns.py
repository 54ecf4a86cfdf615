"""Which forwards fuse() rewrites, and which it leaves alone."""

import contextlib
import copy
import operator
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_nets import Forms, results, shaken
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastres.data.compat.torchvision import import_torchvision
from fastres.layers import fuse, fused_sites

import_torchvision()
import timm.layers  # noqa: E402 (imports torchvision)

FORMS: list[tuple[str, Callable[[Any, Tensor, Tensor], Tensor]]] = [
    ("bn+relu", lambda s, y, r: s.relu(y)),
    ("bn+relu", lambda s, y, r: s.relu_(y) + r),
    ("bn+relu", lambda s, y, r: F.relu(y)),
    ("bn+relu", lambda s, y, r: F.relu(y, inplace=True)),
    ("bn+relu", lambda s, y, r: torch.relu(y)),
    ("bn+relu", lambda s, y, r: torch.relu_(y)),
    ("bn+relu", lambda s, y, r: y.relu()),
    ("bn+relu", lambda s, y, r: s.identity(y).relu_()),
    ("bn+silu", lambda s, y, r: s.silu(y)),
    ("bn+silu", lambda s, y, r: F.silu(y, True)),
    ("bn+gelu", lambda s, y, r: s.gelu(y)),
    ("bn+gelu", lambda s, y, r: F.gelu(y, approximate="none")),
    ("bn+add", lambda s, y, r: s.sigmoid(y + r)),
    ("bn+add", lambda s, y, r: s.tanh_gelu(y + r)),
    ("bn+add", lambda s, y, r: (z := y + r) * F.relu(z)),
    ("bn+add+relu", lambda s, y, r: s.relu(s.identity(y) + r)),
    ("bn+add+relu", lambda s, y, r: s.relu_(s.identity(r + y))),
    ("bn+add+silu", lambda s, y, r: s.silu(torch.add(r, y))),
    ("bn+add+gelu", lambda s, y, r: F.gelu(y.add(r))),
    ("bn+add+relu", lambda s, y, r: F.relu_(y.add_(r))),
    ("bn+add+relu", lambda s, y, r: s.relu(operator.iadd(y, r))),
    ("bn+add+relu", lambda s, y, r: s.relu(operator.iadd(r, y))),
    ("bn+add+relu", lambda s, y, r: s.relu_((r * 2).add_(y))),
    ("bn+bn+add+relu", lambda s, y, r: s.relu(y + s.bn2(r))),
    ("bn+bn+add+silu", lambda s, y, r: s.silu(s.bn2(r).add_(s.identity(y)))),
    ("bn+bn+add", lambda s, y, r: s.bn2(r) + y),
    # Left alone.
    ("", lambda s, y, r: y),
    ("", lambda s, y, r: s.sigmoid(y)),
    ("", lambda s, y, r: s.tanh_gelu(y)),
    ("", lambda s, y, r: F.gelu(y, approximate="tanh")),
    ("", lambda s, y, r: F.relu6(y)),
    ("", lambda s, y, r: F.dropout(y, 0.0, s.training).relu()),
    ("", lambda s, y, r: y + y),
    ("", lambda s, y, r: y + 1),
    ("", lambda s, y, r: torch.add(y, r, alpha=2)),
    ("", lambda s, y, r: y * F.relu(y)),  # two readers
    ("", lambda s, y, r: r.add_(y) + r),  # the residual changes too
    ("", lambda s, y, r: s.bn(s.relu(y))),  # called twice
]


@pytest.mark.parametrize(("form", "after"), FORMS, ids=[f"{i}:{form}" for i, (form, _) in enumerate(FORMS)])
def test_forms(form: str, after: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    plain = shaken(Forms(after))
    fused = copy.deepcopy(plain)
    sites = fused_sites(fuse(fused))
    assert [site.form for site in sites] == ([form] if form else [])
    assert not form or type(fused) is not Forms
    for training in (True, False):
        x = torch.randn(2, 4, 3, 3)
        expected, ours = results(plain.train(training), x), results(fused.train(training), x)
        # PyTorch's path does the same operations in the same order.
        assert all(torch.equal(ours[name], expected[name]) for name in expected)


# --- What lies between the operations ---


class Between(nn.Module):
    """BN, its result and a residual added, relu; `how` names what else happens."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.bn, self.bn2 = nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu_, self.elu = nn.ReLU(inplace=True), nn.ELU(inplace=True)
        self.part, self.own = nn.Sequential(nn.ELU(inplace=True), nn.Conv2d(6, 3, 1)), Clears()

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        return getattr(self, self.how)(x, x[:, :3])

    # The residual lies in x and is overwritten after it was added.

    def by_the_base(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.bn(self.conv(x)) + r
        x.zero_()
        return F.relu(y)

    def by_another_view(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.bn(self.conv(x)) + r
        x.transpose(2, 3).flatten(0).view(-1)[:7].zero_()
        return F.relu(y)

    def by_a_part_of_a_tuple(self, x: Tensor, r: Tensor) -> Tensor:
        first, _ = x.chunk(2, 1)
        y = self.bn(self.conv(x)) + first
        x.data.fill_(3)
        return F.relu(y)

    def by_a_function_in_place(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.bn(self.conv(x)) + r
        F.elu(x, inplace=True)
        return F.relu(y)

    def by_out(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.bn(self.conv(x)) + r
        torch.neg(x, out=x)
        return F.relu(y)

    def by_a_module_in_place(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.bn(self.conv(x)) + r
        self.elu(x)
        return F.relu(y)

    def by_a_module_of_ones_own(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.bn(self.conv(x)) + r
        self.own(x)
        return F.relu(y)

    # The residual itself changes, and shows in x.

    def by_the_addition(self, x: Tensor, r: Tensor) -> Tensor:
        r += self.bn(self.conv(x))
        return F.relu(r) + x[:, :3]

    def by_the_addition_to_an_alias(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.relu_(r.view_as(r).add_(self.bn(self.conv(x))))
        return y * x.sum()

    # The input of the first BN is overwritten before the second is called.

    def before_the_second(self, x: Tensor, r: Tensor) -> Tensor:
        return F.relu(self.bn(r) + self.bn2(self.conv(x.mul_(-2))))

    def before_the_residual(self, x: Tensor, r: Tensor) -> Tensor:
        return F.relu(self.bn(r) + self.part(x))

    def by_an_operator(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.bn(r)
        x *= -2
        return F.relu(y + x[:, 3:])

    def by_an_attribute(self, x: Tensor, r: Tensor) -> Tensor:
        x.data += 1
        return F.relu(self.bn(r))

    # What belongs to the BN itself.

    def reads_statistics(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.bn(r)
        return F.relu(y + self.bn.running_mean[:, None, None])

    def writes_a_weight(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.bn(r)
        self.bn.running_var.mul_(3)
        return F.relu(y)


class Clears(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.zero_()


@pytest.mark.parametrize(
    "how", [name for name in vars(Between) if name.startswith(("by", "before", "reads", "writes"))]
)
def test_an_operand_that_changes_before_the_one_call_would_read_it(how: str) -> None:
    plain = shaken(Between(how))
    fused = fuse(copy.deepcopy(plain))
    assert fused_sites(fused) == []
    x = torch.randn(2, 6, 5, 5)
    for training in (True, False):
        with torch.no_grad():
            assert torch.equal(fused.train(training)(x), plain.train(training)(x))
        assert all(map(torch.equal, fused.buffers(), plain.buffers()))


class Harmless(Between):
    def reads_the_base(self, x: Tensor, r: Tensor) -> Tensor:
        return F.relu(self.bn(r) + self.bn2(self.conv(x)))

    def writes_to_another(self, x: Tensor, r: Tensor) -> Tensor:
        return F.relu(self.bn(r) + self.elu(self.conv(x)))

    def writes_by_an_operator(self, x: Tensor, r: Tensor) -> Tensor:
        x -= 2
        return F.relu(self.bn(self.conv(x)) + r)  # r is a view of x

    def writes_earlier(self, x: Tensor, r: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(self.elu(x))) + r)


@pytest.mark.parametrize("how", [name for name in vars(Harmless) if name.startswith(("reads", "writes"))])
def test_what_cannot_change_an_operand_is_no_obstacle(how: str) -> None:
    plain = shaken(Harmless(how))
    fused = fuse(copy.deepcopy(plain))
    assert len(fused_sites(fused)) == 1
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(fused(x), plain(x))
    assert all(map(torch.equal, fused.buffers(), plain.buffers()))


def test_an_operator_in_place_changes_the_argument() -> None:
    class Shifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x += 1
            y += F.relu(self.bn(x))
            y += self.bn2(x)
            return y

    model, x, y = fuse(Shifts()), torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    assert [site.form for site in fused_sites(model)] == ["bn+relu"]  # the caller sees the second addition
    z = model(x, y)
    assert torch.equal(x, torch.ones_like(x))
    assert torch.equal(y, z)


# --- Forwards that a graph could not replace ---


class Unusual(nn.Module):
    """BN and ReLU, and something around them that torch.fx would lose or freeze; `how` names it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.bn, self.relu = nn.BatchNorm2d(4), nn.ReLU()
        self.features: Any = None
        self.log: list[Any] = []
        self.settings = {"scale": object()}
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self, self.how)(x)
        return self.relu(self.bn(y))

    def data_dependent(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    def shape_dependent(self, x: Tensor) -> Tensor:
        return x if x.shape[0] > 1 else -x

    def python_random(self, x: Tensor) -> Tensor:
        return x * (1 if random.random() < 0.5 else -1)

    def torch_random(self, x: Tensor) -> Tensor:
        return x if torch.rand(1).item() < 0.5 else -x

    def no_grad(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    def grad_mode(self, x: Tensor) -> Tensor:
        return x if torch.is_grad_enabled() else -x

    def autocast(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x

    def keeps_a_tensor(self, x: Tensor) -> Tensor:
        self.features = x
        return x

    def keeps_tensors(self, x: Tensor) -> Tensor:
        self.log.append(x)
        return x

    def makes_a_constant(self, x: Tensor) -> Tensor:
        return x + torch.ones(1)

    def opaque_setting(self, x: Tensor) -> Tensor:
        return x if self.settings["scale"] else -x

    def checkpointed(self, x: Tensor) -> Tensor:
        return checkpoint(torch.square, x, use_reentrant=False)


@pytest.mark.parametrize("how", [name for name in vars(Unusual) if not name.startswith("_") and name != "forward"])
def test_unusual_forwards_are_left_alone_and_still_right(how: str) -> None:
    plain = shaken(Unusual(how))
    model = copy.deepcopy(plain)
    state, numbers, log, features = torch.get_rng_state(), random.getstate(), list(model.log), model.features
    fuse(model)
    assert fused_sites(model) == []
    assert type(model) is Unusual
    # Looking at the forward left no trace.
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == numbers
    assert (model.log, model.features) == (log, features)
    assert torch.equal(model.scale, plain.scale)
    for x in (torch.ones(2, 4, 3, 3), -torch.ones(1, 4, 3, 3)):
        for gradients in (True, False):
            outcomes = []
            for module in (model, plain):
                torch.manual_seed(0)
                random.seed(0)
                with torch.no_grad() if not gradients else contextlib.nullcontext():
                    outcomes.append(module(x))
            assert torch.equal(*outcomes)


class Usual(Unusual):
    """What looks unusual and is not."""

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self, self.how)(x)
        return self.relu(self.bn(y))

    def dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=self.training)

    def by_mode(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x

    def counts(self, x: Tensor) -> Tensor:
        self.scale.add_(1)
        return x * self.scale

    def asks_for_the_type(self, x: Tensor) -> Tensor:
        return x * 2 if isinstance(x, Tensor) else x[0]


@pytest.mark.parametrize("how", [name for name in vars(Usual) if not name.startswith("_") and name != "forward"])
def test_what_a_graph_can_hold_is_fused(how: str) -> None:
    plain = shaken(Usual(how))
    fused = fuse(copy.deepcopy(plain))
    assert [site.form for site in fused_sites(fused)] == ["bn+relu"]
    assert torch.equal(fused.scale, plain.scale)
    for training in (True, False, True):
        x = torch.randn(2, 4, 3, 3)
        outcomes = []
        for module in (fused, plain):
            torch.manual_seed(0)
            outcomes.append(module.train(training)(x))
        assert torch.equal(*outcomes)
        assert torch.equal(fused.scale, plain.scale)


def test_other_norms_and_modules_are_left_alone() -> None:
    class Mine(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    class WithDefault(nn.Sequential):
        def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
            y = super().forward(input)
            return y if mask is None else y * mask

    hooked = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    hooked[0].register_full_backward_hook(lambda *_: None)
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(
        nn.Sequential(Mine(4), nn.ReLU()),
        nn.Sequential(nn.SyncBatchNorm(4), nn.ReLU()).eval(),
        nn.Sequential(timm.layers.SyncBatchNormAct(4), nn.ReLU()).eval(),
        nn.Sequential(timm.layers.BatchNormAct2d(4, act_layer=nn.Tanh), nn.ReLU()),
        nn.Sequential(timm.layers.BatchNormAct2d(4, drop_layer=nn.Dropout)),
        nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU()),
        hooked,
        WithDefault(nn.BatchNorm2d(4), nn.ReLU()),
        torch.fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())),
    )
    expected = copy.deepcopy(model)
    assert fused_sites(fuse(model)) == []
    for part in (model, expected):
        part.train()[1].eval()
        part[2].eval()
        part[4].eval()
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(model(x), expected(x))
