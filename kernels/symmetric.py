"""Products that are symmetric: α·XXᵀ + β·C for a batch of matrices, at half the multiplications.

Of Muon's Newton–Schulz step (fastres/optim/muon.py), X ← aX + (b·G + c·G²)X with G = XXᵀ, two of three products are
symmetric: G itself, and b·G + c·G², since G² = GGᵀ. Only tiles on and below the diagonal are computed; each is stored
twice, the second time transposed. A tile on the diagonal is mirrored within itself: whatever multiplies, the result
equals its transpose to the bit.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastres.kernels.aot import machine_code
from fastres.kernels.batch_norm.routing import OPTIONS

TILES = {"small": (32, 64, 4), "large": (64, 64, 4)}
"""Side of a tile of the result, columns of X at a time, warps. The small one where the large one would leave most of a
GPU without work."""


@triton.jit
def symmetric_kernel(
    x, c, out, alpha, beta, rows, columns,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out = alpha·x·xᵀ + beta·c; grid (⌈rows/BLOCK⌉, the same, matrices).

    `x` is [B, rows, columns], `c` (None: no such term) and `out` are [B, rows, rows], all contiguous; `c` must be
    symmetric, as only half of it is read. Sums are fp32, rounded once to the output's type.
    """
    down, across = tl.program_id(0), tl.program_id(1)
    matrix = tl.program_id(2).to(tl.int64)
    if across <= down:
        first = down * BLOCK + tl.arange(0, BLOCK)
        second = across * BLOCK + tl.arange(0, BLOCK)
        x += matrix * rows * columns
        total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, columns, DEPTH):
            column = start + tl.arange(0, DEPTH)
            there = column[None, :] < columns
            places = x + first[:, None] * columns + column[None, :]
            left = tl.load(places, mask=(first[:, None] < rows) & there, other=0.0)
            places = x + second[:, None] * columns + column[None, :]
            right = tl.load(places, mask=(second[:, None] < rows) & there, other=0.0)
            total = tl.dot(left, tl.trans(right), total)
        total *= alpha
        inside = (first[:, None] < rows) & (second[None, :] < rows)
        offset = matrix * rows * rows + first[:, None] * rows + second[None, :]
        if c is not None:
            total += beta * tl.load(c + offset, mask=inside, other=0.0).to(tl.float32)
        value = total.to(out.dtype.element_ty)
        mirrored, turned = matrix * rows * rows + second[:, None] * rows + first[None, :], tl.trans(value)
        if across == down:
            # A product may add the terms of (i, j) and of (j, i) in different orders: one triangle gives both.
            tl.store(out + offset, value, mask=inside & (first[:, None] >= second[None, :]))
            tl.store(out + mirrored, turned, mask=inside & (first[None, :] > second[:, None]))
        else:
            tl.store(out + offset, value, mask=inside)
            tl.store(out + mirrored, turned, mask=(second[:, None] < rows) & (first[None, :] < rows))


def symmetric_product(x: Tensor, *, alpha: float = 1.0, c: Tensor | None = None, beta: float = 0.0) -> Tensor:
    """alpha·xxᵀ + beta·c of each of [B, m, n] matrices, bf16 or fp16: [B, m, m] of the same type.

    `c` is [B, m, m] and symmetric. On a CUDA device, or on the CPU in Triton's interpreter (TRITON_INTERPRET=1). Raises
    ValueError for other types and shapes.
    """
    if x.ndim != 3 or x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x must be bf16 or fp16 [B, m, n], not {x.dtype} {list(x.shape)}")
    count, rows, columns = x.shape
    if c is not None and (c.shape != (count, rows, rows) or c.dtype != x.dtype):
        raise ValueError(f"c must be {x.dtype} {[count, rows, rows]}, not {c.dtype} {list(c.shape)}")
    x, c = x.contiguous(), None if c is None else c.contiguous()
    out = torch.empty(count, rows, rows, dtype=x.dtype, device=x.device)
    block, depth, warps = TILES["large" if count * (rows // 64) ** 2 >= 256 else "small"]
    tiles = triton.cdiv(rows, block)
    if count and rows:
        options = {} if triton.knobs.runtime.interpret else {"num_warps": warps, **OPTIONS}
        symmetric_kernel[tiles, tiles, count](
            x, c, out, alpha, beta, rows, columns, BLOCK=block, DEPTH=depth, **options
        )  # fmt: skip
    return out


@dataclass(frozen=True)
class Configuration:
    """Compile-time choices of the kernel."""

    dtype: str
    """`bf16` or `fp16`."""
    tile: str
    """Of TILES."""
    adds: bool
    """Whether there is a term c."""

    def __str__(self) -> str:
        return f"symmetric_kernel {self.dtype} {self.tile} {'plus c' if self.adds else 'alone'}"

    def build(self, target: str) -> Any:
        """Compile for a target: see `aot.machine_code`."""
        block, depth, warps = TILES[self.tile]
        constants: dict[str, Any] = {"BLOCK": block, "DEPTH": depth, **({} if self.adds else {"c": None})}
        types = {"fp32": ("alpha", "beta"), "i32": ("rows", "columns")}
        options = {"num_warps": warps, **OPTIONS}
        return machine_code(symmetric_kernel, target, constants, types, f"*{self.dtype}", options, types["i32"])


def configurations() -> list[Configuration]:
    """All of them."""
    return [Configuration(dtype, tile, adds) for dtype in ("bf16", "fp16") for tile in TILES for adds in (False, True)]


def representative() -> list[Configuration]:
    """One of them."""
    return [Configuration("bf16", "large", True)]
