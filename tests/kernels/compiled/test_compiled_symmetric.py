"""Symmetric products as Triton compiles them for compute capability 8.0 (mma.sync), executed, against fp64.

For 9.0 the compiler takes wgmma, which the machine does not know.
"""

from typing import Any

import pytest
import torch
from ptx.machine import Order
from ptx.session import TOTAL, running
from torch import Tensor

from fastres.kernels.symmetric import symmetric_product

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SHAPES = ((1, 1, 1), (2, 7, 3), (1, 32, 64), (3, 33, 65), (1, 70, 130), (1, 96, 27), (64, 128, 40))
"""Matrices, rows, columns; the last one takes the large tile."""


def check(shape: tuple[int, int, int], dtype: torch.dtype, adds: bool, order: Order | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(shape[1] * shape[2])
    x = torch.randn(shape, generator=generator).to(dtype)
    c = torch.randn(shape[0], shape[1], shape[1], generator=generator)
    c = (c + c.mT).to(dtype)
    with running(capability=80, order=order):
        found = symmetric_product(x, alpha=0.5, c=c if adds else None, beta=-2.0)
    exact = 0.5 * x.double() @ x.double().mT - (2.0 * c.double() if adds else 0)
    # One rounding to the type, of half a unit; the fp32 sums, cut off after each 16 products, lose far less.
    assert ((found.double() - exact).abs() / exact.abs().clamp_min(1.0)).max() <= torch.finfo(dtype).eps
    assert torch.equal(found, found.mT), "both halves hold the same values"
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_double_precision(dtype: str) -> None:
    check((2, 33, 70), DTYPES[dtype], dtype == "fp16")


@pytest.mark.slow
@pytest.mark.kernels
def test_every_shape(record_property: Any) -> None:
    before = TOTAL.copy()
    for shape in SHAPES:
        for dtype in DTYPES.values():
            for adds in (False, True):
                found = check(shape, dtype, adds)
                if shape[0] < 64:
                    assert torch.equal(found, check(shape, dtype, adds, Order(shape[1], warps=True)))
    done = TOTAL - before
    record_property("log", f"symmetric products, sm_80: {done['kernels']} kernels, {done['launches']} launches")
