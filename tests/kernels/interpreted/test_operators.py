"""The kernels as PyTorch operators: opcheck, and torch.compile without a graph break, with the bits of eager."""

import copy
from typing import Any

import pytest
import torch
from norm_cases import DEVICE, SECONDS, Case, by_kernels, call, channels_last, clone, draw, plan_of
from torch import Tensor, nn

from fastres.data.compat.torchvision import import_torchvision
from fastres.kernels import Norm, batch_norm_act, dual_batch_norm_act
from fastres.kernels.batch_norm import launch, ops
from fastres.layers import dual, norm_act

SHAPE = (2, 16, 3, 3)


def forward_arguments(second: str, activation: str, training: bool, keep: bool) -> tuple[Any, ...]:
    inputs = draw(Case(second, activation, shape=SHAPE))
    z_norm = inputs.z_norm or Norm(None, None, None, None)
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    terms = [getattr(norm, name) for norm in (inputs.x_norm, z_norm) for name in names]
    return inputs.x, inputs.second, *terms, [0.1, 0.2], [1e-5, 1e-3], second, training, activation, keep


@pytest.mark.parametrize(
    ("second", "activation", "training", "keep"),
    [
        ("none", "relu", True, True),
        ("none", "none", False, False),
        ("add", "relu", True, True),
        ("add", "relu", False, True),
        ("add", "gelu", True, False),
        ("dual", "silu", True, True),
        ("dual", "relu", False, True),
    ],
)
def test_opcheck(second: str, activation: str, training: bool, keep: bool) -> None:
    """Schema, fake implementation, autograd registration and AOT dispatch, of both operators."""
    arguments = forward_arguments(second, activation, training, keep)
    torch.library.opcheck(torch.ops.fastres.batch_norm_act_forward, arguments)
    x, other, *terms = arguments[:12]
    _, statistics, bits = ops._forward(*arguments)
    weights = [*terms[:2], *([None, None] if training else terms[2:4])]
    weights += [*terms[5:7], *([None, None] if training else terms[7:9])]
    by_bits = bits if bits.numel() else None
    dy, dy2 = (draw(Case(shape=SHAPE), seed).dy for seed in (1, 2))
    added = second != "none"
    for needs, again in (([True, added, True], dy2), ([True, False, False], None), ([not added, added, False], dy2)):
        given = (dy, again, x, other, by_bits, statistics, *weights, [1e-5, 1e-3], second, training, activation, needs)
        torch.library.opcheck(torch.ops.fastres.batch_norm_act_backward, given)


@pytest.mark.parametrize("second", SECONDS)
def test_fake_results_have_the_shapes_of_real_ones(second: str) -> None:
    """Of an input that is not channels-last too: the operator answers in channels-last."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for activation, training, keep in (("relu", True, True), ("silu", False, True), ("relu", True, False)):
        arguments = list(forward_arguments(second, activation, training, keep))
        arguments[0] = arguments[0].contiguous()
        real = ops._forward(*arguments)
        with FakeTensorMode() as mode:
            fake = ops._forward(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
        for one, other in zip(real, fake, strict=True):
            assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


class Blocks(nn.Module):
    """Two residual blocks, the second with a downsampling skip, forked where two readers follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.skip = nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))

    def norm(self, index: int) -> Norm:
        norm: Any = self.norms[index]
        return Norm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked)

    def forward(self, x: Tensor) -> Tensor:
        def single(index: int, x: Tensor, residual: Tensor | None, **options: Any) -> Any:
            norm = self.norm(index)
            return batch_norm_act(
                x, *norm[:4], residual, num_batches_tracked=norm.num_batches_tracked,
                training=self.training, backend="triton", **options,
            )  # fmt: skip

        x, skip = single(0, self.stem(x), None, activation="relu", fork=True)
        x, skip = single(1, self.convs[0](x), skip, activation="relu", fork=True)
        y: Tensor = dual_batch_norm_act(
            self.convs[1](x), self.norm(2), self.skip(skip), self.norm(3),
            training=self.training, activation="silu", backend="triton",
        )  # fmt: skip
        return y


def channels_last_blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks().to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]


