"""The functions without kernels: PyTorch's path, its twin for the compiler, and what is refused."""

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastres.kernels import ACTIVATIONS, Norm, batch_norm_act, dual_batch_norm_act
from fastres.kernels.batch_norm import reference

pytestmark = pytest.mark.usefixtures("one_thread")

SECONDS = ("none", "add", "dual")
MODULES: dict[str, Any] = {"none": lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}


def images(count: int, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 4, 3, 2)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def norm(dtype: torch.dtype = torch.float64, seed: int = 0, channels: int = 4) -> Norm:
    generator = torch.Generator().manual_seed(seed)
    weight, bias, mean, var = (torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5 for _ in range(4))
    return Norm(*(t.to(dtype) for t in (weight, bias, mean, var)), torch.tensor(3), 0.2, 1e-3)


def call(x: Tensor, second: Tensor | None, x_norm: Norm, z_norm: Norm | None, **options: Any) -> Any:
    if z_norm is not None:
        assert second is not None
        return dual_batch_norm_act(x, x_norm, second, z_norm, **options)
    names = ("momentum", "eps", "num_batches_tracked")
    constants = {name: getattr(x_norm, name) for name in names}
    return batch_norm_act(x, *x_norm[:4], second, **constants, **options)


def expected(
    x: Tensor, second: Tensor | None, x_norm: Norm, z_norm: Norm | None, *, training: bool, activation: str
) -> Tensor:
    """The definition, in elementary operators."""

    def apply(x: Tensor, n: Norm) -> Tensor:
        assert n.weight is not None and n.bias is not None
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        else:
            assert n.running_mean is not None and n.running_var is not None
            mean, var = n.running_mean, n.running_var
        mean, var, weight, bias = (t[None, :, None, None] for t in (mean, var, n.weight, n.bias))
        return (x - mean) / (var + n.eps).sqrt() * weight + bias

    z = apply(x, x_norm)
    if second is not None:
        z = z + (second if z_norm is None else apply(second, z_norm))
    return MODULES[activation](z)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("second", SECONDS)
def test_torch_path_is_the_definition(second: str, activation: str, training: bool) -> None:
    """In fp64, and its derivatives by gradcheck; running statistics and counter move in training alone."""
    x, other = images(2)
    z_norm = norm(seed=7) if second == "dual" else None
    x_norm = norm()
    given = None if second == "none" else other
    options: dict[str, Any] = {"training": training, "activation": activation}
    wanted = expected(x, given, x_norm, z_norm, **options)
    before = [t.clone() for t in x_norm[2:5]]  # type: ignore[union-attr]
    found = call(x, given, x_norm, z_norm, backend="torch", **options)
    # fp64: values below 10, some ten roundings of 10⁻¹⁶ each.
    assert torch.allclose(found, wanted, rtol=0, atol=1e-13)
    mean, var, batches = before
    if training:
        mean = 0.8 * mean + 0.2 * x.mean((0, 2, 3))
        var = 0.8 * var + 0.2 * x.var((0, 2, 3))
    for now, then in zip(x_norm[2:4], (mean, var), strict=True):
        assert torch.allclose(now, then, rtol=0, atol=1e-13)  # type: ignore[arg-type]
    assert x_norm.num_batches_tracked == batches + training

    leaves = [t.requires_grad_() for t in (x, given, *x_norm[:2], *(z_norm or ())[:2]) if t is not None]

    def function(*_: Tensor) -> Any:
        return call(x, given, x_norm, z_norm, backend="torch", **options)

    # relu's kink: no argument is closer to 0 than gradcheck's step of 1e-6.
    plain = expected(x, given, x_norm, z_norm, training=training, activation="none")
    assert plain.abs().min().item() > 1e-4
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("second", SECONDS)
def test_reference_against_autograd(second: str, activation: str) -> None:
    """`forward` and the hand-derived `backward`, with and without the output to give relu's mask."""
    x, other, dy = images(3)
    x_norm, z_norm = norm(), norm(seed=7) if second == "dual" else None
    given = None if second == "none" else other
    eps = (1e-3, 1e-3)
    terms = x_norm[:2], None if z_norm is None else z_norm[:2]
    y, moments = reference.forward(x, given, *terms, eps, activation)
    leaves = [t.requires_grad_() for t in (x, given, *x_norm[:2], *(z_norm or ())[:2]) if t is not None]
    wanted = expected(x, given, x_norm, z_norm, training=True, activation=activation)
    assert torch.allclose(y, wanted, rtol=0, atol=1e-13)  # fp64: some ten roundings of values below 10
    by_autograd = torch.autograd.grad(wanted, leaves, dy)
    for output in (y, None):
        with torch.no_grad():
            dx, dsecond, sums = reference.backward(dy, x, given, output, moments, *terms, eps, activation)
        found = [dx, *([dsecond] if given is not None else []), sums[1], sums[0]]
        found += [sums[3], sums[2]] if z_norm is not None else []
        for one, other_one in zip(found, by_autograd, strict=True):
            assert torch.allclose(one, other_one, rtol=0, atol=1e-12)  # and sums over 18 rows


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("second", SECONDS)
def test_reference_gradcheck(second: str, activation: str) -> None:
    x, other = images(2)
    x_norm, z_norm = norm(), norm(seed=7) if second == "dual" else None
    given = None if second == "none" else other
    z_terms = (None, None) if z_norm is None else z_norm[:2]
    leaves = [t.requires_grad_() for t in (x, given, *x_norm[:2], *z_terms) if t is not None]

    def function(*_: Tensor) -> Any:
        y, *_ = reference.BatchNormAct.apply(x, given, *x_norm[:2], *z_terms, (1e-3, 1e-3), second, activation)
        return y

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("second", SECONDS)
def test_fork_returns_the_output_twice(second: str) -> None:
    """On PyTorch's path too: the two gradients are summed."""
    x, other, dy, dy2 = images(4)
    z_norm = norm(seed=7) if second == "dual" else None
    given = None if second == "none" else other
    x.requires_grad_()
    y, again = call(x, given, norm(), z_norm, training=True, activation="silu", fork=True)
    (found,) = torch.autograd.grad([y, again], x, [dy, dy2])
    (wanted,) = torch.autograd.grad(call(x, given, norm(), z_norm, training=True, activation="silu"), x, dy + dy2)
    assert torch.equal(y, again)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-14)  # one rounding of fp64 values below 10, summed elsewhere


