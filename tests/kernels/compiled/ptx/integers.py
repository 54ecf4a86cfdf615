"""Instructions of whole numbers and bits."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.instructions import BITS, TYPES, Branch, Code, Step, builder
from ptx.reals import real

Function = Callable[..., Any]


def elementwise(code: Code, function: Function, result: str, *kinds: str) -> Step:
    """A step that applies a function of arrays to the operands after the first."""
    write = code.target(0, result)
    reads = [code.source(index, kind) for index, kind in enumerate(kinds, 1)]
    if len(reads) == 1:
        one = reads[0]
        return lambda machine, threads: write(machine, threads, function(one(machine, threads)))
    if len(reads) == 2:
        first, second = reads
        return lambda machine, threads: write(
            machine, threads, function(first(machine, threads), second(machine, threads))
        )

    def step(machine: Any, threads: Any) -> None:
        write(machine, threads, function(*(read(machine, threads) for read in reads)))

    return step


def divide(a: Any, b: Any) -> Any:
    """Rounded towards zero; by zero all bits are 1, as on NVIDIA's GPUs."""
    if np.asarray(a).dtype.kind == "u":
        return np.where(b == 0, np.asarray(-1).astype(a.dtype), a // np.where(b == 0, b.dtype.type(1), b))
    divisor = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // divisor
    quotient = quotient + ((a - quotient * divisor != 0) & ((a < 0) != (divisor < 0))).astype(a.dtype)
    return np.where(b == 0, a.dtype.type(-1), quotient)


def remainder(a: Any, b: Any) -> Any:
    """With the sign of the dividend."""
    return a - divide(a, b) * b


SIMPLE: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "min": np.minimum,
    "max": np.maximum,
    "div": divide,
    "rem": remainder,
    "neg": lambda a: -a,
    "abs": np.abs,
}


@builder("add", "sub", "min", "max", "div", "rem", "neg", "abs")
def _simple(code: Code) -> Step:
    if code.modifiers[-1] in ("s16x2", "u16x2"):
        return _halves(code)
    kind = code.kind()
    if kind[0] in "fb":
        return real(code, kind)
    operands = 1 if code.name in ("neg", "abs") else 2
    function = SIMPLE[code.name]
    if code.name in ("min", "max") and kind[0] == "s" and code.has("relu"):
        return elementwise(code, lambda a, b: np.maximum(function(a, b), 0), kind, kind, kind)
    return elementwise(code, function, kind, *[kind] * operands)


def _halves(code: Code) -> Step:
    """Two numbers of 16 bits in a register, each by itself."""
    kind = TYPES[code.modifiers.pop().removesuffix("x2")]
    function = SIMPLE[code.name]

    def both(a: Any, b: Any) -> Any:
        parts = [function(*((x >> np.uint32(shift)).astype(np.uint16).view(kind) for x in (a, b))) for shift in (0, 16)]
        low, high = (part.view(np.uint16).astype(np.uint32) for part in parts)
        return low | (high << np.uint32(16))

    return elementwise(code, both, "b32", "b32", "b32")


