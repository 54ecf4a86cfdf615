"""Floating-point arithmetic as PTX defines it, on NumPy arrays.

What PTX computes exactly and rounds once is rounded once. What it approximates (`.approx`, `.full`) is the exact result
moved by up to the error that the PTX manual states: how far follows from the operands' bits, so that, as on a GPU, the
same operands give the same result in any kernel.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray
"""Of any type: the functions below say which."""

TINY = np.finfo(np.float32).tiny


def fused(a: Array, b: Array, c: Array) -> Array:
    """a·b + c of fp32, rounded once.

    The product of two fp32 numbers is exact in fp64. The sum is rounded to fp64 towards the odd neighbour (Boldo and
    Melquiond 2008), which loses nothing that the rounding to fp32 needs: fp64 has more than two digits more.
    """
    product = a.astype(np.float64) * b
    addend = c.astype(np.float64)
    return round_to_odd(product, addend).astype(np.float32)


def round_to_odd(a: Array, b: Array) -> Array:
    """a + b of fp64: where it is inexact, the neighbour whose last digit is odd."""
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)  # Knuth's two-sum
    bits = total.view(np.int64)
    even = (error != 0) & np.isfinite(error) & (bits & 1 == 0)
    if even.any():
        away = (error > 0) == (total > 0)
        bits = np.where(even, bits + np.where(away, 1, -1), bits)
    return bits.view(np.float64)


def flush(x: Array) -> Array:
    """`.ftz`: subnormal fp32 numbers become zeros of the same sign."""
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


def from_bf16(bits: Array) -> Array:
    """fp32 of uint16."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: Array) -> Array:
    """uint16 of fp32, to the nearest, ties to even; NaN becomes PTX's canonical one."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def from_fp16(bits: Array) -> Array:
    """fp32 of uint16."""
    return bits.view(np.float16).astype(np.float32)


def to_fp16(x: Array) -> Array:
    """uint16 of fp32, to the nearest, ties to even; NaN becomes PTX's canonical one."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def minimum(a: Array, b: Array) -> Array:
    """PTX's `min`: a number rather than NaN, -0 below +0."""
    smaller = np.fmin(a, b)
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), smaller)


def maximum(a: Array, b: Array) -> Array:
    """PTX's `max`: a number rather than NaN, +0 above -0."""
    larger = np.fmax(a, b)
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), larger)


def saturate(x: Array) -> Array:
    """`.sat`: between 0 and 1, NaN becomes 0."""
    return np.where(np.isnan(x), np.float32(0), np.clip(x, np.float32(0), np.float32(1)))


APPROXIMATE: dict[tuple[str, str], tuple[Callable[..., Array], float]] = {
    ("div", "full"): (lambda a, b: a / b, 2.0**-22),
    ("div", "approx"): (lambda a, b: a / b, 2.0**-22),
    ("rcp", "approx"): (lambda a: 1 / a, 2.0**-23),
    ("sqrt", "approx"): (np.sqrt, 2.0**-23),
    ("rsqrt", "approx"): (lambda a: 1 / np.sqrt(a), 2.0**-22.9),
    ("ex2", "approx"): (np.exp2, 2.0**-22),
    ("lg2", "approx"): (np.log2, 2.0**-22),
    ("tanh", "approx"): (np.tanh, 2.0**-11),
}
"""By instruction and modifier: the exact function of fp64, and the largest relative error of the PTX manual (section
"floating point instructions"; two units in the last place are 2⁻²² at most)."""


def approximate(name: str, modifier: str, *operands: Array) -> Array:
    """An approximated function of fp32, off by as much as PTX allows or less."""
    function, error = APPROXIMATE[name, modifier]
    exact = function(*(operand.astype(np.float64) for operand in operands))
    mixed = np.uint32(len(name))
    for operand in operands:
        mixed = (mixed ^ operand.view(np.uint32)) * np.uint32(0x9E3779B1)
        mixed ^= mixed >> np.uint32(15)
    share = (mixed >> np.uint32(8)).astype(np.float64) * 2.0**-23 - 1  # -1 … 1
    return (exact * (1 + error * share)).astype(np.float32)