class TestCompiled:
    """backend="auto" on a CPU under torch.compile: fused with its neighbours, and at least as exact as eager."""

    @pytest.mark.parametrize("second", SECONDS)
    def test_no_operator_of_ours_in_the_graph(self, second: str) -> None:
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        torch._dynamo.reset()
        targets: list[str] = []

        def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
            targets.extend(str(node.target) for node in graph.graph.nodes)
            return make_boxed_func(graph.forward)

        x, other = images(2, torch.bfloat16)
        x.requires_grad_()
        x_norm, z_norm = norm(torch.float32), norm(torch.float32, 7) if second == "dual" else None
        given = None if second == "none" else other
        for training in (True, False):
            run = torch.compile(
                lambda x, training: call(x, given, x_norm, z_norm, training=training, activation="relu"),
                backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True,
            )  # fmt: skip
            run(x, training).sum().backward()
        assert any("aten." in target for target in targets)
        assert not [target for target in targets if "fastres" in target]

    @pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
    @pytest.mark.parametrize("second", SECONDS)
    def test_gradients_in_bf16(self, second: str, training: bool) -> None:
        """Not further from fp64 than twice what eager bf16 is; statistics and counter as in eager."""
        torch._dynamo.reset()
        shape = (4, 8, 5, 5)
        activation = {"none": "relu", "add": "relu", "dual": "silu"}[second]
        x, other, dy = images(3, torch.bfloat16, shape)
        options: dict[str, Any] = {"training": training, "activation": activation}
        z64 = expected(
            x.double(), None if second == "none" else other.double(), norm(channels=8),
            norm(seed=7, channels=8) if second == "dual" else None, training=training, activation="none",
        )  # fmt: skip
        # No gradient where bf16 loses the sign of what relu gets: |z| is below 8, half its last digit 8·2⁻⁹ = 0.016.
        dy = dy.where(z64.abs() > 0.05, 0).to(torch.bfloat16) if activation == "relu" else dy

        def results(dtype: torch.dtype, function: Any) -> list[Tensor]:
            wide = torch.promote_types(dtype, torch.float32)
            given = None if second == "none" else other.to(dtype, copy=True)
            x_norm, z_norm = norm(wide, channels=8), norm(wide, 7, 8) if second == "dual" else None
            leaves = [x.to(dtype, copy=True), given, *x_norm[:2], *(z_norm or ())[:2]]
            leaves = [leaf.requires_grad_() for leaf in leaves if leaf is not None]
            y = function(leaves[0], given, x_norm, z_norm, **options)
            gradients = torch.autograd.grad(y, leaves, dy.to(dtype))
            assert x_norm.num_batches_tracked == 3 + training
            return [y.detach(), *gradients, *x_norm[2:4], *(z_norm or ())[2:4]]

        exact = results(torch.float64, call)
        eager = results(torch.bfloat16, call)
        found = results(torch.bfloat16, torch.compile(call, fullgraph=True, dynamic=False))
        for index, (one, of_eager, of_fp64) in enumerate(zip(found, eager, exact, strict=True)):
            error, least = ((t.double() - of_fp64).abs().max().item() for t in (one, of_eager))
            largest = of_fp64.abs().max().item()
            # One rounding to the type of the result; sums over 100 rows in fp32: √100·2⁻²⁴ of terms as large.
            limit = 2 * least + (torch.finfo(one.dtype).eps / 2 + 10 * 2**-24) * largest
            assert error <= limit, (index, error, least)

    @pytest.mark.parametrize(
        "residual", [torch.zeros(3, 4, 3, 2), torch.ones(4, 1, 1, dtype=torch.bfloat16)], ids=["wider", "broadcast"]
    )
    def test_residual_unlike_the_input(self, residual: Tensor) -> None:
        """Of a wider type, or one that is broadcast: shape and type as in eager."""
        torch._dynamo.reset()
        x = images(1, torch.bfloat16)[0]
        arguments = (residual, norm(torch.float32), None)
        eager = call(x, *arguments, training=True, activation="relu")
        found = torch.compile(call, backend="aot_eager", fullgraph=True)(
            x, *arguments, training=True, activation="relu"
        )
        assert found.dtype == eager.dtype
        # Two roundings to bf16 of values below 8, in another order.
        assert torch.allclose(found.float(), eager.float(), rtol=0, atol=2 * 8 * 2**-8)

    @pytest.mark.parametrize("second", SECONDS)
    def test_an_empty_batch(self, second: str) -> None:
        """As in eager: statistics stay, the counter moves, gradients of weights are 0."""
        torch._dynamo.reset()
        found = []
        for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
            x, other = images(2, torch.float32, (0, 4, 3, 2))
            x_norm, z_norm = norm(torch.float32), norm(torch.float32, 7) if second == "dual" else None
            weight = x_norm.weight
            assert weight is not None
            weight.requires_grad_()
            given = None if second == "none" else other
            y = function(x.requires_grad_(), given, x_norm, z_norm, training=True, activation="relu")
            gradients = torch.autograd.grad(y.sum(), (x, weight))
            norms = [*x_norm[2:5], *(() if z_norm is None else z_norm[2:5])]
            found.append([y.detach(), *gradients, *norms])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))  # type: ignore[arg-type]
        assert x_norm.num_batches_tracked == 4

    def test_one_value_a_channel(self) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(call, backend="eager")
        # The type is the compiler's, which comes upon the error while it traces.
        with pytest.raises((ValueError, RuntimeError), match="more than 1 value per channel"):
            compiled(torch.zeros(1, 4, 1, 1), None, norm(torch.float32), None, training=True)


