"""What the kernels become: machine code for three GPUs without spills, and PTX that does what the source says."""

import functools
import json
import re
from typing import Any

import jsonschema
import pytest
import triton
from triton import knobs

from fastres.bench import machine_code as ahead
from fastres.bench.machine_code import Configuration, configurations, representative, resources
from fastres.kernels.batch_norm.routing import Tile

if knobs.runtime.interpret:
    pytest.skip("machine code needs Triton's compiler: TRITON_INTERPRET is set", allow_module_level=True)

KERNELS = {
    "statistics_kernel",
    "apply_kernel",
    "reduce_kernel",
    "gradient_kernel",
    "resident_forward_kernel",
    "resident_backward_kernel",
}

SCHEMA = {
    "type": "object",
    "required": ["triton", "kernels"],
    "properties": {
        "triton": {"type": "string"},
        "kernels": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["configuration", "target", "registers", "spills", "shared", "code"],
                "additionalProperties": False,
                "properties": {
                    "configuration": {"type": "string"},
                    "target": {"type": "string", "pattern": r"^cuda:\d+$"},
                    "registers": {"type": "integer", "minimum": 8, "maximum": 255},
                    "spills": {"type": "integer", "minimum": 0},
                    "shared": {"type": "integer", "minimum": 0, "maximum": 100 * 1024},
                    "code": {"type": "integer", "minimum": 128, "multipleOf": 16},
                },
            },
        },
    },
}


@functools.cache
def ptx(configuration: Configuration) -> str:
    text: str = configuration.build("cuda:90").asm["ptx"]
    return text


def small(kernel: str, second: str = "none", activation: str = "relu", form: str = "batch", **changes: Any) -> Any:
    """A configuration of the smallest resident tile that routing offers, which compiles fast."""
    return Configuration(kernel, "bf16", second, activation, Tile(64, 64, 4), form, **changes)


def all_kernels(second: str, activation: str) -> list[Configuration]:
    """One of each kernel; the resident ones with their barrier."""
    forms = {name: "split" if name.startswith("resident") else "batch" for name in sorted(KERNELS)}
    return [small(name, second, activation, form) for name, form in forms.items()]


def may_spill(configuration: str) -> int:
    """Bytes: Triton 3.6's compiler takes a pair of registers more for the dual form's statistics in large tiles."""
    dual = configuration.startswith("statistics_kernel") and " dual " in configuration
    return 8 if dual and triton.__version__.startswith("3.6.") else 0


def count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


@pytest.mark.parametrize("configuration", representative(), ids=str)
@pytest.mark.parametrize("target", ahead.TARGETS)
def test_no_spills(configuration: Configuration, target: str) -> None:
    """One configuration a kernel, each with the most elements that routing offers."""
    found = resources(configuration, target)
    assert found.spills <= may_spill(str(configuration))
    assert 0 < found.registers <= 65536 // (32 * configuration.tile.warps)
    assert found.code > 0


