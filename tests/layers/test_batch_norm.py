"""The layers are nn.BatchNorm2d and what follows it."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.data.compat.torchvision import import_torchvision
from fastres.errors import UserError
from fastres.layers import BatchNormAct2d, BatchNormAddAct2d, DualBatchNormAddAct2d, dual, norm_act, norm_of

ACTIVATIONS: dict[str, Any] = {"none": lambda y: y, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
OPTIONS = {
    "momentum": st.sampled_from([0.1, 0.5, None]),
    "eps": st.sampled_from([1e-5, 1e-3]),
    "affine": st.booleans(),
    "track_running_stats": st.booleans(),
    "dtype": st.just(torch.float64),
}


def shake(module: nn.Module, seed: int = 1) -> None:
    """Give parameters and running statistics values that a mix-up would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for name, value in mine.items():
        # fp64 means of at most 100 numbers near 1; the counter is exact.
        torch.testing.assert_close(value, other[name], rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    options=st.fixed_dictionaries(OPTIONS),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    form=st.sampled_from(["plain", "add", "dual"]),
    modes=st.lists(st.booleans(), min_size=1, max_size=4),
    channels=st.integers(1, 5),
    side=st.integers(2, 4),
)
def test_values_gradients_and_statistics(
    options: dict[str, Any], activation: str, form: str, modes: list[bool], channels: int, side: int
) -> None:
    norms = [nn.BatchNorm2d(channels, **options) for _ in range(2 if form == "dual" else 1)]
    for seed, norm in enumerate(norms):
        shake(norm, seed)
    kind: Any = {"plain": BatchNormAct2d, "add": BatchNormAddAct2d, "dual": DualBatchNormAddAct2d}[form]
    layer = kind(channels, **options, activation=activation)
    if form == "dual":
        theirs: nn.Module = nn.ModuleDict({"main": norms[0], "skip": norms[1]})
    else:
        theirs = norms[0]
    layer.load_state_dict(theirs.state_dict(), strict=True)

    for step, training in enumerate(modes):
        layer.train(training), theirs.train(training)
        x, z = (images(3, channels, side, side, seed=2 * step + i).requires_grad_() for i in (0, 1))
        inputs = (x,) if form == "plain" else (x, z)
        expected = norms[0](x)
        if form != "plain":
            expected = expected + (norms[1](z) if form == "dual" else z)
        expected = ACTIVATIONS[activation](expected)
        y = layer(*inputs)
        # fp64, |values| up to about 10: 1e-12 is thousands of its roundings, and a millionth of fp32's.
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        gradient = images(*y.shape, seed=99)
        mine = torch.autograd.grad(y, [*inputs, *layer.parameters()], gradient)
        other = torch.autograd.grad(expected, [*inputs, *theirs.parameters()], gradient)
        for a, b in zip(mine, other, strict=True):
            # Gradients are sums of at most 48 such values, divided by a standard deviation above 0.1.
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        assert_same_state(layer, theirs)


@pytest.mark.parametrize("frozen", ["main", "skip", "both"])
def test_a_frozen_norm_in_a_dual_layer(frozen: str) -> None:
    layer = DualBatchNormAddAct2d(4, dtype=torch.float64).train()
    shake(layer)
    theirs = copy.deepcopy(layer)
    for model in (layer, theirs):
        for name, norm in model.named_children():
            if frozen in (name, "both"):
                norm.eval().requires_grad_(False)
    x, z = images(2, 4, 3, 3).requires_grad_(), images(2, 4, 3, 3, seed=1).requires_grad_()
    y = layer(x, z)
    expected = F.relu(theirs.main(x) + theirs.skip(z))
    # As above.
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert_same_state(layer, theirs)
    y.sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is None} == {
        name for name, p in layer.named_parameters() if frozen in (name.split(".")[0], "both")
    }


