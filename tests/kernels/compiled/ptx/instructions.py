"""From an instruction's text to what it does to registers and memory: `decode` builds a function for each.

A builder takes from its instruction what it understands, by name. What nobody took, an unknown modifier or one operand
too many, is an error, so that nothing is ever ignored.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptx.parse import Instruction, Program, PtxError

Step = Callable[[Any, Any], None]
"""Executes an instruction: of a machine, for some threads."""
Reader = Callable[[Any, Any], Any]
Writer = Callable[[Any, Any, Any], None]

BITS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64}
BITS |= {f"{sign}{bits}": bits for sign in "us" for bits in (8, 16, 32, 64)}
BITS |= {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32}
TYPES: dict[str, Any] = {
    name: np.dtype(f"{'i' if name[0] == 's' else 'u'}{bits // 8}") for name, bits in BITS.items() if bits > 1
}
TYPES |= {"pred": np.dtype(np.bool_), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
BUILDERS: dict[str, Callable[["Code"], "Step | Branch"]] = {}


@dataclass(frozen=True)
class Branch:
    """What decides where threads go on: "jump", "table", "return" or "barrier"."""

    kind: str
    targets: tuple[int, ...] = ()
    register: int = -1
    """Of the index into the targets."""


@dataclass(frozen=True)
class Decoded:
    """A program as functions."""

    steps: tuple[Step | Branch, ...]
    guards: tuple[tuple[int, bool] | None, ...]
    """Register of the predicate, and whether it is negated."""
    inexact: tuple[str, ...]
    """Instructions whose result PTX leaves open: approximations, flushed subnormals."""
    shared_word: int
    """Bytes of the shortest access to shared memory."""
    arbitrary: frozenset[int]
    """Registers that no instruction writes, or that one writes under a guard: where they were not written they are
    undefined, as nothing depends on them, or so the compiler claims."""


def builder(*names: str) -> Callable[[Callable[["Code"], "Step | Branch"]], Any]:
    """Register what builds instructions of some names."""

    def register(function: Callable[["Code"], "Step | Branch"]) -> Any:
        BUILDERS.update(dict.fromkeys(names, function))
        return function

    return register


class Code:
    """An instruction while it is decoded."""

    def __init__(self, instruction: Instruction, program: Program, numbers: dict[str, int]) -> None:
        self.name, self.text, self.program = instruction.name, instruction.text, program
        self.modifiers, self.operands = list(instruction.modifiers), instruction.operands
        self.numbers = numbers
        self.used: set[int] = set()
        self.written: set[int] = set()
        """Registers."""
        self.inexact = False
        self.shared_word = 16
        """Bytes of an access to shared memory."""

    def fail(self, why: str) -> PtxError:
        return PtxError(f"{why}: {self.text}")

    def has(self, *names: str) -> bool:
        """Take a modifier where it is there, of several names any number."""
        there = [name for name in names if name in self.modifiers]
        for name in there:
            self.modifiers.remove(name)
        return bool(there)

    def one_of(self, *names: str) -> str:
        """Take the modifier that must be one of these."""
        for name in names:
            if name in self.modifiers:
                self.modifiers.remove(name)
                return name
        raise self.fail(f"one of {', '.join(names)} is wanted")

    def need(self, *names: str) -> None:
        """Take modifiers that must all be there."""
        for name in names:
            self.one_of(name)

    def kind(self) -> str:
        """Take the last modifier, the type."""
        if not self.modifiers or self.modifiers[-1] not in TYPES:
            raise self.fail("unknown type")
        return self.modifiers.pop()

    def finish(self) -> None:
        """Raises PtxError where something of the instruction was not understood."""
        if self.modifiers:
            raise self.fail(f"unknown modifier {self.modifiers[0]}")
        if len(self.used) != len(self.operands):
            raise self.fail("a wrong number of operands")

    # Operands

    def operand(self, index: int) -> str:
        if index >= len(self.operands):
            raise self.fail("a wrong number of operands")
        self.used.add(index)
        return self.operands[index]

    def source(self, index: int, kind: str, narrows: bool = False) -> Reader:
        """What reads an operand as values of a type; `narrows`: the lower bits of a wider register."""
        return self.reader(self.operand(index), kind, narrows)

    def target(self, index: int, kind: str, widens: bool = False) -> Writer:
        """What writes values of a type to an operand; `widens`: into a wider register."""
        return self.writer(self.operand(index), kind, widens)

    def listed(self, index: int) -> list[str]:
        """The operands of a vector {a, b}, or the one that is there."""
        operand = self.operand(index)
        return [part.strip() for part in operand.strip("{} ").split(",")]

    def register(self, operand: str) -> int:
        if operand not in self.numbers:
            raise self.fail(f"unknown operand {operand}")
        return self.numbers[operand]

    def reader(self, operand: str, kind: str, narrows: bool = False) -> Reader:
        dtype = TYPES[kind]
        if operand in self.numbers:
            number, bits = self.numbers[operand], BITS[self.program.registers[operand]]
            if bits == BITS[kind]:
                return lambda machine, threads: machine.read(number, threads).view(dtype)
            if narrows and bits > BITS[kind]:
                return lambda machine, threads: machine.read(number, threads).astype(f"u{dtype.itemsize}").view(dtype)
            raise self.fail(f"{operand} has {bits} bits")
        if operand.startswith("%"):
            if BITS[kind] != 32:
                raise self.fail(f"{operand} has 32 bits")
            return lambda machine, threads: machine.special[operand][threads].view(dtype)
        value = self.constant(operand, kind)
        return lambda machine, threads: value

    def constant(self, operand: str, kind: str) -> Any:
        """A number in the instruction's text, as a NumPy scalar."""
        dtype = TYPES[kind]
        if operand in self.program.shared:
            return dtype.type(0)
        try:
            if operand.startswith(("0f", "0d")):
                bits = int(operand[2:], 16)
                if BITS[kind] != 4 * len(operand[2:]):
                    raise self.fail(f"{operand} is no {kind}")
            else:
                bits = int(operand.removesuffix("U"), 0)
        except ValueError:
            raise self.fail(f"unknown operand {operand}") from None
        if kind == "pred":
            return np.bool_(bits)
        return np.array(bits & ((1 << BITS[kind]) - 1), f"u{dtype.itemsize}").view(dtype)[()]

    def writer(self, operand: str, kind: str, widens: bool = False) -> Writer:
        dtype = TYPES[kind]
        if operand == "_":
            return lambda machine, threads, values: None
        number = self.register(operand)
        self.written.add(number)
        bits = BITS[self.program.registers[operand]]
        if kind == "pred" and bits == 1:
            return lambda machine, threads, values: machine.write(number, threads, values)
        if bits == BITS[kind]:
            raw = f"u{dtype.itemsize}"
            return lambda machine, threads, values: machine.write(number, threads, values.view(raw))
        if widens and bits > BITS[kind]:
            sign = "i" if kind[0] == "s" else "u"
            wide = f"{sign}{bits // 8}"
            return lambda machine, threads, values: machine.write(
                number, threads, values.astype(wide).view(f"u{bits // 8}")
            )
        raise self.fail(f"{operand} has {bits} bits")

    def address(self, index: int, kind: str) -> Reader:
        """What reads [register + offset] or [parameter]."""
        inside = self.operand(index).strip("[] ")
        base, _, offset = (part.strip() for part in inside.partition("+"))
        read = self.reader(base, kind)
        distance = TYPES[kind].type(0) + np.array(int(offset or "0", 0), np.int64).astype(TYPES[kind])
        if base in self.numbers:
            return (lambda machine, threads: read(machine, threads) + distance) if distance else read
        return lambda machine, threads: np.full(len(numbers(threads)), read(machine, threads) + distance)