def test_unknown_names() -> None:
    (x,) = images(1)
    with pytest.raises(ValueError, match="unknown activation 'mish': one of none, relu, silu, gelu"):
        call(x, None, norm(), None, training=True, activation="mish")
    with pytest.raises(ValueError, match="unknown backend 'cuda': one of auto, triton, torch"):
        call(x, None, norm(), None, training=True, backend="cuda")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_errors_of_pytorch(backend: str) -> None:
    """Where PyTorch's path is taken, PyTorch refuses."""
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        call(torch.zeros(1, 4, 1, 1), None, norm(torch.float32), None, training=True, backend=backend)
    bare = norm()._replace(running_mean=None, running_var=None)
    with pytest.raises(RuntimeError, match="running_mean"):
        call(images(1)[0], None, bare, None, training=False, backend=backend)
    with pytest.raises(RuntimeError, match="size"):
        call(images(1)[0], images(1, shape=(3, 4, 3, 3))[0], norm(), None, training=True, backend=backend)


def test_other_ranks_take_pytorch() -> None:
    """[N, C], [N, C, L] and [N, C, D, H, W], which nn.BatchNorm2d's kin have, on PyTorch's path."""
    for shape in ((6, 4), (3, 4, 5), (2, 4, 3, 2, 2)):
        x = images(1, shape=shape)[0]
        n = norm()
        wanted = F.relu(F.batch_norm(x, None, None, n.weight, n.bias, True, 0.2, 1e-3))
        assert torch.equal(call(x, None, n, None, training=True, activation="relu"), wanted)


