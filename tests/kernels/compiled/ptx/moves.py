"""Instructions that move values: constants, registers, parameters, choices."""

from typing import Any

import numpy as np

from ptx.instructions import BITS, TYPES, Code, Step, builder


@builder("mov")
def _move(code: Code) -> Step:
    kind = code.kind()
    if code.operands[0].startswith("{"):
        return _unpack(code, kind)
    if code.operands[1].startswith("{"):
        return _pack(code, kind)
    write, read = code.target(0, kind), code.source(1, kind)
    return lambda machine, threads: write(machine, threads, read(machine, threads))


def _parts(code: Code, index: int, kind: str) -> tuple[list[str], str]:
    parts = code.listed(index)
    return parts, f"b{BITS[kind] // len(parts)}"


def _unpack(code: Code, kind: str) -> Step:
    parts, part = _parts(code, 0, kind)
    read, dtype, bits = code.source(1, kind), TYPES[part], BITS[part]
    writes = [code.writer(name, part) for name in parts]

    def step(machine: Any, threads: Any) -> None:
        whole = read(machine, threads)
        for number, write in enumerate(writes):
            write(machine, threads, (whole >> whole.dtype.type(number * bits)).astype(dtype))

    return step


def _pack(code: Code, kind: str) -> Step:
    parts, part = _parts(code, 1, kind)
    write, dtype, bits = code.target(0, kind), TYPES[kind], BITS[part]
    reads = [code.reader(name, part) for name in parts]

    def step(machine: Any, threads: Any) -> None:
        whole = dtype.type(0)
        for number, read in enumerate(reads):
            whole = whole | (np.asarray(read(machine, threads)).astype(dtype) << dtype.type(number * bits))
        write(machine, threads, whole)

    return step


@builder("selp")
def _select(code: Code) -> Step:
    kind = code.kind()
    write, choose = code.target(0, kind), code.source(3, "pred")
    true, false = code.source(1, kind), code.source(2, kind)

    def step(machine: Any, threads: Any) -> None:
        write(machine, threads, np.where(choose(machine, threads), true(machine, threads), false(machine, threads)))

    return step


@builder("copysign")
def _copy_sign(code: Code) -> Step:
    """The second operand's magnitude with the first one's sign."""
    kind = code.kind()
    write, sign, size = code.target(0, kind), code.source(1, kind), code.source(2, kind)
    return lambda machine, threads: write(machine, threads, np.copysign(size(machine, threads), sign(machine, threads)))


@builder("createpolicy")
def _policy(code: Code) -> Step:
    """How long the second-level cache keeps something, which changes no value."""
    code.need("fractional")
    code.one_of("L2_evict_first", "L2_evict_last", "L2_evict_normal")
    write = code.target(0, code.kind())
    if code.operand(1) != "1.0":
        raise code.fail("unknown fraction")
    return lambda machine, threads: write(machine, threads, np.uint64(0))