@functools.lru_cache(maxsize=512)
def decode(program: Program) -> Decoded:
    """All instructions of a program. Raises PtxError at the first that is not understood completely."""
    from ptx import exchange, integers, moves  # noqa: F401 - each registers its builders, and imports this file

    numbers = {name: number for number, name in enumerate(program.registers)}
    steps: list[Step | Branch] = []
    guards: list[tuple[int, bool] | None] = []
    inexact: list[str] = []
    word, written, guarded = 16, set(), set()
    for instruction in program.instructions:
        code = Code(instruction, program, numbers)
        if instruction.name not in BUILDERS:
            raise code.fail("unknown instruction")
        steps.append(BUILDERS[instruction.name](code))
        code.finish()
        guards.append(None if instruction.guard is None else (code.register(instruction.guard), instruction.negated))
        if code.inexact:
            inexact.append(instruction.text)
        word = min(word, code.shared_word)
        written |= code.written
        guarded |= code.written if instruction.guard else set()
    arbitrary = frozenset((set(numbers.values()) - written) | guarded)
    return Decoded(tuple(steps), tuple(guards), tuple(inexact), word, arbitrary)


@builder("bra")
def _jump(code: Code) -> Branch:
    code.has("uni")
    label = code.operand(0)
    if label not in code.program.labels:
        raise code.fail("unknown label")
    return Branch("jump", (code.program.labels[label],))


@builder("brx")
def _table(code: Code) -> Branch:
    code.need("idx")
    register, table = code.register(code.operand(0)), code.operand(1)
    return Branch("table", code.program.tables[table], register)


@builder("ret")
def _return(code: Code) -> Branch:
    return Branch("return")


@builder("bar", "barrier")
def _barrier(code: Code) -> Step | Branch:
    if code.has("warp"):
        return _warp_barrier(code)
    code.need("sync")
    code.has("aligned", "cta")
    if code.operand(0) != "0" or (len(code.operands) > 1 and code.operand(1) != str(code.program.threads)):
        raise code.fail("a barrier of another number, or of a part of a block")
    return Branch("barrier")


def _warp_barrier(code: Code) -> Step:
    """The threads of a warp are in step anyway."""
    code.need("sync")
    if code.constant(code.operand(0), "u32") != 0xFFFFFFFF:
        raise code.fail("a barrier of a part of a warp")

    def step(machine: Any, threads: Any) -> None:
        whole_warps(threads)

    return step


def whole_warps(threads: Any) -> Any:
    """The first thread of each warp of a group, which must have all threads of each."""
    if isinstance(threads, slice):
        if threads.start % 32 == 0 and threads.stop % 32 == 0:
            return np.arange(threads.start, threads.stop, 32)
    elif len(threads) % 32 == 0:
        first = threads[::32]
        if (first % 32 == 0).all() and (threads.reshape(-1, 32) == first[:, None] + np.arange(32)).all():
            return first
    raise PtxError("a part of a warp takes part in what needs the whole")


def numbers(threads: Any) -> Any:
    """A group's threads as numbers."""
    return np.arange(threads.start, threads.stop) if isinstance(threads, slice) else threads
