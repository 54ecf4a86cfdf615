"""Values that break naive kernels: large means, outliers, exact zeros, NaN and infinities."""

from typing import Any

import pytest
import torch
from norm_cases import (
    DTYPES,
    FORMS,
    ROUNDING,
    SECONDS,
    Case,
    Inputs,
    by_kernels,
    by_pytorch,
    call,
    channels_last,
    check,
    draw,
    random_norm,
    spare_uncertain_signs,
)

from fastres.kernels import Norm

# NaN and infinities make numpy, in which Triton's interpreter calculates, warn.
QUIET = pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning", "ignore:divide by zero:RuntimeWarning"
)


def drawn(case: Case, x: torch.Tensor, seed: int = 0, **changes: Any) -> Inputs:
    """A case's random inputs with another x."""
    return spare_uncertain_signs(case, draw(case, seed)._replace(x=channels_last(x.to(case.dtype)), **changes))


def gaussian(case: Case, seed: int = 5) -> torch.Tensor:
    return torch.randn(case.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("form", FORMS)
def test_large_mean_and_small_deviation(form: str, second: str) -> None:
    """Mean 1000, deviation 0.01: E[x²] − E[x]² would lose the variance, 10⁻⁴ beside squares of 10⁶."""
    case = Case(second, "none", form)
    check(case, drawn(case, 1000 + 0.01 * gaussian(case)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_shift_invariance(form: str, dtype: torch.dtype) -> None:
    """Adding a constant to x changes neither output nor gradients; the values are exact in every type."""
    case = Case("none", "none", form, dtype)
    grid = (gaussian(case) * 2).round().clamp(-8, 8)
    shift = 1024 if dtype == torch.float32 else 64
    # 64 + 8 needs 7 bits, which bf16's 8 hold.
    near, far = (by_kernels(case, drawn(case, grid + offset)) for offset in (0, shift))
    # Mean 64 or 1024 in fp32 is off by half a unit, relative to deviations of 2 scaled by at most 1.5: the outputs by
    # as much, and then by one rounding to their type, or two where the interpreter truncates.
    of_mean = shift * ROUNDING * 1.5
    for name in ("y", "dx"):
        largest = near[name].abs().max().item()
        tolerance = 2 * of_mean + (2 if dtype != torch.float32 else 8) * torch.finfo(dtype).eps * largest
        assert (near[name].double() - far[name].double()).abs().max().item() <= tolerance
    # Sums over 105 rows of gradients below 4 times an x̂ that is off by `of_mean`.
    assert torch.allclose(near["x_weight"], far["x_weight"], rtol=0, atol=105 * 4 * of_mean)


@pytest.mark.parametrize("form", FORMS)
def test_first_row_is_an_outlier(form: str) -> None:
    """Sums that are shifted by the first row alone would subtract 10⁴ from every value."""
    case = Case("add", "relu", form)
    x = gaussian(case)
    x[0, :, 0, 0] = 1e4
    check(case, drawn(case, x))


@pytest.mark.parametrize("form", FORMS)
def test_constant_channel(form: str) -> None:
    """A variance of 0: x̂ is 0 but for the rounding of the mean."""
    case = Case("none", "none", form)
    inputs = drawn(case, torch.full(case.shape, 0.1))
    found = by_kernels(case, inputs)
    bias = inputs.x_norm.bias
    assert bias is not None
    # The mean of 105 equal values, summed one by one, may miss them by some 16 roundings, 0.1·2⁻²⁴ each; 1/√eps = 316
    # times a weight of 1.5 enlarges that.
    assert (found["y"] - bias[None, :, None, None]).abs().max().item() <= 16 * 0.1 * ROUNDING * 316 * 1.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("form", FORMS)
def test_exact_zeros_are_masked(form: str, second: str, dtype: torch.dtype) -> None:
    """Weight 0 and bias 0, as the last BatchNorm of a block starts: half of what relu gets is exactly 0."""
    case = Case(second, "relu", form, dtype, shape=(3, 20, 3, 5))
    inputs = draw(case)
    nil = torch.zeros_like(inputs.x_norm[0])  # type: ignore[arg-type]
    z_norm = inputs.z_norm and inputs.z_norm._replace(weight=nil, bias=nil)
    dy = channels_last(gaussian(case, 6).to(dtype))
    inputs = inputs._replace(x_norm=inputs.x_norm._replace(weight=nil, bias=nil), z_norm=z_norm, dy=dy)
    found, eager = by_kernels(case, inputs), by_pytorch(case, inputs)
    for name in ("y", "dx", "dsecond"):
        assert (name in found) == (name in eager)
        if name in found:
            assert torch.equal(found[name], eager[name]), name  # all exact: 0, the residual, the gradient behind it
    if second == "add":
        assert 0.3 < (found["dsecond"] == 0).float().mean().item() < 0.7
        # Σg over 45 rows of fp32 gradients below 5, of which eager may sum in another order.
        assert torch.allclose(found["x_bias"].double(), eager["x_bias"].double(), rtol=0, atol=45 * 5 * ROUNDING)
    else:
        assert not found["x_bias"].any()


@QUIET
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ["none", "relu", "silu", "gelu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("form", ["two_pass", "resident", "resident/2"])
def test_not_finite(form: str, training: bool, activation: str, value: float) -> None:
    """What is not finite goes where it goes in PyTorch and nowhere else: through relu, and into no other channel."""
    second = {"none": "none", "relu": "add", "silu": "add", "gelu": "dual"}[activation]
    case = Case(second, activation, form, training=training, shape=(2, 3, 3, 5))
    x = gaussian(case)
    x[1, 1, 2, 3] = value
    inputs = drawn(case, x)
    if activation == "relu":  # no gradient was spared that NaN could show
        inputs = inputs._replace(dy=inputs.dy.where(inputs.dy != 0, 1.0))
    found, eager = by_kernels(case, inputs), by_pytorch(case, inputs)
    for name, result in found.items():
        if "running" in name:  # of infinities PyTorch makes ∞ on a CPU and, by Welford's update, NaN on a GPU
            assert torch.equal(result.isfinite(), eager[name].isfinite()), name
            continue
        assert torch.equal(result.isnan(), eager[name].isnan()), name
        assert torch.equal(result.isposinf(), eager[name].isposinf()), name
        assert torch.equal(result.isneginf(), eager[name].isneginf()), name
    # The gradient of NaN passes relu: it shows in these, which x does not enter. Sums of 30 rows of g below 8 in fp32.
    for name in ("x_bias", *(["dsecond"] if activation == "relu" else [])):
        same = found[name].isfinite() & ((found[name] - eager[name]).abs() <= 30 * 8 * ROUNDING)
        assert torch.equal(same, eager[name].isfinite()), name
    assert not found["y"].isnan()[:, [0, 2]].any()
    assert found["y"].isnan()[:, 1].any() or found["y"].isinf()[:, 1].any() or (value < 0 and not training)


@QUIET
@pytest.mark.parametrize("second", ["none", "add", "dual"])
def test_not_finite_in_what_is_added_and_in_gradients(second: str) -> None:
    case = Case(second, "relu", "resident/2", shape=(2, 3, 3, 5))
    inputs = draw(case)
    inputs.dy[0, 0, 1, 1] = float("nan")
    inputs.dy[1, 2, 1, 1] = float("inf")
    if inputs.second is not None:
        inputs.second[1, 1, 0, 0] = float("nan")
    found, eager = by_kernels(case, inputs), by_pytorch(case, inputs)
    for name, result in found.items():
        assert torch.equal(result.isnan(), eager[name].isnan()), name


@QUIET
@pytest.mark.parametrize("form", FORMS)
def test_infinite_gradient_behind_a_closed_relu(form: str) -> None:
    """The mask selects: 0·∞ would be NaN."""
    case = Case("add", "relu", form, shape=(2, 3, 3, 5))
    inputs = draw(case)
    x_norm = Norm(*random_norm(3, torch.Generator()))._replace(bias=torch.full_like(inputs.x_norm[1], -100.0))  # type: ignore[arg-type]
    inputs = inputs._replace(x_norm=x_norm, dy=torch.full_like(inputs.dy, float("inf")))
    found = by_kernels(case, inputs)
    for name in ("y", "dx", "dsecond", "x_weight", "x_bias"):
        assert not found[name].any(), name


@QUIET
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_beyond_the_end(form: str, activation: str) -> None:
    """They are read as 0, which a mean of 2¹²⁰ times 2/√eps takes to −∞, where silu and gelu have no derivative."""
    case = Case("none", activation, form, shape=(1, 3, 7, 9))
    inputs = draw(case)
    weight = torch.full_like(inputs.x_norm[0], 2.0)  # type: ignore[arg-type]
    gone = Norm(weight, inputs.x_norm.bias, None, None)
    # 63 equal powers of two: sum and mean are exact, and x̂ is 0 as that of zeros is, which fp64 can do.
    large, zeros = (inputs._replace(x=torch.full_like(inputs.x, value), x_norm=gone) for value in (2.0**120, 0.0))
    found, exact = by_kernels(case, large), by_pytorch(case, zeros, torch.float64)
    for name in ("y", "dx", "x_weight", "x_bias"):
        # Sums over 63 rows of gradients below 4; dx is as large times 2/√eps = 632.
        largest = {"y": 4, "dx": 4 * 632}.get(name, 63 * 4)
        assert (found[name].double() - exact[name]).abs().max().item() <= 8 * ROUNDING * largest, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("second", SECONDS)
def test_eps_is_refused_as_pytorch_does(second: str, training: bool) -> None:
    case = Case(second, "relu", training=training)
    inputs = draw(case)
    for eps in (0.0, -1.0):
        changed = inputs._replace(x_norm=inputs.x_norm._replace(eps=eps))
        if eps == 0 and not training:
            call(case, changed)
            continue
        with pytest.raises(ValueError, match="batch_norm eps must be"):
            call(case, changed)
    if inputs.z_norm is not None:
        with pytest.raises(ValueError, match="batch_norm eps must be"):
            call(case, inputs._replace(z_norm=inputs.z_norm._replace(eps=-1.0)))
