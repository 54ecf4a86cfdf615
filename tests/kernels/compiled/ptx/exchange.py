"""Instructions by which threads reach memory and each other."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.instructions import BITS, TYPES, Code, Step, builder, numbers, whole_warps
from ptx.parse import PtxError
from ptx.reals import HALVES

HINTS = ("L1_evict_first", "L1_evict_last", "L1_no_allocate", "L2_cache_hint", "cg", "ca", "cs", "cv", "lu", "wb")
"""Which cache keeps what, which changes no value here, where caches are coherent."""
SPACES = ("global", "shared", "shared_cta", "param")


@builder("ld")
def _load(code: Code) -> Step:
    kind = code.kind()
    space = code.one_of(*SPACES)
    if space == "param":
        return _parameter(code, kind)
    writes = _vector(code, "acquire", 0, lambda name: code.writer(name, kind, widens=True))
    count = len(writes)
    size, dtype, text = BITS[kind] // 8, TYPES[kind], code.text
    if space == "global":
        address = code.address(1, "u64")

        def fetch(machine: Any, threads: Any) -> Any:
            return machine.memory.load(address(machine, threads), size, count, machine.warp[threads], text)
    else:
        address = code.address(1, "u32")
        code.shared_word = size

        def fetch(machine: Any, threads: Any) -> Any:
            places = address(machine, threads).astype(np.int64)
            return machine.shared.load(
                places, size, count, machine.block[threads], machine.warp_in_block[threads], text
            )

    def step(machine: Any, threads: Any) -> None:
        for write, words in zip(writes, fetch(machine, threads), strict=True):
            write(machine, threads, words.view(dtype))

    return step


def _parameter(code: Code, kind: str) -> Step:
    name, write = code.operand(1).strip("[] "), code.target(0, kind)
    if name not in code.program.parameters or BITS[code.program.parameters[name]] != BITS[kind]:
        raise code.fail("unknown parameter")
    unsigned = np.dtype(f"u{BITS[kind] // 8}").type
    mask = (1 << BITS[kind]) - 1
    return lambda machine, threads: write(machine, threads, unsigned(machine.parameters[name] & mask))


def _ordering(code: Code, *orders: str) -> None:
    """Scopes and memory orders: here every store is seen at once, in the order of the program."""
    code.has("gpu", "cta", "relaxed", "weak", *orders)


def _vector(code: Code, order: str, operand: int, register: Callable[[str], Any]) -> list[Any]:
    """The registers, one, two or four, that a load or a store of `order` names as its `operand`, each by `register`."""
    count = 4 if code.has("v4") else 2 if code.has("v2") else 1
    _ordering(code, order)
    hinted = "L2_cache_hint" in code.modifiers
    code.has(*HINTS)
    names = code.listed(operand)
    if len(names) != count:
        raise code.fail("a wrong number of registers")
    registers = [register(name) for name in names]
    if hinted:
        code.source(2, "b64")
    return registers


@builder("st")
def _store(code: Code) -> Step:
    kind = code.kind()
    space = code.one_of("global", "shared", "shared_cta")
    reads = _vector(code, "release", 1, lambda name: code.reader(name, kind, narrows=True))
    size, text = BITS[kind] // 8, code.text
    unsigned = np.dtype(f"u{size}")

    def words(machine: Any, threads: Any, length: int) -> list[Any]:
        return [np.broadcast_to(read(machine, threads), length).view(unsigned) for read in reads]

    if space == "global":
        address = code.address(0, "u64")

        def step(machine: Any, threads: Any) -> None:
            places = address(machine, threads)
            stored = words(machine, threads, len(places))
            machine.memory.store(places, stored, size, machine.warp[threads], text)

        return step
    address = code.address(0, "u32")
    code.shared_word = size

    def shared_step(machine: Any, threads: Any) -> None:
        places = address(machine, threads).astype(np.int64)
        stored = words(machine, threads, len(places))
        machine.shared.store(places, stored, size, machine.block[threads], machine.warp_in_block[threads], text)

    return shared_step


@builder("atom")
def _atomic(code: Code) -> Step:
    """Addition or exchange of 32 bits in global memory."""
    kind = code.kind()
    code.need("global")
    operation = code.one_of("add", "exch")
    _ordering(code, "acquire", "release", "acq_rel")
    if kind not in ("u32", "s32", "b32"):
        raise code.fail("unknown type")
    write, address, read, text = code.target(0, kind), code.address(1, "u64"), code.source(2, kind), code.text
    adds = operation == "add"

    def step(machine: Any, threads: Any) -> None:
        places = address(machine, threads)
        values = np.broadcast_to(read(machine, threads), len(places)).view(np.uint32)
        write(machine, threads, machine.memory.exchange(places, values, adds, text))

    return step


@builder("fence", "membar")
def _fence(code: Code) -> Step:
    """Every store is seen at once anyway."""
    code.has("acq_rel", "sc", "gpu", "cta", "gl")
    return lambda machine, threads: None


@builder("cp")
def _copy(code: Code) -> Step:
    """Asynchronous copies from global to shared memory: what is copied comes when somebody waits for it."""
    code.need("async")
    if code.has("commit_group"):
        return lambda machine, threads: machine.copies.commit(threads)
    if code.has("wait_group", "wait_all"):
        most = int(code.operand(0)) if code.operands else None
        return lambda machine, threads: machine.copies.wait(threads, most)
    code.need("global")
    code.one_of("shared", "shared_cta")
    code.has("cg", "ca", "L2_cache_hint", "L2_128B")
    target, source, size, text = code.address(0, "u32"), code.address(1, "u64"), int(code.operand(2), 0), code.text
    length = code.source(3, "u32") if len(code.operands) > 3 else None
    code.shared_word = 4

    def step(machine: Any, threads: Any) -> None:
        lengths = size if length is None else length(machine, threads)
        number = numbers(threads)
        machine.copies.start(target(machine, threads), source(machine, threads), size, number, text, lengths)

    return step


@builder("ldmatrix", "stmatrix")
def _matrix(code: Code) -> Step:
    """Matrices of 8 × 8 values of 16 bits, whose rows some threads point to and which all threads of a warp share."""
    code.need("sync", "aligned", "m8n8")
    count = {"x1": 1, "x2": 2, "x4": 4}[code.one_of("x1", "x2", "x4")]
    turned = code.has("trans")
    code.need("b16")
    code.one_of("shared", "shared_cta")
    loads = code.name == "ldmatrix"
    names, address = code.listed(0 if loads else 1), code.address(1 if loads else 0, "u32")
    if len(names) != count:
        raise code.fail("a wrong number of registers")
    writes = [code.writer(name, "b32") for name in names] if loads else []
    reads = [] if loads else [code.reader(name, "b32") for name in names]
    code.shared_word, text = 2 if turned else 4, code.text
    lane = np.arange(32)

    def places(machine: Any, threads: Any, number: int) -> list[Any]:
        """Where each thread's half-words of one matrix lie, two of them or one pair."""
        rows = address(machine, threads).astype(np.int64).reshape(-1, 32)[:, 8 * number : 8 * number + 8]
        if (rows % 16).any():
            raise PtxError("a row that is not aligned to 16 bytes")
        if turned:
            return [(rows[:, lane % 4 * 2 + half] + lane // 4 * 2).ravel() for half in (0, 1)]
        return [(rows[:, lane // 4] + lane % 4 * 4).ravel()]

    def step(machine: Any, threads: Any) -> None:
        whole_warps(threads)
        blocks, warps = machine.block[threads], machine.warp_in_block[threads]
        for number in range(count):
            at = places(machine, threads, number)
            size = 4 // len(at)
            if loads:
                parts = [machine.shared.load(each, size, 1, blocks, warps, text)[0].astype(np.uint32) for each in at]
                writes[number](machine, threads, parts[0] if len(at) == 1 else parts[0] | (parts[1] << np.uint32(16)))
            else:
                value = np.broadcast_to(reads[number](machine, threads), len(at[0]))
                for half, each in enumerate(at):
                    part = (value >> np.uint32(16 * half)).astype(f"u{size}")
                    machine.shared.store(each, [part], size, blocks, warps, text)

    return step


@builder("shfl")
def _shuffle(code: Code) -> Step:
    """Values of other threads of a warp."""
    code.need("sync", "b32")
    mode = code.one_of("bfly", "idx", "up", "down")
    target, *predicate = (part.strip() for part in code.operand(0).split("|"))
    if predicate:
        raise code.fail("a predicate besides the value")
    write, value, choice = code.writer(target, "b32"), code.source(1, "b32"), code.source(2, "u32")
    if code.operand(3) not in ("31", "0") or code.constant(code.operand(4), "u32") != 0xFFFFFFFF:
        raise code.fail("a part of a warp")
    if (code.operand(3) == "0") != (mode == "up"):
        raise code.fail("a limit within the warp")
    lane = np.arange(32)

    def step(machine: Any, threads: Any) -> None:
        warps = len(whole_warps(threads))
        values = np.broadcast_to(value(machine, threads), warps * 32).reshape(warps, 32)
        number = np.broadcast_to(choice(machine, threads), warps * 32).reshape(warps, 32).astype(np.int64) % 32
        other = {"bfly": lane ^ number, "idx": number, "up": lane - number, "down": lane + number}[mode]
        other = np.where((other < 0) | (other > 31), lane, other)
        write(machine, threads, np.take_along_axis(values, other, 1).ravel())

    return step


@builder("redux")
def _reduce(code: Code) -> Step:
    """One value of all threads of a warp."""
    code.need("sync")
    kind = code.kind()
    operation = code.one_of("add", "min", "max", "and", "or", "xor")
    mask = code.source(2, "u32")
    write, read = code.target(0, kind), code.source(1, kind)
    function = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }[operation]  # fmt: skip

    def step(machine: Any, threads: Any) -> None:
        warps = len(whole_warps(threads))
        if (np.asarray(mask(machine, threads)) != 0xFFFFFFFF).any():
            raise PtxError("a part of a warp")
        values = np.broadcast_to(read(machine, threads), warps * 32).reshape(warps, 32)
        write(machine, threads, function.reduce(values, axis=1, dtype=values.dtype).repeat(32))

    return step


@builder("mma")
def _multiply_matrices(code: Code) -> Step:
    """D = A·B + C of 16 × 16, 16 × 8 and 16 × 8 values of a warp (PTX manual, "matrix fragments for mma.m16n8k16").

    Products are exact and so is their sum, which is cut off to fp32: PTX leaves order and rounding open, and that is
    what tensor cores were seen to do (Fasi, Higham, Mikaitis and Pranesh 2021).
    """
    code.need("sync", "aligned", "m16n8k16", "row", "col")
    types = [code.kind() for _ in range(4)]
    if types not in (["f32", kind, kind, "f32"] for kind in ("f16", "bf16")):
        raise code.fail("unknown types")
    widen = HALVES[types[1]][0]
    code.inexact = True
    sizes = (4, 4, 2, 4)
    lists = [code.listed(index) for index in range(4)]
    if tuple(map(len, lists)) != sizes:
        raise code.fail("a wrong number of registers")
    writes = [code.writer(name, "f32") for name in lists[0]]
    left, right = ([code.reader(name, "b32") for name in names] for names in lists[1:3])
    added = [code.reader(name, "f32") for name in lists[3]]
    lane = np.arange(32)
    group, inside = lane // 4, lane % 4 * 2

    def halves(machine: Any, threads: Any, read: Any, warps: int) -> list[Any]:
        bits = np.broadcast_to(read(machine, threads), warps * 32).reshape(warps, 32)
        return [widen((bits >> np.uint32(shift)).astype(np.uint16)).astype(np.float64) for shift in (0, 16)]

    def step(machine: Any, threads: Any) -> None:
        warps = len(whole_warps(threads))
        a, b, c = np.empty((warps, 16, 16)), np.empty((warps, 16, 8)), np.empty((warps, 16, 8))
        for number, read in enumerate(left):
            for half, values in enumerate(halves(machine, threads, read, warps)):
                a[:, group + 8 * (number % 2), inside + half + 8 * (number // 2)] = values
        for number, read in enumerate(right):
            for half, values in enumerate(halves(machine, threads, read, warps)):
                b[:, inside + half + 8 * number, group] = values
        for number, read in enumerate(added):
            values = np.broadcast_to(read(machine, threads), warps * 32).reshape(warps, 32)
            c[:, group + 8 * (number // 2), inside + number % 2] = values
        exact = a @ b + c
        result = exact.astype(np.float32)
        result = np.where(np.abs(result) > np.abs(exact), np.nextafter(result, np.float32(0)), result)
        for number, write in enumerate(writes):
            write(machine, threads, result[:, group + 8 * (number // 2), inside + number % 2].ravel())

    return step
