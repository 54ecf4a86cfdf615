"""The PTX machine itself: what it computes, and what it refuses."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx import arithmetic, integers
from ptx.assemble import execute
from ptx.machine import Order
from ptx.memory import Uninitialised
from ptx.parse import PtxError
from torch import Tensor

GENERATOR = torch.Generator().manual_seed(5)


def nearest(exact: Fraction) -> np.float32:
    """The fp32 number next to a fraction, of two the one whose last digit is even."""
    guess = np.float32(float(exact))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))


def test_a_fused_multiply_add_rounds_once() -> None:
    """The first row rounds to a tie in fp64, and from there to the wrong side."""
    rows = [[1 + 2.0**-23, 2.0**-14 * (1 - 2.0**-23), 1024 + 2.0**-13]]
    rows += (torch.randn(300, 3, generator=GENERATOR, dtype=torch.float64) * torch.tensor([1, 1, 1e-3])).tolist()
    a, b, c = np.array(rows, np.float32).T
    wanted = [
        nearest(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))) for x, y, z in zip(a, b, c, strict=True)
    ]
    np.testing.assert_array_equal(arithmetic.fused(a, b, c), wanted)
    assert (a.astype(np.float64) * b + c).astype(np.float32)[0] != wanted[0]


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_as_pytorch_has_it(name: str) -> None:
    """All 2¹⁶ numbers, and random fp32 ones, subnormals and ties among them."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    widen, narrow = getattr(arithmetic, f"from_{name}"), getattr(arithmetic, f"to_{name}")
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    wide = every.view(dtype).float()
    np.testing.assert_array_equal(widen(every.numpy()), wide.numpy())
    numbers = wide[wide.isfinite()]
    ties = (numbers[1:] + numbers[:-1]) / 2
    random = torch.randint(-(2**31), 2**31, (20_000,), generator=GENERATOR).to(torch.int32).view(torch.float32)
    for values in (ties, random[~random.isnan()]):
        with np.errstate(over="ignore"):
            found = torch.from_numpy(narrow(values.numpy()))
        assert torch.equal(found.view(dtype), values.to(dtype))


@pytest.mark.parametrize("name", arithmetic.APPROXIMATE, ids=" ".join)
def test_approximations_are_off_by_what_ptx_allows(name: tuple[str, str]) -> None:
    function, error = arithmetic.APPROXIMATE[name]
    values = torch.rand(2, 2000, generator=GENERATOR).numpy() + np.float32(0.5)
    operands = values if name[0] == "div" else values[:1]
    exact = function(*operands.astype(np.float64))
    found = arithmetic.approximate(*name, *operands)
    off = np.abs(found - exact) / np.maximum(np.abs(exact), 2.0**-20)
    # And one rounding to fp32.
    assert off.max() <= error + 2.0**-24
    assert off.mean() > error / 8, "the result is moved"
    np.testing.assert_array_equal(found, arithmetic.approximate(*name, *operands), "the same operands, the same result")


def words(count: int = 64) -> Tensor:
    return torch.arange(count, dtype=torch.int32)