def test_a_frozen_layer_in_a_training_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)).train()
    model[1].eval().requires_grad_(False)
    shake(model[1])
    before = {name: value.clone() for name, value in model[1].state_dict().items()}
    theirs = nn.BatchNorm2d(4).eval()
    theirs.load_state_dict(before)
    x = torch.randn(2, 3, 4, 4)
    y = model(x)
    # The same operations on the same numbers.
    assert torch.equal(y, F.relu(theirs(model[0](x))))
    y.sum().backward()
    assert model[1].weight.grad is None
    assert model[0].weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in model[1].state_dict().items())


@pytest.mark.parametrize("form", ["plain", "add", "dual"])
def test_fork_gives_both_readers_the_output_and_adds_their_gradients(form: str) -> None:
    kind: Any = {"plain": BatchNormAct2d, "add": BatchNormAddAct2d, "dual": DualBatchNormAddAct2d}[form]
    layer = kind(3, dtype=torch.float64).train()
    shake(layer)
    inputs = [images(2, 3, 4, 4, seed=i).requires_grad_() for i in range(1 if form == "plain" else 2)]
    first, second = layer(*inputs, fork=True)
    y = layer(*inputs)
    assert torch.equal(first, second)
    assert torch.equal(first, y)
    a, b = images(2, 3, 4, 4, seed=5), images(2, 3, 4, 4, seed=6)
    everything = [*inputs, *layer.parameters()]
    forked = torch.autograd.grad([first, second], everything, [a, b])
    single = torch.autograd.grad(y, everything, a + b)
    for mine, other in zip(forked, single, strict=True):
        # fp64 sums of 32 numbers near 1, in another order.
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_norm_of_reads_what_the_forward_would_use() -> None:
    norm = nn.BatchNorm2d(3)
    values, of_batch = norm_of(norm)
    assert of_batch
    assert values.running_mean is norm.running_mean
    assert values.num_batches_tracked is norm.num_batches_tracked
    values, of_batch = norm_of(norm.eval())
    assert not of_batch
    assert values.weight is norm.weight
    assert values.num_batches_tracked is None
    values, of_batch = norm_of(nn.BatchNorm2d(3, track_running_stats=False).eval())
    assert of_batch
    assert values.running_mean is values.running_var is None
    cumulative = nn.BatchNorm2d(3, momentum=None)
    cumulative.num_batches_tracked.fill_(3)
    assert norm_of(cumulative)[0].momentum == 0.25
    assert cumulative.num_batches_tracked == 3
    # A layer that keeps statistics and was told not to move them.
    norm = nn.BatchNorm2d(3)
    norm.track_running_stats = False
    assert norm_of(norm)[0].running_mean is None
    assert norm_of(norm.eval())[0].running_mean is norm.running_mean


@pytest.mark.parametrize("residual", [torch.ones(2, 1, 1, 1), torch.ones(2, 4, 3, 3, dtype=torch.float64), 2.0])
def test_a_residual_that_broadcasts_or_promotes(residual: Any) -> None:
    norm = nn.BatchNorm2d(4).eval()
    x = torch.randn(2, 4, 3, 3)
    expected = F.relu(norm(x) + residual)
    y = norm_act(norm, x, residual, "relu")
    assert isinstance(y, Tensor)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    if isinstance(residual, Tensor) and residual.shape == x.shape:
        other = nn.BatchNorm2d(4, dtype=residual.dtype).eval()
        assert torch.equal(dual(norm, other, x, residual), norm(x) + other(residual))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["plain", "add", "dual"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 4), (2, 3)])
def test_errors_are_those_of_batch_norm(form: str, shape: tuple[int, ...]) -> None:
    kind: Any = {"plain": BatchNormAct2d, "add": BatchNormAddAct2d, "dual": DualBatchNormAddAct2d}[form]
    x = torch.zeros(shape)
    with pytest.raises(ValueError) as theirs:
        nn.BatchNorm2d(3)(x)
    with pytest.raises(ValueError) as ours:
        kind(3)(*([x] if form == "plain" else [x, x]))
    assert str(ours.value) == str(theirs.value)


def test_names_are_checked() -> None:
    for kind in (BatchNormAct2d, BatchNormAddAct2d, DualBatchNormAddAct2d):
        with pytest.raises(UserError, match="activation 'tanh' is unknown: choose one of none, relu"):
            kind(3, activation="tanh")
        with pytest.raises(UserError, match="backend 'cuda' is unknown"):
            kind(3, backend="cuda")


