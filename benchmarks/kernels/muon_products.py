"""Muon's products on a GPU, symmetric ones at half the multiplications against whole ones, and a whole step's.

Shapes are those of the speed recipes' filters and of the report's network, batched as `orthogonalise` batches them.
"""

from dataclasses import dataclass
from typing import Any

import torch

from fastres.bench.timing import DRY, GPU, Call, compare, measure
from fastres.engine.cuda_graph import side_stream
from fastres.kernels.symmetric import symmetric_product
from fastres.optim.muon import COEFFICIENTS, orthogonalise


@dataclass(frozen=True)
class ProductCase:
    """A batch of matrices [count, rows, columns]."""

    count: int
    rows: int
    columns: int

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.count}x{self.rows}x{self.columns}"


CASES = (
    ProductCase(1, 64, 576),
    ProductCase(5, 256, 2304),
    ProductCase(4, 384, 3456),
    ProductCase(9, 360, 3240),
    ProductCase(3, 512, 4608),
)
DRY_CASES = (ProductCase(2, 20, 50),)


def time_case(case: ProductCase, device: torch.device, *, dry: bool = False) -> dict[str, Any]:
    """Figures for JSON: microseconds of XXᵀ and b·G + c·G² together, whole (`bmm`, `baddbmm`) and symmetric, and of the
    whole orthogonalisation by 3 steps of as many matrices as the case has; `symmetric_error`, relative to fp64, and
    whether it is at most twice that of the whole products."""
    # A dry run is the interpreter's, which multiplies the bit patterns of bf16.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.count, case.rows, case.columns, generator=generator)
    x = (x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)).to(device, torch.float16 if dry else torch.bfloat16)
    _, b, c = COEFFICIENTS

    def whole() -> torch.Tensor:
        gram = x @ x.mT
        return torch.baddbmm(gram, gram, gram, beta=b, alpha=c)

    def symmetric() -> torch.Tensor:
        gram = symmetric_product(x)
        return symmetric_product(gram, alpha=c, c=gram, beta=b)

    exact = x.double() @ x.double().mT
    exact = b * exact + c * exact @ exact
    errors = {name: ((call().double() - exact).norm() / exact.norm()).item() for name, call in
              (("whole", whole), ("symmetric", symmetric))}  # fmt: skip
    updates = [matrix.float() for matrix in x]
    calls: dict[str, list[Call]] = {
        "symmetric": [symmetric],
        "whole": [whole],
        "orthogonalise": [lambda: orthogonalise(updates, 3)],
    }
    with side_stream(device):
        timings = measure(calls, device, DRY if dry else GPU)
    ratio = compare(timings["symmetric"].samples, timings["whole"].samples)
    return {
        "case": case.name,
        "rows": case.rows,
        "microseconds": {name: timing.seconds * 1e6 for name, timing in timings.items()},
        "symmetric_is_times_as_fast": ratio.median,
        "symmetric_error": errors["symmetric"],
        "passed": errors["symmetric"] <= 2 * errors["whole"],
    }


def least_rows(figures: list[dict[str, Any]]) -> int | None:
    """The least number of rows from which symmetric products won in every case measured; None where they never did."""
    least = None
    for each in sorted(figures, key=lambda each: each["rows"], reverse=True):
        if each["symmetric_is_times_as_fast"] <= 1:
            break
        least = each["rows"]
    return least
