"""α·XXᵀ + β·C by half of its tiles, against fp64: any size, both types, deterministic, exactly symmetric."""

import pytest
import torch
from norm_cases import DEVICE
from torch import Tensor

from fastres.kernels.batch_norm.launch import INTERPRETED
from fastres.kernels.symmetric import TILES, symmetric_product
from fastres.optim.muon import COEFFICIENTS

COMPILED = pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter multiplies the bit patterns of bf16")
TYPES = [pytest.param(torch.bfloat16, marks=COMPILED, id="bf16"), pytest.param(torch.float16, id="fp16")]


def matrices(count: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return torch.randn(count, rows, columns, generator=generator).to(DEVICE, dtype)


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (2, 7, 3), (1, 32, 64), (3, 33, 65), (1, 70, 130), (1, 96, 27)]
)
@pytest.mark.parametrize("adds", [False, True])
def test_against_double_precision(count: int, rows: int, columns: int, dtype: torch.dtype, adds: bool) -> None:
    x = matrices(count, rows, columns, dtype)
    c = matrices(count, rows, rows, dtype) if adds else None
    c = None if c is None else (c + c.mT).contiguous()
    found = symmetric_product(x, alpha=0.5, c=c, beta=-2.0)
    exact = 0.5 * x.double() @ x.double().mT
    if c is not None:
        exact = exact - 2.0 * c.double()
    assert found.dtype == dtype and found.shape == (count, rows, rows)
    # Sums are fp32: what is left is one rounding to the output's type, of half a unit in the last place.
    unit = torch.finfo(dtype).eps
    assert largest((found.double() - exact) / exact.abs().clamp_min(1.0)) <= unit
    assert torch.equal(found, found.mT), "both halves hold the same values"
    assert torch.equal(found, symmetric_product(x, alpha=0.5, c=c, beta=-2.0))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_large_tile(dtype: torch.dtype) -> None:
    """Many matrices choose it; its values are those of the small one to the last rounding."""
    x = matrices(64, 128, 40, dtype)
    assert TILES["large"][0] == 64
    found, alone = symmetric_product(x), symmetric_product(x[:1])
    # Each element is one sum over the same 40 products; the order may differ.
    assert largest(found[:1].double() - alone.double()) <= torch.finfo(dtype).eps * largest(found[:1].double())


@pytest.mark.parametrize("dtype", TYPES)
def test_a_newton_schulz_step(dtype: torch.dtype) -> None:
    a, b, c = COEFFICIENTS
    x = matrices(2, 40, 100, dtype)
    x = (x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)).contiguous()
    gram = symmetric_product(x)
    stepped = torch.baddbmm(x, symmetric_product(gram, alpha=c, c=gram, beta=b), x, beta=a)
    wide = x.double()
    square = wide @ wide.mT
    exact = a * wide + (b * square + c * square @ square) @ wide
    # Three products, each rounded once, of terms no larger than a·x: three units of the largest value.
    assert largest(stepped.double() - exact) <= 3 * torch.finfo(dtype).eps * largest(exact)


@pytest.mark.parametrize(
    ("x", "c"),
    [
        (torch.zeros(2, 3), None),
        (torch.zeros(1, 2, 3), None),
        (torch.zeros(1, 2, 3, dtype=torch.bfloat16), torch.zeros(1, 3, 3, dtype=torch.bfloat16)),
        (torch.zeros(1, 2, 3, dtype=torch.bfloat16), torch.zeros(1, 2, 2)),
    ],
)
def test_what_it_cannot_take(x: Tensor, c: Tensor | None) -> None:
    with pytest.raises(ValueError, match="must be"):
        symmetric_product(x, c=c, beta=1.0)


def test_no_matrices() -> None:
    assert symmetric_product(torch.zeros(0, 4, 5, dtype=torch.bfloat16, device=DEVICE)).shape == (0, 4, 4)