def test_one_representative_a_kernel() -> None:
    assert {configuration.kernel for configuration in representative()} == KERNELS
    assert {configuration.kernel for configuration in configurations()} == KERNELS


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("target", ahead.TARGETS)
def test_spills_of_every_configuration(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """None beyond what compile.py explains."""
    status = ahead.main(["--target", target, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["kernels"]) == len(set(ahead.everything()))
    beyond = [entry for entry in found["kernels"] if entry["spills"] > ahead.SPILL_LIMIT]
    assert not beyond
    assert status == 0


class TestCommandLine:
    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = "statistics_kernel bf16 none 64x64/4w"
        arguments = ["--target", "cuda:80", "cuda:90", "--json", "--jobs", "1"]
        assert ahead.main([*arguments, "--match", words]) == 0
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        jsonschema.validate(found, SCHEMA)
        assert [entry["target"] for entry in found["kernels"]] == ["cuda:80", "cuda:90"] * (len(found["kernels"]) // 2)
        assert found["kernels"]
        for entry in found["kernels"]:
            assert set(words.split()) <= set(entry["configuration"].split())
        assert f"{len(found['kernels'])} compiled, 0 spill" in captured.err

    def test_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--target", "cuda:100", "--jobs", "1", "--match", "statistics_kernel bf16 dual 64x64/4w aligned"]
        assert ahead.main(arguments) == 0
        (line,) = capsys.readouterr().out.splitlines()
        numbers = r"\d+ registers +(\d+) spilled +\d+ B shared +\d+ B code"
        found = re.fullmatch(rf"statistics_kernel .*cuda:100 +{numbers}", line)
        assert found and int(found[1]) <= may_spill(line)

    @pytest.mark.parametrize("target", ["cuda:70", "cuda:92", "cuda:125", "hip:90", "90", "cuda:"])
    def test_unknown_target(self, target: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            ahead.main(["--target", target])
        assert caught.value.code == 2
        shown = capsys.readouterr().err
        assert shown.startswith("usage: python -m fastres.bench.machine_code")
        assert f"unknown target {target}: name compute capabilities from 8.0, of cuda:80, " in shown

    @pytest.mark.parametrize("jobs", ["0", "-1", "x"])
    def test_no_number_of_processes(self, jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            ahead.main([f"--jobs={jobs}"])
        assert caught.value.code == 2
        assert f"{jobs} is no number of processes: give 1 or more" in capsys.readouterr().err

    def test_the_interpreter_compiles_nothing(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(SystemExit) as caught:
            ahead.main([])
        assert caught.value.code == 2
        assert "unset it" in capsys.readouterr().err

    def test_nothing_matches(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            ahead.main(["--match", "bf16 mish"])
        assert caught.value.code == 2
        assert "no configuration has all of the words 'bf16 mish'" in capsys.readouterr().err


class TestPtx:
    """Of cuda:90. What a GPU does with NaN, and what it reads at a time, no interpreter shows."""

    @pytest.mark.parametrize(
        "configuration",
        [
            small("apply_kernel"),
            small("apply_kernel", "add"),
            small("apply_kernel", "dual"),
            small("resident_forward_kernel", "none", form="split"),
            small("resident_forward_kernel", "add", form="whole"),
            small("resident_forward_kernel", "dual", form="split"),
        ],
        ids=str,
    )
    def test_relu_passes_nan(self, configuration: Configuration) -> None:
        """Compare and select, true for z ≤ 0 and so false for NaN: once an element, and no maximum."""
        plain = Configuration(**{**vars(configuration), "activation": "none"})
        text, without = ptx(configuration), ptx(plain)
        assert not count(r"\b(max|min)\.\S*f(16|32)", text)
        elements = configuration.tile.rows * configuration.tile.columns // (32 * configuration.tile.warps)
        # Selected away where z ≤ 0 (le), or kept where z > 0 or NaN (gtu): never gt, which is false for NaN.
        compares = count(r"setp\.(le|gtu)\.\S*f32", text) - count(r"setp\.(le|gtu)\.\S*f32", without)
        assert compares >= elements
        assert count(r"setp\.gt\.\S*f32", text) == count(r"setp\.gt\.\S*f32", without)
        # Of fp32 values, or of the same rounded to bf16: the compiler moves some behind the conversion.
        assert count(r"selp\.\S*(16|32)", text) - count(r"selp\.\S*(16|32)", without) >= elements

    @pytest.mark.parametrize("second", ["none", "dual"])
    @pytest.mark.parametrize("kernel", ["reduce_kernel", "gradient_kernel", "resident_backward_kernel"])
    def test_gradient_of_relu_selects(self, kernel: str, second: str) -> None:
        """By the same comparison; a product with a mask would make NaN of an infinite gradient."""
        form = "split" if kernel.startswith("resident") else "batch"
        text, without = (ptx(small(kernel, second, activation, form)) for activation in ("relu", "none"))
        elements = 64 * 64 // 128
        pattern = r"setp\.(le|gtu)\.\S*f32"
        assert count(pattern, text) - count(pattern, without) >= elements
        assert not count(r"\b(max|min)\.\S*f(16|32)", text)

    @pytest.mark.parametrize("second", ["none", "add", "dual"])
    def test_variance_is_not_clamped_by_a_maximum(self, second: str) -> None:
        """Which would make 0 of NaN."""
        for kernel in ("statistics_kernel", "resident_forward_kernel"):
            form = "split" if kernel.startswith("resident") else "batch"
            assert not count(r"\b(max|min)\.\S*f32", ptx(small(kernel, second, "none", form)))

    @pytest.mark.parametrize("configuration", all_kernels("dual", "relu") + all_kernels("add", "relu"), ids=str)
    def test_moves_16_bytes_at_a_time(self, configuration: Configuration) -> None:
        """Where channels are a multiple of 16: activations are read and written eight bf16 at a time."""
        text = ptx(configuration)
        assert count(r"ld\.global\S*\.v4\.b32", text) >= 1
        writes = configuration.kernel != "statistics_kernel"
        if configuration.kernel == "reduce_kernel":  # the gradient behind the activation, which a residual needs
            writes = configuration.second == "add"
        if writes:
            assert count(r"st\.global\S*\.v4\.b32", text) >= 1
        assert not count(r"(ld|st)\.global\S*\.b16", text)

    @pytest.mark.parametrize("configuration", all_kernels("dual", "relu"), ids=str)
    def test_no_float_atomics(self, configuration: Configuration) -> None:
        """Whose order, and so whose sum, differs from run to run. Tickets and barriers are integers."""
        text = ptx(configuration)
        atomics = re.findall(r"\b(?:atom|red)\.\S+", text)
        assert not [name for name in atomics if re.search(r"\.(b?f(16|32|64)|bf16)", name)]
        meets = configuration.kernel not in ("apply_kernel", "gradient_kernel")
        assert bool(atomics) == meets
        assert all(re.search(r"\.(s32|u32|b32)$", name) for name in atomics)

    @pytest.mark.parametrize("kernel", ["statistics_kernel", "reduce_kernel", "resident_forward_kernel"])
    def test_programs_meet_with_acquire_and_release(self, kernel: str) -> None:
        """What others stored before is seen after; their sums are read past the first-level cache."""
        form = "split" if kernel.startswith("resident") else "batch"
        text = ptx(small(kernel, "none", "none", form))
        assert count(r"atom\.global\.gpu\.acq_rel\S*\.add", text) == 1
        assert count(r"ld\.global\.cg\S*", text) >= 2

    def test_fused_multiply_add_is_spelled_out(self) -> None:
        """Forward and backward come to the same sign: one fma an element in both, before the comparison."""
        for kernel in ("apply_kernel", "reduce_kernel", "gradient_kernel"):
            assert count(r"fma\.rn\S*\.f32", ptx(small(kernel))) >= 64 * 64 // 128
