"""BatchNorm with what follows it on small tensors, three ways: the kernels, PyTorch in the same type, PyTorch in fp64.

Where the kernels run, `runs_on` knows; which process is which, test_interpreted.py and compiled/.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from runs_on import DEVICE
from torch import Tensor
from torch.nn import functional as F

from fastres.kernels import Norm, batch_norm_act, dual_batch_norm_act
from fastres.kernels.batch_norm import launch
from fastres.kernels.batch_norm.routing import Plan, Tile

ACTIVATIONS: dict[str, Any] = {"none": lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
SECONDS = ("none", "add", "dual")
FORMS = ("two_pass", "resident", "resident/2", "resident/5")
"""The resident one in one split, in two, and in five, of which the last is often ragged."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Half the distance of neighbouring fp32 numbers around 1: what one rounding loses, relatively.
ROUNDING = 2.0**-24


@dataclass(frozen=True)
class Case:
    """What is computed, and in which form of the kernels."""

    second: str = "none"
    activation: str = "relu"
    form: str = "resident"
    dtype: torch.dtype = torch.float32
    training: bool = True
    fork: bool = False
    """Whether two gradients come back."""
    shape: tuple[int, int, int, int] = (3, 20, 5, 7)

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.shape[1]

    def __str__(self) -> str:
        words = (self.second, self.activation, self.form, str(self.dtype)[6:], "training" if self.training else "eval")
        return " ".join((*words, *(["fork"] if self.fork else []), "x".join(map(str, self.shape))))


class Inputs(NamedTuple):
    """Tensors of a case: dy2 only where it forks, `second` only where something is added, z_norm only in dual form."""

    x: Tensor
    second: Tensor | None
    x_norm: Norm
    z_norm: Norm | None
    dy: Tensor
    dy2: Tensor | None


def channels_last(x: Tensor, device: torch.device = DEVICE) -> Tensor:
    return x.to(device).contiguous(memory_format=torch.channels_last)


def random_norm(channels: int, generator: torch.Generator, device: torch.device = DEVICE) -> Norm:
    """Weights and variances between 0.5 and 1.5, the rest normally distributed: a mix-up shows in every digit."""
    weight, var = (torch.rand(channels, generator=generator) + 0.5 for _ in range(2))
    bias, mean = (torch.randn(channels, generator=generator) for _ in range(2))
    return Norm(*(t.to(device) for t in (weight, bias, mean, var, torch.tensor(3))))


def draw(case: Case, seed: int = 0, device: torch.device = DEVICE) -> Inputs:
    """Inputs of a case, channels-last; the second tensor has exact zeros, as a residual behind a ReLU has."""
    generator = torch.Generator().manual_seed(seed)

    def image() -> Tensor:
        return channels_last(torch.randn(case.shape, generator=generator).to(case.dtype), device)

    second = None if case.second == "none" else image().relu()
    z_norm = None
    if case.second == "dual":
        z_norm = random_norm(case.shape[1], generator, device)._replace(momentum=0.25, eps=1e-3)
    inputs = Inputs(image(), second, random_norm(case.shape[1], generator, device), z_norm, image(), image())
    return spare_uncertain_signs(case, inputs._replace(dy2=inputs.dy2 if case.fork else None))


def spare_uncertain_signs(case: Case, inputs: Inputs) -> Inputs:
    """Gradients that are 0 where the sign of what relu gets is lost in rounding: right and wrong masks agree there.

    Eager bf16 rounds each BatchNorm's output, |z| up to about 8, by up to 8·2⁻⁹ = 0.016: 0.05 is enough for two of
    them. The values that the kernels themselves must mask, exact zeros, have a test of their own.
    """
    if case.activation != "relu":
        return inputs
    z = before_activation(case, clone(inputs, torch.float64))
    dy, dy2 = (None if g is None else g.where(z.abs() > 0.05, 0).to(case.dtype) for g in (inputs.dy, inputs.dy2))
    assert dy is not None
    return inputs._replace(dy=dy, dy2=dy2)


def clone(inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Copies; in another type, statistics and parameters too."""

    def copy(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        return tensor.detach().to(dtype if tensor.is_floating_point() else None, copy=True)

    x, second, x_norm, z_norm, dy, dy2 = inputs
    norms = [None if norm is None else Norm(*map(copy, norm)) for norm in (x_norm, z_norm)]
    return Inputs(copy(x), copy(second), norms[0], norms[1], copy(dy), copy(dy2))  # type: ignore[arg-type]


def before_activation(case: Case, inputs: Inputs) -> Tensor:
    """PyTorch's BatchNorm and addition; running statistics move."""

    def norm(x: Tensor, n: Norm) -> Tensor:
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, case.training, n.momentum, n.eps)

    z = norm(inputs.x, inputs.x_norm)
    if inputs.second is not None:
        z = z + (inputs.second if inputs.z_norm is None else norm(inputs.second, inputs.z_norm))
    return z


