"""What the augmentation kernels become: machine code that hardly spills, and PTX that does what the source says."""

import functools
import json
import re

import pytest
from triton import knobs

if knobs.runtime.interpret:
    pytest.skip("machine code needs Triton's compiler: TRITON_INTERPRET is set", allow_module_level=True)

from fastres.bench import machine_code as machine
from fastres.bench import machine_code_augment as ahead
from fastres.bench.machine_code_augment import Configuration

SHIFT = Configuration("direct_kernel", "bf16", "shift", False, (32, 32))
MIXED_SHIFT = Configuration("direct_kernel", "bf16", "shift", True, (32, 32))
REPORT = Configuration("tile_kernel", "bf16", "report", False, (32, 32))
MIXED_REPORT = Configuration("tile_kernel", "bf16", "report", True, (32, 32))
MIX = Configuration("mix_kernel", "bf16", "shift", True, (32, 32))


@functools.cache
def ptx(configuration: Configuration) -> str:
    text: str = configuration.build("cuda:90").asm["ptx"]
    return text


@pytest.mark.parametrize("configuration", [SHIFT, MIXED_SHIFT, REPORT, MIXED_REPORT, MIX], ids=str)
def test_rounds_after_each_operation(configuration: Configuration) -> None:
    """The CPU's bits need every product and every sum rounded: no fused multiply-add, no approximate quotient."""
    assert not re.search(r"\bfma\.rn\.f|\bmad\.f|\bdiv\.(full|approx)|\bex2|\blg2|\brcp|\bsqrt", ptx(configuration))


@pytest.mark.parametrize(
    ("configuration", "vector"),
    [(SHIFT, "v4.b32"), (MIXED_SHIFT, "v4.b32"), (MIX, "v4.b32"), (REPORT, "v2.b32")],
    ids=str,
)
def test_writes_vectors(configuration: Configuration, vector: str) -> None:
    """16 bytes a thread, or 8 where four pixels are a thread's: a warp fills whole 32-byte sectors either way."""
    stores = re.findall(r"st\.global(\S*)", ptx(configuration))
    wide = [store for store in stores if vector in store]
    labels = 2 if configuration.mixes else 0
    assert wide and len(stores) - len(wide) == labels


def test_only_autocontrast_needs_double_precision() -> None:
    """fp64 is slow on many GPUs: a table of 256 entries a channel, and nothing in the cheap kernels."""
    assert ".f64" not in ptx(SHIFT) and ".f64" not in ptx(MIX)
    quotients = re.findall(r"div\.rn\.f64", ptx(REPORT))
    assert len(quotients) == 3


def test_draws_of_64_bits_are_not_made() -> None:
    """Triton's Philox for 64-bit counters is another generator: its multipliers must not occur."""
    for text in map(ptx, (SHIFT, REPORT)):
        assert str(0xD2511F53 - 2**32) in text
        assert str(0xD2E7470EE14C6C93 - 2**64) not in text


@pytest.mark.parametrize("configuration", [SHIFT, MIXED_SHIFT, REPORT, MIXED_REPORT, MIX], ids=str)
def test_registers(configuration: Configuration) -> None:
    """No spills at the size that the recipes use."""
    found = machine.resources(configuration, "cuda:90")
    assert found.spills == 0
    # Half of an SM's 65,536 registers are the most that leave room for a second program beside it.
    assert found.registers * 32 * configuration.launch.warps <= 32_768


def test_the_command_line_compiles_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert {each.kernel for each in ahead.representative()} == set(ahead.KERNELS)
    assert set(ahead.representative()) <= set(ahead.configurations())
    assert set(ahead.representative()) <= set(machine.quick()) <= set(machine.everything())
    assert machine.main(["--target", "cuda:90", "--json", "--quick", "--jobs", "1", "--match", "mix_kernel bf16"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["kernels"]
    assert entry["configuration"] == str(MIX)
