"""Instructions of floating-point numbers, and conversions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx import arithmetic
from ptx.instructions import BITS, TYPES, Code, Step, builder

EXACT: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
    "div": (2, lambda a, b: a / b),
    "fma": (3, arithmetic.fused),
    "min": (2, arithmetic.minimum),
    "max": (2, arithmetic.maximum),
    "neg": (1, np.negative),
    "abs": (1, np.abs),
    "sqrt": (1, np.sqrt),
    "rcp": (1, lambda a: 1 / a),
}
"""Number of operands and function; each rounds once, to the nearest, as NumPy does in the operands' type."""
UNROUNDED = ("min", "max", "neg", "abs")
CONTRACTED = ("add", "sub", "mul")
"""Without `.rn` the assembler may join a product and a sum into a fused multiply-add."""


def real(code: Code, kind: str) -> Step:
    """Arithmetic of fp32 and fp64."""
    if kind not in ("f32", "f64"):
        raise code.fail("unknown type")
    name = code.name
    flushes = kind == "f32" and code.has("ftz")
    approximation = next((name for name in ("approx", "full") if code.has(name)), None)
    code.inexact |= flushes or approximation is not None
    if approximation is not None:
        if (name, approximation) not in arithmetic.APPROXIMATE or kind != "f32":
            raise code.fail("unknown approximation")
        operands = 2 if name == "div" else 1

        def function(*values: Any) -> Any:
            return arithmetic.approximate(name, str(approximation), *values)
    else:
        if name == "fma" and kind == "f64":
            raise code.fail("a product of 106 bits")
        if name not in EXACT:
            raise code.fail("unknown without .approx")
        rounds = name not in UNROUNDED and code.has("rn")
        if not rounds and name not in (*UNROUNDED, *CONTRACTED):
            raise code.fail("the rounding is missing")
        code.inexact |= not rounds and name in CONTRACTED
        operands, function = EXACT[name]
    saturates = code.has("sat")
    write = code.target(0, kind)
    reads = [code.source(index + 1, kind) for index in range(operands)]

    def step(machine: Any, threads: Any) -> None:
        values = [read(machine, threads) for read in reads]
        if flushes:
            values = [arithmetic.flush(value) for value in values]
        result = function(*values)
        if saturates:
            result = arithmetic.saturate(result)
        write(machine, threads, arithmetic.flush(result) if flushes else result)

    if flushes or saturates:
        return step
    if operands == 2:
        first, second = reads
        return lambda machine, threads: write(
            machine, threads, function(first(machine, threads), second(machine, threads))
        )
    return step


@builder("fma", "sqrt", "rcp", "rsqrt", "ex2", "lg2", "tanh")
def _real(code: Code) -> Step:
    return real(code, code.kind())


WHOLE: dict[str, Callable[[Any], Any]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
HALVES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "f16": (arithmetic.from_fp16, arithmetic.to_fp16),
    "bf16": (arithmetic.from_bf16, arithmetic.to_bf16),
}


@builder("cvt")
def _convert(code: Code) -> Step:
    """Between any two types, as the last two modifiers name them."""
    source = code.kind()
    result = code.kind()
    if result in ("f16x2", "bf16x2"):
        return _convert_two(code, source, result)
    rounding = next((name for name in (*WHOLE, "rn", "rz", "rm", "rp") if code.has(name)), None)
    if rounding in ("rz", "rm", "rp"):
        raise code.fail("unknown rounding")
    write = code.target(0, result, widens=True)
    read = code.source(1, source, narrows=True)
    convert = conversion(code, source, result, rounding)
    return lambda machine, threads: write(machine, threads, convert(read(machine, threads)))


def _convert_two(code: Code, source: str, result: str) -> Step:
    """Two fp32 numbers into one register, the first into its upper half."""
    if source != "f32":
        raise code.fail("unknown type")
    code.need("rn")
    narrow = HALVES[result.removesuffix("x2")][1]
    write, high, low = code.target(0, "b32"), code.source(1, "f32"), code.source(2, "f32")

    def step(machine: Any, threads: Any) -> None:
        upper, lower = (np.asarray(narrow(read(machine, threads))).astype(np.uint32) for read in (high, low))
        write(machine, threads, (upper << np.uint32(16)) | lower)

    return step


def conversion(code: Code, source: str, result: str, rounding: str | None) -> Callable[[Any], Any]:
    """The function from values of one type to those of another."""
    if source in HALVES:
        widen = HALVES[source][0]
        if result == "f32" and rounding is None:
            return widen
        raise code.fail("unknown types")
    if result in HALVES:
        if source == "f32" and rounding == "rn":
            return HALVES[result][1]
        raise code.fail("unknown types")
    dtype = TYPES[result]
    if source[0] == "f" and result[0] == "f":
        if rounding in WHOLE and source == result:
            return WHOLE[rounding]
        if (source, result, rounding) in (("f32", "f64", None), ("f64", "f32", "rn")):
            return lambda values: values.astype(dtype)
        raise code.fail("unknown types")
    if source[0] == "f":
        if rounding not in WHOLE or BITS[result] > 32:
            raise code.fail("unknown types")
        to_whole = WHOLE[rounding]
        limits = np.iinfo(dtype)
        # Beyond the limits the nearest one, and 0 for NaN.
        return lambda values: np.clip(
            np.nan_to_num(to_whole(values.astype(np.float64)), posinf=np.inf, neginf=-np.inf), limits.min, limits.max
        ).astype(dtype)
    if result[0] == "f":
        if rounding != "rn":
            raise code.fail("the rounding is missing")
        return lambda values: values.astype(dtype)
    if rounding is not None:
        raise code.fail("unknown types")
    return lambda values: values.astype(dtype)