def by_pytorch(case: Case, inputs: Inputs, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Output, gradients and running statistics by autograd; with `dtype` all in that type."""
    inputs = clone(inputs, dtype)
    x, second, x_norm, z_norm, dy, dy2 = inputs
    wanted = {"dx": x, "dsecond": second}
    for name, norm in (("x", x_norm), ("z", z_norm)):
        if norm is not None:
            wanted |= {f"{name}_weight": norm.weight, f"{name}_bias": norm.bias}
    wanted = {name: tensor for name, tensor in wanted.items() if tensor is not None}
    for tensor in wanted.values():
        tensor.requires_grad_()
    y = ACTIVATIONS[case.activation](before_activation(case, inputs))
    gradients = torch.autograd.grad(y, list(wanted.values()), dy if dy2 is None else dy + dy2)
    return {"y": y.detach(), **dict(zip(wanted, gradients, strict=True)), **statistics(inputs)}


def by_kernels(case: Case, inputs: Inputs, plan: Plan | None = None) -> dict[str, Tensor]:
    """The same by the kernels in the case's form, or by a plan."""
    x, second, x_norm, z_norm, dy, dy2 = inputs = clone(inputs)
    plan = plan or plan_of(case.form, case.rows)
    y, moments, bits = launch.forward(x, second, x_norm, z_norm, case.training, case.activation, True, plan)
    dx, dsecond, sums = launch.backward(
        dy, dy2, x, second, case.second, bits if bits.numel() else None, moments, x_norm, z_norm,
        case.training, case.activation, True, second is not None, True, plan,
    )  # fmt: skip
    found = {"y": y, "dx": dx, "dsecond": dsecond, "x_bias": sums[0], "x_weight": sums[1]}
    if z_norm is not None:
        found |= {"z_bias": sums[2], "z_weight": sums[3]}
    for norm in (x_norm, z_norm):
        if norm is not None and norm.num_batches_tracked is not None:
            assert norm.num_batches_tracked == 3 + case.training
    return {name: t for name, t in {**found, **statistics(inputs)}.items() if t.numel()}


def call(case: Case, inputs: Inputs, **options: Any) -> Any:
    """The public function, with the kernels."""
    x, second, x_norm, z_norm, _, _ = inputs
    options = {"training": case.training, "activation": case.activation, "backend": "triton", **options}
    if z_norm is not None:
        assert second is not None
        return dual_batch_norm_act(x, x_norm, second, z_norm, **options)
    constants = {name: getattr(x_norm, name) for name in ("momentum", "eps", "num_batches_tracked")}
    return batch_norm_act(x, *x_norm[:4], second, **constants, **options)


def leaves(inputs: Inputs) -> dict[str, Tensor]:
    """What may have a gradient."""
    found = {"dx": inputs.x, "dsecond": inputs.second}
    for name, norm in (("x", inputs.x_norm), ("z", inputs.z_norm)):
        if norm is not None:
            found |= {f"{name}_weight": norm.weight, f"{name}_bias": norm.bias}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def by_function(case: Case, inputs: Inputs) -> dict[str, Tensor]:
    """Like `by_kernels`, through the public function and autograd, in the form that routing chooses."""
    inputs = clone(inputs)
    wanted = leaves(inputs)
    for tensor in wanted.values():
        tensor.requires_grad_()
    if case.fork:
        assert inputs.dy2 is not None
        y, again = call(case, inputs, fork=True)
        assert again.data_ptr() == y.data_ptr()
        gradients = torch.autograd.grad([y, again], list(wanted.values()), [inputs.dy, inputs.dy2])
    else:
        y = call(case, inputs)
        gradients = torch.autograd.grad(y, list(wanted.values()), inputs.dy)
    for norm in (inputs.x_norm, inputs.z_norm):
        if norm is not None and norm.num_batches_tracked is not None:
            assert norm.num_batches_tracked == 3 + case.training
    return {"y": y.detach(), **dict(zip(wanted, gradients, strict=True)), **statistics(inputs)}


def statistics(inputs: Inputs) -> dict[str, Tensor]:
    return {
        f"{name}_{field}": value
        for name, norm in (("x", inputs.x_norm), ("z", inputs.z_norm))
        for field in ("running_mean", "running_var")
        if norm is not None and (value := getattr(norm, field)) is not None
    }


def plan_of(form: str, rows: int, columns: int = 16) -> Plan:
    """A plan with tiles so small that a few rows fill several: two passes in splits of two tiles of 16 rows."""
    output = Tile(32, columns, 4)
    if form == "two_pass":
        return Plan(form, Tile(16, columns, 4), output, math.ceil(rows / 32), 32)
    per_split = math.ceil(rows / int(form.partition("/")[2] or 1))
    tile = Tile(1 << (per_split - 1).bit_length(), columns, 4)
    return Plan("resident", tile, output, math.ceil(rows / per_split), per_split)


def check(case: Case, inputs: Inputs | None = None, plan: Plan | None = None) -> None:
    """The kernels are no further from fp64 than twice what PyTorch in the same type is."""
    inputs = inputs or draw(case)
    compare(case, inputs, by_kernels(case, inputs, plan))


def compare(case: Case, inputs: Inputs, found: dict[str, Tensor]) -> None:
    """The criterion on results that are there already."""
    eager, exact = by_pytorch(case, inputs), by_pytorch(case, inputs, torch.float64)
    assert found.keys() == exact.keys()
    # The interpreter truncates what it stores as bf16, twice the loss of rounding.
    truncates = launch.INTERPRETED and case.dtype == torch.bfloat16
    floor = least_errors(case, inputs)
    for name, value in found.items():
        of_eager = (eager[name].double() - exact[name]).abs().max().item()
        error = (value.double() - exact[name]).abs().max().item()
        # One rounding to the type of the result, which eager escapes by luck where there are few values.
        unit = torch.finfo(value.dtype).eps * (1 if truncates else 0.5)
        limit = (4 if truncates else 2) * of_eager + unit * exact[name].abs().max().item() + floor[name]
        assert error <= limit, f"{name} of {case}: off by {error:.3g}, eager {of_eager:.3g}, limit {limit:.3g}"


def least_errors(case: Case, inputs: Inputs) -> dict[str, float]:
    """What fp32 arithmetic may lose even where eager, whose CPU sums are in fp64, happens to lose nothing.

    Eight roundings of the largest values that enter a result (subtract, scale, add, twice, and an activation of two
    steps); for sums over M rows, whose roundings are independent, √M times as much.
    """
    x, second, x_norm, z_norm, dy, dy2 = clone(inputs, torch.float64)
    g = (dy.abs() + (0 if dy2 is None else dy2.abs())).max().item()
    root = math.sqrt(case.rows)
    errors, z_size = {}, 0.0
    for name, image, norm in (("x", x, x_norm), ("z", second, z_norm)):
        if image is None or norm is None:
            continue
        mean, var = norm.running_mean, norm.running_var
        if case.training or mean is None or var is None:
            var, mean = torch.var_mean(image, (0, 2, 3), correction=0)
        weight = torch.ones_like(var) if norm.weight is None else norm.weight.abs()
        rstd = (var + norm.eps).rsqrt()
        size = (image.abs().amax((0, 2, 3)) * rstd).max().item()
        z_size += size * weight.max().item() + (0 if norm.bias is None else norm.bias.abs().max().item())
        errors[f"{name}_weight"] = root * g * (1 + size)
        errors["dx" if name == "x" else "dsecond"] = (rstd * weight).max().item() * g * (1 + size)
        if norm.running_mean is not None and norm.running_var is not None:
            errors[f"{name}_running_mean"] = max(t.abs().max().item() for t in (image, norm.running_mean))
            errors[f"{name}_running_var"] = max(2 * var.max().item(), norm.running_var.max().item())
    if case.second == "add" and second is not None:
        z_size += second.abs().max().item()
        errors["dsecond"] = g
    errors |= {"x_bias": root * g, "z_bias": root * g, "y": z_size}
    if case.activation in ("silu", "gelu"):  # their derivative carries the error of what they get; |f''| < 1
        errors |= {name: errors[name] * (1 + z_size) for name in errors if "running" not in name and name != "y"}
    return {name: 8 * ROUNDING * value for name, value in errors.items()}


def assert_same(first: dict[str, Tensor], again: dict[str, Tensor]) -> None:
    """The same bits, NaN included."""
    assert first.keys() == again.keys()
    for name, value in first.items():
        bits, expected = (t.flatten().clone().view(torch.uint8) for t in (value, again[name]))
        assert torch.equal(bits, expected), name