LOAD = "add.s64 %rd18, %rd0, %rd19; ld.global.b32 %r1, [%rd18];"
STORE = "add.s64 %rd17, %rd1, %rd19; st.global.b32 [%rd17], %r1;"
PLACE = "mov.b32 %r40, global_smem; shl.b32 %r41, %r50, 2; add.s32 %r41, %r40, %r41; "
NEXT = "add.s32 %r42, %r41, 128; and.b32 %r42, %r42, 255; "
FAULTS = {
    "unknown instruction": ("sin.approx.f32 %r1, %r50;", "unknown instruction"),
    "unknown modifier": ("add.sat.s32 %r1, %r50, 1;", "unknown modifier sat"),
    "unknown type": ("add.f16 %rs1, %rs2, %rs3;", "unknown type"),
    "an operand too many": ("add.s32 %r1, %r50, 1, 2;", "wrong number of operands"),
    "a width": ("add.s32 %r1, %rd0, 1;", "has 64 bits"),
    "beyond the end": ("ld.global.b32 %r1, [%rd0+256];", "out of bounds"),
    "before the start": ("ld.global.b32 %r1, [%rd0+-4];", "out of bounds|in no tensor"),
    "in no tensor": ("mov.b64 %rd5, 64; ld.global.b32 %r1, [%rd5];", "in no tensor"),
    "misaligned": ("ld.global.b32 %r1, [%rd0+2];", "misaligned"),
    "a vector misaligned": ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd0+8];", "misaligned"),
    "a register": ("setp.lt.u32 %p1, %r50, 4; @%p1 bra A; mov.b32 %r1, 0; A: add.s32 %r2, %r1, 1;", "not written"),
    "shared memory": (PLACE + "ld.shared.b32 %r1, [%r41];", "nobody wrote"),
    "shared bounds": (PLACE + "st.shared.b32 [%r41+4], %r50;", "out of bounds"),
    "missing barrier": (PLACE + NEXT + "st.shared.b32 [%r41], %r50; ld.shared.b32 %r1, [%r42];", "without a barrier"),
    "overwritten": (
        PLACE + NEXT + "st.shared.b32 [%r41], %r50; bar.sync 0; ld.shared.b32 %r1, [%r42]; st.shared.b32 [%r41], %r1;",
        "overwrites what another warp reads",
    ),
    "two warps": (PLACE + NEXT + "st.shared.b32 [%r41], 7; st.shared.b32 [%r42], 8;", "two warps write"),
    "different shared values": (PLACE + "st.shared.b32 [%r40], %r50;", "different values"),
    "different values": ("st.global.b32 [%rd0], %r50;", "different values"),
    "a part of a block": ("setp.lt.u32 %p1, %r50, 32; @%p1 bar.sync 0;", "a part of a block"),
    "returned": ("setp.lt.u32 %p1, %r50, 32; @%p1 ret; bar.sync 0;", "a part of a block"),
    "two barriers": (
        "setp.lt.u32 %p1, %r50, 32; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B: add.s32 %r1, %r50, 1;",
        "different barriers",
    ),
    "a part of a warp": ("setp.lt.u32 %p1, %r50, 8; @%p1 shfl.sync.bfly.b32 %r1, %r50, 1, 31, -1;", "part of a warp"),
    "a copy nobody waited for": (
        PLACE + "add.s64 %rd18, %rd0, %rd19; cp.async.ca.shared.global [%r41], [%rd18], 4; cp.async.commit_group;"
        "bar.sync 0; ld.shared.b32 %r1, [%r41];",
        "nobody wrote",
    ),
    "no end": ("A: atom.global.gpu.acquire.add.u32 %r1, [%rd0], 0; setp.eq.s32 %p1, %r1, 0; @%p1 bra A;", "no end"),
    "approximate": ("mov.b32 %r1, 0f3F800000; ex2.approx.f32 %r2, %r1;", "approximates"),
    "flushed": ("mov.b32 %r1, 0f3F800000; add.rn.ftz.f32 %r2, %r1, %r1;", "approximates"),
    "fused at will": ("mov.b32 %r1, 0f3F800000; mul.f32 %r2, %r1, %r1;", "approximates"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str) -> None:
    body, message = FAULTS[name]
    with pytest.raises(PtxError, match=message):
        execute(body, {"x": words()}, threads=64, shared=256, exact=True)


def test_what_nobody_wrote() -> None:
    """Memory that PyTorch left empty, until a kernel writes it, byte by byte."""
    uninitialised = Uninitialised()
    with uninitialised.watch():
        empty = torch.zeros(1).new_empty(32, dtype=torch.int32)
    body = LOAD + STORE
    with pytest.raises(PtxError, match="reads what nobody wrote, in x"):
        execute(body, {"x": empty, "y": words()}, uninitialised=uninitialised)
    execute(body, {"x": words(), "y": empty}, uninitialised=uninitialised)
    execute(body, {"x": empty, "y": words()}, uninitialised=uninitialised)


def test_what_a_guard_left_unwritten_is_arbitrary() -> None:
    """Not an error in itself: compilers read it where nothing depends on it."""
    result = torch.zeros(32, dtype=torch.int32)
    body = "add.s64 %rd1, %rd0, 0; setp.lt.u32 %p1, %r50, 4; @%p1 mov.b32 %r1, 7;"
    execute(body + STORE, {"y": result})
    assert result[:4].tolist() == [7] * 4 and result[4:].unique().numel() > 20


def test_only_the_view_that_is_given_may_be_touched() -> None:
    with pytest.raises(PtxError, match="bytes 0 to 124 of x, which has 40 to 103"):
        execute("sub.s64 %rd0, %rd0, 40;" + LOAD, {"x": words()[10:26]})