INTERPRETER_OFF = """
import torch
from fastres.kernels import batch_norm_act
x = torch.zeros(2, 3, 4, 4)
try:
    batch_norm_act(x, None, None, None, None, training=True, backend="triton")
except ValueError as error:
    print(error)
"""


def test_kernels_on_a_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = subprocess.run([sys.executable, "-c", INTERPRETER_OFF], capture_output=True, text=True, check=True).stdout
    assert found.startswith('backend="triton" cannot run here: x is on cpu and Triton\'s interpreter is off')
    assert "TRITON_INTERPRET=1" in found


def test_functions_import_neither_triton_nor_the_kernels() -> None:
    """A CPU user never pays for them: not on import, not by a call."""
    code = (
        "import sys, torch; from fastres.kernels import batch_norm_act;"
        "batch_norm_act(torch.zeros(2, 3, 4, 4), None, None, None, None, training=True);"
        "print([m for m in ('launch', 'ops') if f'fastres.kernels.batch_norm.{m}' in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def wrong() -> Any:
    """What `backend="triton"` refuses, and the words that say why."""
    x = torch.zeros(2, 4, 3, 3)
    n = norm(torch.float32)
    yield "2-D", (x[:, :, 0, 0], None, n, None), "non-empty"
    yield "empty", (x[:0], None, n, None), "non-empty"
    yield "fp64", (x.double(), None, n, None), "float64, not float32"
    yield "residual's shape", (x, x[:1], n, None), "must have the shape"
    yield "residual's type", (x, x.half(), n, None), "must have the shape"
    yield "other input's shape", (x, x[:, :2], n, n), "must have the shape"
    yield "weight's type", (x, None, norm(torch.float64), None), "must be float32"
    yield "weight's shape", (x, None, norm(torch.float32, channels=3), None), r"of shape \[4\]"
    yield "strided bias", (x, None, n._replace(bias=torch.zeros(8)[::2]), None), "contiguous"
    elsewhere = n._replace(num_batches_tracked=torch.zeros((), dtype=torch.int64, device="meta"))
    yield "counter's device", (x, None, elsewhere, None), "num_batches_tracked must be on the device"
    yield "other norm's shape", (x, x, n, norm(torch.float32, channels=3)), r"of shape \[4\]"


@pytest.mark.parametrize(("arguments", "words"), [pytest.param(a, w, id=i) for i, a, w in wrong()])
def test_what_the_kernels_refuse(arguments: Any, words: str) -> None:
    """Before anything else is asked, such as whether there is a GPU."""
    with pytest.raises(ValueError, match=words) as caught:
        call(*arguments, training=True, backend="triton")
    assert 'use backend="auto"' in str(caught.value)


def test_kernels_refuse_evaluation_without_statistics() -> None:
    bare = norm(torch.float32)._replace(running_var=None)
    with pytest.raises(ValueError, match="without training running_mean and running_var are needed"):
        call(torch.zeros(2, 4, 3, 3), None, bare, None, training=False, backend="triton")


def test_bits_repeat() -> None:
    """PyTorch's path, like all others."""
    x, other = images(2, torch.bfloat16, (4, 8, 5, 5))
    for second, activation in itertools.product(SECONDS, ACTIVATIONS):
        arguments = (None if second == "none" else other, norm(torch.float32, channels=8))
        z_norm = norm(torch.float32, 7, 8) if second == "dual" else None
        first, again = (
            call(x, *arguments, z_norm, training=True, activation=activation) for _ in range(2)
        )  # running statistics do not enter
        assert torch.equal(first, again)