def step(network: nn.Module, run: Any, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers of one training step."""
    y = run(x)
    y.square().mean().backward()
    grads = [p.grad for p in network.parameters()]
    assert all(grad is not None for grad in grads)
    return [y.detach(), *grads, *network.buffers()]


def test_compiled_has_the_bits_of_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, running statistics included; one graph forward and one backward, the operators inside."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # else convolutions differ from call to call
    network = channels_last_blocks()
    twin = copy.deepcopy(network)
    counters.clear()
    torch._dynamo.reset()
    # dynamic=False: a compiled graph a shape.
    compiled: Any = torch.compile(twin, fullgraph=True, dynamic=False)
    for _ in range(3):
        x = channels_last(torch.randn(4, 3, 8, 8))
        for name, (eager, found) in enumerate(zip(step(network, network, x), step(twin, compiled, x), strict=True)):
            # Convolutions are the same calls, BatchNorms the same kernels; only the loss around them is Inductor's.
            assert torch.equal(eager, found), name
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    network.eval()
    compiled.eval()
    with torch.no_grad():
        assert torch.equal(network(x), compiled(x))


def test_compiled_graph_holds_the_operators() -> None:
    """Once a BatchNorm and direction, with no copy around them: gradients of a fork meet inside the operator."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    network = channels_last_blocks()
    compiled = torch.compile(network, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    compiled(channels_last(torch.randn(4, 3, 8, 8))).square().mean().backward()
    forward, backward = graphs

    def names(graph: torch.fx.GraphModule) -> str:
        calls = [node for node in graph.graph.nodes if node.op == "call_function"]
        # An operator that changes its arguments stands behind a wrapper, as that one's first argument.
        return " ".join(
            str(node.args[0] if "auto_functionalized" in str(node.target) else node.target) for node in calls
        )

    assert names(forward).count("fastres.batch_norm_act_forward") == 3
    assert names(backward).count("fastres.batch_norm_act_backward") == 3
    # The only additions are autograd's none: each fork hands both gradients over.
    assert "aten.add" not in names(backward)


@pytest.mark.parametrize("second", SECONDS)
def test_compiled_function_in_evaluation(second: str) -> None:
    case = Case(second, "gelu", training=False, shape=SHAPE)
    inputs = draw(case)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: call(case, inputs), fullgraph=True, dynamic=False)
    assert torch.equal(compiled(), call(case, inputs))


def test_eager_call_passes_the_dispatcher_by() -> None:
    """The operators cost tens of microseconds a call: eager calls launch the kernels directly."""
    inputs = draw(Case(shape=SHAPE))
    with torch.profiler.profile() as profile:
        call(Case(shape=SHAPE), inputs._replace(x=inputs.x.requires_grad_())).backward(inputs.dy)
    assert not [event.key for event in profile.key_averages() if "fastres::" in event.key]


def test_no_zeros_for_an_output_that_nobody_reads() -> None:
    """A fork with one reader reads one gradient, not another of zeros that autograd would make."""
    inputs = draw(Case(shape=SHAPE))
    y, _ = call(Case(shape=SHAPE), inputs._replace(x=inputs.x.requires_grad_()), fork=True)
    with torch.profiler.profile() as profile:
        y.backward(inputs.dy)
    assert not [event.key for event in profile.key_averages() if "zero" in event.key]


@pytest.mark.gpu
@pytest.mark.skipif(launch.INTERPRETED, reason="a CUDA graph needs a CUDA device and compiled kernels")
@pytest.mark.parametrize("form", ["two_pass", "resident", "resident/5"])
def test_replayed_in_a_cuda_graph(form: str) -> None:
    """Replays have the bits of plain calls, and leave the counters as they found them."""
    case = Case("dual", "relu", form)
    inputs = draw(case)
    expected = by_kernels(case, inputs)
    plan = plan_of(form, case.rows)
    static = clone(inputs)

    def run() -> Any:
        y, moments, _ = launch.forward(*static[:4], True, "relu", True, plan)
        return y, launch.backward(
            static.dy, None, static.x, static.second, "dual", None, moments, static.x_norm, static.z_norm,
            True, "relu", True, True, True, plan,
        )  # fmt: skip

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, gradients = run()
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, expected["y"])
        assert torch.equal(gradients.dx, expected["dx"])
        assert torch.equal(gradients.dsecond, expected["dsecond"])


@pytest.mark.parametrize("residual", ["none", "add", "dual"])
def test_a_frozen_norm_is_one_call(residual: str) -> None:
    torch.manual_seed(0)
    import_torchvision()
    from torchvision.ops import FrozenBatchNorm2d

    main, skip = (FrozenBatchNorm2d(16, eps=1e-3).to(DEVICE) for _ in range(2))
    for buffer in (*main.buffers(), *skip.buffers()):
        buffer.copy_(torch.rand(16) + 0.5)
    x, z = (channels_last(torch.randn(2, 16, 3, 3)).requires_grad_() for _ in range(2))
    # The module itself would return the same; its forward is gone, so that only the kernels can have made it.
    expected = torch.relu(main(x) + {"none": 0, "add": z, "dual": skip(z)}[residual])
    main.forward = skip.forward = None
    if residual == "dual":
        y = dual(main, skip, x, z, "relu", backend="triton")
    else:
        y = norm_act(main, x, z if residual == "add" else None, "relu", backend="triton")
    gradient = torch.randn_like(expected)
    found = torch.autograd.grad(y, [x] if residual == "none" else [x, z], gradient)
    wanted = torch.autograd.grad(expected, [x] if residual == "none" else [x, z], gradient)
    for mine, other in zip((y, *found), (expected, *wanted), strict=True):
        # fp32 values below 10 in two expressions of the same affine function: some ten roundings of 6e-8 each.
        assert torch.allclose(mine, other, rtol=0, atol=1e-5)