def test_attributes_and_checkpoints_are_those_of_batch_norm() -> None:
    norm, layer = nn.BatchNorm2d(3, 1e-3, 0.2), BatchNormAddAct2d(3, 1e-3, 0.2, activation="silu")
    assert isinstance(layer, nn.BatchNorm2d)
    names = ("num_features", "eps", "momentum", "affine", "track_running_stats", "training")
    assert all(getattr(layer, name) == getattr(norm, name) for name in names)
    assert repr(layer) == repr(norm).replace("BatchNorm2d", "BatchNormAddAct2d")[:-1] + ", activation=silu)"
    shake(norm)
    file = io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    layer.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same_state(layer, norm)
    shake(layer, 2)
    norm.load_state_dict(layer.state_dict(), strict=True)
    assert_same_state(layer, norm)
    old = norm.state_dict()  # as a checkpoint from before the counter
    del old["num_batches_tracked"], old._metadata  # type: ignore[attr-defined]
    layer.load_state_dict(old, strict=True)


def test_copies_pickles_and_casts() -> None:
    model = nn.Sequential(BatchNormAct2d(3, activation="gelu"), nn.Conv2d(3, 3, 1))
    x = torch.randn(2, 3, 4, 4)
    expected = model.eval()(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), expected)
        again.train()(x)
        assert again[0].num_batches_tracked == 1
        assert model[0].num_batches_tracked == 0
    # fp64 of the same fp32 numbers: the difference is fp32's rounding of values near 1.
    torch.testing.assert_close(model.double()(x.double()).float(), expected, rtol=1e-5, atol=1e-5)
    assert model[0].running_mean.dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_graph_break(training: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = BatchNormAct2d(3, dtype=torch.float64)
            self.last = BatchNormAddAct2d(3, activation="silu", dtype=torch.float64)
            self.both = DualBatchNormAddAct2d(3, activation="gelu", dtype=torch.float64)
            self.broadcasts = BatchNormAddAct2d(3, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.first(x, fork=True)
            return self.broadcasts(self.both(self.last(one, two), x), x[:, :, :1])

    model = Block().train(training)
    shake(model)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = images(2, 3, 4, 4)
    for _ in range(2):
        # fp64 in another order of operations; values near 1.
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)
    compiled(x).square().sum().backward()
    model(x).square().sum().backward()
    for mine, other in zip(twin.parameters(), model.parameters(), strict=True):
        # Sums of at most 96 such values.
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-9)
    assert_same_state(twin, model)
    assert model.first.num_batches_tracked == (3 if training else 0)


@pytest.mark.parametrize("kind", [BatchNormAct2d, BatchNormAddAct2d, DualBatchNormAddAct2d])
def test_the_conversion_to_sync_batch_norm_refuses_and_changes_nothing(kind: Any) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(3)), kind(3), nn.BatchNorm2d(3))
    before = list(model.modules())
    for part in (model, model[2]):
        with pytest.raises(RuntimeError, match=rf"{kind.__name__} .*no synchronised form yet: build .*nn.BatchNorm2d"):
            nn.SyncBatchNorm.convert_sync_batchnorm(part)
    assert [id(m) for m in model.modules()] == [id(m) for m in before]
    import_torchvision()
    import timm.layers

    # timm's own function goes layer by layer: the refusal comes when it meets ours.
    with pytest.raises(RuntimeError, match=f"{kind.__name__} .*no synchronised form yet"):
        timm.layers.convert_sync_batchnorm(model)


def test_the_conversion_still_converts_others() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    weight = model[1].weight
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model, None)
    assert [type(m) for m in converted.modules()] == [
        nn.Sequential, nn.Conv2d, nn.SyncBatchNorm, nn.Sequential, nn.SyncBatchNorm
    ]  # fmt: skip
    assert converted[1].weight is weight
    assert nn.SyncBatchNorm.convert_sync_batchnorm.__doc__