def test_bytes_and_sectors() -> None:
    """128 bytes a warp are four sectors; with a stride of eight words each thread has its own."""
    machine = execute(LOAD + "shl.b64 %rd19, %rd19, 3;" + STORE, {"x": words(), "y": words(512)}, threads=64)
    assert machine.memory.traffic == {("load", "x"): 256, ("store", "y"): 256}
    assert machine.memory.sectors == {("load", "x"): 256, ("store", "y"): 64 * 32}


@pytest.mark.parametrize("order", [None, Order(1), Order(2, warps=True)], ids=str)
def test_threads_that_come_to_a_barrier_by_a_detour(order: Order | None) -> None:
    """A part of each warp first runs what is laid out behind the barrier."""
    result = torch.zeros(64, dtype=torch.int32)
    body = """
    and.b32 %r1, %r50, 3; setp.eq.s32 %p1, %r1, 0; mov.b32 %r3, 1; @%p1 bra DETOUR;
    JOIN: bar.sync 0; mov.b32 %r1, %r3; add.s64 %rd1, %rd0, 0;
    """
    execute(body + STORE + "ret; DETOUR: mov.b32 %r3, 5; bra JOIN;", {"y": result}, threads=64, order=order)
    assert result.tolist() == [5, 1, 1, 1] * 16


def test_a_table_of_branches() -> None:
    body = """
    and.b32 %r1, %r50, 3; min.u32 %r1, %r1, 2; add.s64 %rd1, %rd0, 0; brx.idx %r1, TABLE;
    TABLE: .branchtargets A, B, C;
    A: mov.b32 %r1, 10; bra END; B: mov.b32 %r1, 20; bra END; C: mov.b32 %r1, 30; END: mov.b32 %r2, 0;
    """
    result = torch.zeros(32, dtype=torch.int32)
    execute(body + STORE, {"y": result})
    assert result.tolist() == [10, 20, 30, 30] * 8


WAITING = """
setp.eq.s32 %p1, %r50, 0; @%p1 atom.global.gpu.acq_rel.add.u32 %r2, [%rd0], 1;
WAIT: ld.global.gpu.acquire.b32 %r3, [%rd0]; setp.lt.u32 %p2, %r3, 3; @%p2 bra WAIT;
"""


def test_blocks_wait_for_each_other_only_in_a_cooperative_launch() -> None:
    """Else some begin when others have ended, and those wait for ever, in some order."""
    for seed in range(4):
        execute(WAITING, {"x": torch.zeros(1, dtype=torch.int32)}, blocks=3, order=Order(seed), cooperative=True)
    with pytest.raises(PtxError, match="no end"):
        for seed in range(4):
            execute(WAITING, {"x": torch.zeros(1, dtype=torch.int32)}, blocks=3, order=Order(seed))


def test_whole_numbers() -> None:
    """Against Python's, over the edges of their types."""
    edges = [0, 1, -1, 7, -7, 255, 2**31 - 1, -(2**31), 12345, -98765]
    pairs = [(a, b) for a in edges for b in edges][:96]
    a, b = (torch.tensor(values, dtype=torch.int32) for values in zip(*pairs, strict=True))

    def signed(value: int) -> int:
        return (value + 2**31) % 2**32 - 2**31

    def quotient(a: int, b: int) -> int:
        return -1 if b == 0 else signed(abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1))

    table = {
        "add.s32": lambda a, b: signed(a + b),
        "mul.lo.s32": lambda a, b: signed(a * b),
        "mul.hi.s32": lambda a, b: a * b >> 32,
        "mul.hi.u32": lambda a, b: signed((a % 2**32) * (b % 2**32) >> 32),
        "div.s32": quotient,
        "rem.s32": lambda a, b: signed(a - quotient(a, b) * b),
        "max.s32": max,
        "min.u32": lambda a, b: min(a, b, key=lambda x: x % 2**32),
        "shl.b32": lambda a, b: 0 if b % 2**32 > 31 else signed(a << b),
        "shr.s32": lambda a, b: a >> min(b % 2**32, 31),
        "shr.u32": lambda a, b: 0 if b % 2**32 > 31 else signed(a % 2**32 >> b),
    }
    load = LOAD + "add.s64 %rd18, %rd1, %rd19; ld.global.b32 %r2, [%rd18];"
    wide = [2**64 - 1, 2**63, 12345678901234567890, 2**32 - 1, 2**32, 3]
    for x, y in [(x, y) for x in wide for y in wide]:
        assert integers.upper_half(np.uint64(x), np.uint64(y)) == x * y >> 64
    for name, wanted in table.items():
        result = torch.zeros(96, dtype=torch.int32)
        store = "add.s64 %rd17, %rd2, %rd19; st.global.b32 [%rd17], %r3;"
        execute(load + f"{name} %r3, %r1, %r2;" + store, {"a": a, "b": b, "y": result}, threads=96)
        assert result.tolist() == [wanted(x, y) for x, y in pairs], name