def upper_half(a: Any, b: Any) -> Any:
    """The upper 64 bits of products of 128, from four products of halves."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    middle = (a >> half) * (b & low) + ((a & low) * (b & low) >> half)
    other = (a & low) * (b >> half) + (middle & low)
    return (a >> half) * (b >> half) + (middle >> half) + (other >> half)


@builder("mul", "mad")
def _multiply(code: Code) -> Step:
    kind = code.kind()
    if kind[0] in "fb":
        return real(code, kind)
    part = code.one_of("lo", "hi", "wide")
    bits, dtype = BITS[kind], TYPES[kind]
    wide = np.dtype(f"{dtype.kind}{dtype.itemsize * 2}") if bits < 64 else None
    if part != "lo" and wide is None and (kind, part) != ("u64", "hi"):
        raise code.fail("128 bits")
    result = f"{kind[0]}{2 * bits}" if part == "wide" else kind

    def product(a: Any, b: Any) -> Any:
        if part == "lo":
            return a * b
        if wide is None:
            return upper_half(a, b)
        full = a.astype(wide) * b.astype(wide)
        return full if part == "wide" else (full >> full.dtype.type(bits)).astype(dtype)

    if code.name == "mul":
        return elementwise(code, product, result, kind, kind)
    return elementwise(code, lambda a, b, c: product(a, b) + c, result, kind, kind, result)


LOGIC: dict[str, Function] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}


@builder("and", "or", "xor", "not")
def _logic(code: Code) -> Step:
    kind = code.kind()
    return elementwise(code, LOGIC[code.name], kind, *[kind] * (1 if code.name == "not" else 2))


@builder("lop3")
def _table_of_three(code: Code) -> Step:
    """Any function of three bits, by its table."""
    code.need("b32")
    table = int(code.operand(4), 0)

    def apply(a: Any, b: Any, c: Any) -> Any:
        result = np.uint32(0)
        for row in range(8):
            if table >> row & 1:
                result = result | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
        return result

    return elementwise(code, apply, "b32", "b32", "b32", "b32")


@builder("shl", "shr")
def _shift(code: Code) -> Step:
    kind = code.kind()
    dtype, bits = TYPES[kind], BITS[kind]

    def apply(a: Any, distance: Any) -> Any:
        inside = np.minimum(distance, bits - 1).astype(dtype)
        if code.name == "shr" and dtype.kind == "i":
            return a >> inside
        shifted = a << inside if code.name == "shl" else a >> inside
        return np.where(distance < bits, shifted, dtype.type(0))

    return elementwise(code, apply, kind, kind, "u32")


@builder("shf")
def _funnel(code: Code) -> Step:
    """Shift of two registers as one of 64 bits."""
    direction, mode = code.one_of("l", "r"), code.one_of("wrap", "clamp")
    code.need("b32")

    def apply(low: Any, high: Any, distance: Any) -> Any:
        distance = distance & np.uint32(31) if mode == "wrap" else np.minimum(distance, np.uint32(32))
        both = (np.asarray(high).astype(np.uint64) << np.uint64(32)) | low
        if direction == "l":
            return ((both << distance.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)
        return (both >> distance.astype(np.uint64)).astype(np.uint32)

    return elementwise(code, apply, "b32", "b32", "b32", "u32")


@builder("bfe")
def _extract(code: Code) -> Step:
    """`length` bits from `first` on; beyond the end the sign, or zeros."""
    kind = code.kind()
    bits, dtype = BITS[kind], TYPES[kind]
    unsigned = np.dtype(f"u{bits // 8}")

    def apply(a: Any, first: Any, length: Any) -> Any:
        first, length = (np.minimum(number & np.uint32(255), bits).astype(unsigned) for number in (first, length))
        # Shifted up to the end and down again, which for signed types repeats the field's last bit.
        length = np.minimum(length, (bits - first).astype(unsigned)) if dtype.kind == "u" else length
        last = np.minimum(first + length, bits).astype(unsigned)
        up = np.minimum(bits - last, bits - 1).astype(unsigned)
        down = np.minimum(up + first, bits - 1).astype(unsigned)
        found = (np.asarray(a).view(unsigned) << up).view(dtype) >> down.astype(dtype)
        return np.where((length == 0) | ((first == bits) & (dtype.kind == "u")), dtype.type(0), found)

    return elementwise(code, apply, kind, kind, "u32", "u32")


@builder("popc", "clz", "brev")
def _count(code: Code) -> Step:
    kind = code.kind()
    if kind != "b32":
        raise code.fail("unknown type")
    functions: dict[str, Function] = {
        "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
        "clz": lambda a: (32 - np.ceil(np.log2(np.asarray(a).astype(np.float64) + 1))).astype(np.uint32),
        "brev": lambda a: sum(((a >> np.uint32(bit)) & np.uint32(1)) << np.uint32(31 - bit) for bit in range(32)),
    }
    return elementwise(code, functions[code.name], "b32", "b32")


@builder("prmt")
def _permute(code: Code) -> Step:
    """Each byte of the result is one of eight, or its sign."""
    code.need("b32")

    def apply(a: Any, b: Any, selector: Any) -> Any:
        both = np.asarray(a).astype(np.uint64) | (np.asarray(b).astype(np.uint64) << np.uint64(32))
        result = np.uint32(0)
        for byte in range(4):
            choice = (selector >> np.uint32(4 * byte)) & np.uint32(15)
            shift = (np.asarray(choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64)
            value = ((both >> shift) & np.uint64(255)).astype(np.uint32)
            signs = np.where(value & np.uint32(128), np.uint32(255), np.uint32(0))
            result = result | (np.where(choice & np.uint32(8), signs, value) << np.uint32(8 * byte))
        return result

    return elementwise(code, apply, "b32", "b32", "b32", "b32")


COMPARE: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


@builder("setp")
def _compare(code: Code) -> Step | Branch:
    """Into one predicate; `.and`, `.or` and `.xor` join another."""
    kind = code.kind()
    comparison = code.one_of(*COMPARE, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
    joins = [name for name in ("and", "or", "xor") if code.has(name)]
    write, first, second = code.target(0, "pred"), code.source(1, kind), code.source(2, kind)
    joined = code.source(3, "pred") if joins else None
    if kind in ("f16", "bf16"):
        raise code.fail("unknown type")

    def compare(a: Any, b: Any) -> Any:
        if comparison in COMPARE:
            # A comparison is false where there is NaN; NumPy's "not equal" is true.
            return COMPARE[comparison](a, b) & (a == a) & (b == b) if comparison == "ne" else COMPARE[comparison](a, b)
        unordered = (a != a) | (b != b)
        if comparison in ("num", "nan"):
            return unordered == (comparison == "nan")
        return COMPARE[comparison[:-1]](a, b) | unordered

    def step(machine: Any, threads: Any) -> None:
        found = compare(first(machine, threads), second(machine, threads))
        if joined is not None:
            found = LOGIC[joins[0]](found, joined(machine, threads))
        write(machine, threads, found)

    return step