def test_fields_of_bits() -> None:
    """`bfe` of 32 bits: fields within the number, across its end, and empty ones."""
    value = 0xF00DFACE
    for first, length in [(0, 8), (4, 3), (28, 4), (30, 8), (0, 32), (5, 0), (16, 16)]:
        field = (value >> first) & (2 ** min(length, 32 - first) - 1)
        last = value >> min(first + length - 1, 31) & 1
        negative = field - (last << min(length, 32 - first)) if length else 0
        result = torch.zeros(32, dtype=torch.int64)
        body = f"mov.b32 %r1, {value}; bfe.u32 %r2, %r1, {first}, {length}; bfe.s32 %r3, %r1, {first}, {length};"
        execute(body + "st.global.v2.b32 [%rd0], {%r2, %r3};", {"y": result})
        found = result[:1].view(torch.int32).tolist()
        assert [found[0] % 2**32, found[1]] == [field, negative], (first, length)


@pytest.mark.parametrize("turned", [False, True])
def test_matrices_of_shared_memory(turned: bool) -> None:
    """Four matrices of 8 × 8 half-words; a thread gets two neighbours of a row, or of a column."""
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    result = torch.zeros(32, 4, dtype=torch.int32)
    body = f"""
    {PLACE} shl.b32 %r43, %r50, 4; add.s32 %r43, %r40, %r43; shl.b64 %rd2, %rd19, 2; add.s64 %rd3, %rd0, %rd2;
    ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd3]; st.shared.v4.b32 [%r43], {{%r1, %r2, %r3, %r4}};
    ldmatrix.sync.aligned.m8n8.x4{".trans" if turned else ""}.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r43];
    add.s64 %rd3, %rd1, %rd2; st.global.v4.b32 [%rd3], {{%r5, %r6, %r7, %r8}};
    """
    execute(body, {"x": matrices, "y": result}, shared=512)
    wanted = matrices.mT if turned else matrices
    assert torch.equal(result.view(torch.int16).view(32, 4, 2).transpose(0, 1).reshape(4, 8, 8), wanted)


def test_matrix_products() -> None:
    """Of small whole numbers, which no rounding touches; the fragments as the PTX manual draws them."""
    a, b, c = (torch.randint(-8, 9, shape, generator=GENERATOR) for shape in ((16, 16), (16, 8), (16, 8)))
    lane = torch.arange(32)
    group, inside = lane // 4, lane % 4 * 2
    left = torch.stack([a[group + 8 * (i // 2 % 2), inside + i % 2 + 8 * (i // 4)] for i in range(8)], 1)
    right = torch.stack([b[inside + i % 2 + 8 * (i // 2), group] for i in range(4)], 1)
    added = torch.stack([c[group + 8 * (i // 2), inside + i % 2] for i in range(4)], 1).float()
    result = torch.zeros(32, 4)
    body = """
    shl.b64 %rd10, %rd19, 2; add.s64 %rd11, %rd0, %rd10; ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd11];
    shl.b64 %rd12, %rd19, 1; add.s64 %rd11, %rd1, %rd12; ld.global.v2.b32 {%r5, %r6}, [%rd11];
    add.s64 %rd11, %rd2, %rd10; ld.global.v4.b32 {%r7, %r8, %r9, %r10}, [%rd11];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r11, %r12, %r13, %r14}, {%r1, %r2, %r3, %r4}, {%r5, %r6},
      {%r7, %r8, %r9, %r10};
    add.s64 %rd11, %rd3, %rd10; st.global.v4.b32 [%rd11], {%r11, %r12, %r13, %r14};
    """
    execute(body, {"a": left.half(), "b": right.half(), "c": added, "y": result})
    found = torch.zeros(16, 8)
    for i in range(4):
        found[group + 8 * (i // 2), inside + i % 2] = result[:, i]
    assert torch.equal(found, (a @ b + c).float())
