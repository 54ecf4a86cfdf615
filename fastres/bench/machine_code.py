"""Compiling the kernels ahead of time, with no GPU present: `python -m fastres.bench.machine_code --target cuda:90`.

Every configuration of the normalisation kernels that `routing.candidates` offers is compiled to machine code for the
targets, in its largest form: two incoming gradients, all outputs, all parameters; then the augmentation kernels, whose
configurations machine_code_augment.py has, and symmetric.py's. What the machine code needs is read from the cubin:
registers, bytes that spill to local memory, shared memory, bytes of code.
"""

import argparse
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton

from fastres.bench import machine_code_augment
from fastres.kernels import symmetric
from fastres.kernels.aot import machine_code
from fastres.kernels.batch_norm import resident, two_pass
from fastres.kernels.batch_norm.routing import MERGE_SPLITS, OPTIONS, Problem, Tile, candidates
from fastres.kernels.batch_norm.types import ACTIVATIONS

SPILL_LIMIT = 64
"""Bytes a thread that may spill without a complaint: sixteen registers, stored and loaded once a program.

Of all configurations, by kernel, as Triton 3.9 compiles them: `gradient_kernel` never spills. `resident_forward_kernel`
does on 16 warps, where a thread has 128 registers and the tile takes up to 64 of them: at most 56 bytes. 3 of 108 of
`statistics_kernel` (the dual form, 24 bytes), 16 of 1,512 of `reduce_kernel` (16 bytes; the compiler for 10.0 parks
values of the prologue over the loop while registers are free) and 13 of 1,314 of `resident_backward_kernel` (16 bytes)
do too, and in evaluation 9 of 1,512 of `apply_kernel` (16 bytes in the dual form on 8.0, 8 with fp32 and an addition on
10.0), to hold what tells a program its place. Of augmentation's kernels, `tile_kernel` (8 of 36, at most 32 bytes) and
`measure_kernel` (2 of 6, 16 bytes) do. 64 bytes of 512 threads, written and read, are 64 KB through the first-level
cache, which moves 128 bytes a cycle: 500 cycles, where memory needs 6,000 for the 128 KB that such a program reads and
writes (an H200 by its data sheet: 4.8 TB/s over 132 multiprocessors).

Triton 3.6 compiles the largest form of each kernel too; there the dual form's `statistics_kernel` spills 8 bytes on 9.0
and 10.0 where 3.9 spills none.
"""

TARGETS = ("cuda:80", "cuda:90", "cuda:100")
CAPABILITIES = ("80", "86", "87", "89", "90", "100", "103", "110", "120", "121")
"""From 8.0 on, those that ptxas knows."""
TYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
SECONDS = ("none", "add", "dual")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
"""The disassembler that Triton brings along."""

TYPES_OF = {
    "*{}": ("x", "z", "second", "y", "dy", "dy2", "dx", "dz", "g_out"),
    "*u8": ("bits",),
    "*i32": ("counters",),
    "*i64": ("x_batches", "z_batches"),
    "i32": ("M", "C", "rows_per_split", "splits"),
    "fp32": ("x_eps", "z_eps", "x_momentum", "z_momentum"),
}
"""Names of the kernels' arguments by their type, {} being the activations' type; every other one is an fp32 pointer."""


@dataclass(frozen=True)
class Configuration:
    """A kernel with everything that is decided before it is compiled."""

    kernel: str
    dtype: str
    second: str
    activation: str
    tile: Tile
    form: str
    """"split" or "whole" for resident kernels, "batch" or "running" statistics for the others."""
    aligned: bool = True
    """Whether the number of channels is a multiple of 16."""

    def __str__(self) -> str:
        tile = f"{self.tile.rows}x{self.tile.columns}/{self.tile.warps}w"
        names = (self.kernel, self.dtype, self.second, self.activation, tile, self.form)
        return " ".join((*names, "aligned" if self.aligned else "ragged"))

    def build(self, target: str) -> Any:
        """Compile for a target: see `aot.machine_code`."""
        kernel = getattr(resident if self.kernel.startswith("resident") else two_pass, self.kernel)
        options: dict[str, Any] = {"num_warps": self.tile.warps, **OPTIONS}
        if self.form == "split":
            options["launch_cooperative_grid"] = True
        types = {kind.format(self.dtype): names for kind, names in TYPES_OF.items()}
        multiples = ("C",) if self.aligned else ()
        return machine_code(kernel, target, self._constants(kernel.arg_names), types, "*fp32", options, multiples)

    def _constants(self, names: Sequence[str]) -> dict[str, Any]:
        """The arguments that are fixed when a kernel is compiled, None for those that are absent."""
        second, activation, backward = self.second, self.activation, "dy" in names
        fixed = {
            "SECOND": second,
            "ACTIVATION": activation,
            "DUAL": second == "dual",
            "FROM_RUNNING": self.form == "running",
            "SPLIT": self.form == "split",
            "PHASE": "all",
            "BLOCK_M": self.tile.rows,
            "BLOCK_C": self.tile.columns,
            "BLOCK_S": MERGE_SPLITS["resident" if self.kernel.startswith("resident") else "two_pass"],
        }
        absent = {
            "bits": (second, activation) != ("add", "relu") or (not backward and self.form == "running"),
            "second": second == "none" or (backward and second == "add" and activation in ("relu", "none")),
            "g_out": second != "add",
        }
        of_z = {name for name in names if name in ("z", "dz") or name.startswith("z_")} - {"z_eps", "z_momentum"}
        absent |= dict.fromkeys(of_z, second != "dual")
        return {name: fixed.get(name) for name in names if name in fixed or absent.get(name)}


@dataclass(frozen=True)
class Resources:
    """Resources of one configuration's machine code on one target."""

    configuration: str
    target: str
    registers: int
    spills: int
    """Bytes of local memory a thread: registers that did not fit."""
    shared: int
    """Bytes of shared memory."""
    code: int
    """Bytes of machine code."""


AnyConfiguration = Configuration | machine_code_augment.Configuration | symmetric.Configuration


def everything() -> list[AnyConfiguration]:
    """Every configuration of all kernels."""
    return [*configurations(), *machine_code_augment.configurations(), *symmetric.configurations()]


def quick() -> list[AnyConfiguration]:
    """One configuration a kernel."""
    return [*representative(), *machine_code_augment.representative(), *symmetric.representative()]


def configurations(aligned: Sequence[bool] = (True, False)) -> Iterator[Configuration]:
    """Every configuration of the normalisation kernels that a plan can lead to, each once."""
    yield from dict.fromkeys(_configurations(aligned))


def _configurations(aligned: Sequence[bool]) -> Iterator[Configuration]:
    for dtype, second, even, activation in itertools.product(TYPES, SECONDS, aligned, ACTIVATIONS):
        if not even and (dtype == "fp16" or activation != "relu"):
            continue  # other masks and addresses, which have nothing to do with the conversions and the activation
        for direction, first, last, whole in (
            ("forward", "statistics_kernel", "apply_kernel", "resident_forward_kernel"),
            ("backward", "reduce_kernel", "gradient_kernel", "resident_backward_kernel"),
        ):
            problem = Problem(direction, second, TYPES[dtype], 1, 64 if even else 65, 132, activation)
            for choice in candidates(problem):
                if choice.form == "resident":
                    for form in ("whole", "split"):
                        yield Configuration(whole, dtype, second, activation, choice.sums, form, even)
                    continue
                if first == "reduce_kernel":
                    for form in ("batch", "running"):
                        yield Configuration(first, dtype, second, activation, choice.sums, form, even)
                elif activation == "none" and second != "add":  # statistics know of neither
                    yield Configuration(first, dtype, second, activation, choice.sums, "batch", even)
                for form in ("batch", "running"):
                    yield Configuration(last, dtype, second, activation, choice.output, form, even)


def representative() -> list[Configuration]:
    """One configuration a normalisation kernel: bf16, a residual and relu where there is a choice, the largest tile."""
    largest: dict[str, Configuration] = {}
    for configuration in configurations(aligned=(True,)):
        usual = configuration.second != "none" and configuration.activation in ("relu", "none")
        if configuration.dtype == "bf16" and usual:
            best = largest.get(configuration.kernel, configuration)
            largest[configuration.kernel] = max(best, configuration, key=_size)
    return list(largest.values())


def _size(configuration: Configuration) -> tuple[bool, int, bool]:
    tile = configuration.tile
    return configuration.activation == "relu", tile.rows * tile.columns, configuration.form == "split"


def resources(configuration: AnyConfiguration, target: str) -> Resources:
    """Compile for a target and read what the machine code needs."""
    cubin = configuration.build(target).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    spills = usage["STACK"] + usage["LOCAL"]
    return Resources(str(configuration), target, usage["REG"], spills, usage["SHARED"], code_bytes(cubin))


def code_bytes(cubin: bytes) -> int:
    """Bytes of the executable sections of an ELF file (64 bit, little-endian)."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count = struct.unpack_from("<HH", cubin, 58)
    total = 0
    for index in range(count):
        _, _, flags, _, _, length = struct.unpack_from("<IIQQQQ", cubin, table + index * size)
        if flags & 4:  # SHF_EXECINSTR
            total += length
    return total


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of processes: give 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exits with 1 where more than SPILL_LIMIT spills."""
    parser = argparse.ArgumentParser(prog="python -m fastres.bench.machine_code", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--target", nargs="+", default=list(TARGETS), metavar="cuda:CAPABILITY", help="default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one configuration a kernel")
    parser.add_argument("--match", default="", help="only configurations with these words, such as 'bf16 dual relu'")
    parser.add_argument("--jobs", type=_positive, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args(arguments)
    for target in options.target:
        if target.removeprefix("cuda:") not in CAPABILITIES or not target.startswith("cuda:"):
            known = ", ".join(f"cuda:{capability}" for capability in CAPABILITIES)
            parser.error(f"unknown target {target}: name compute capabilities from 8.0, of {known}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler by the interpreter: unset it")
    asked, every = {*options.match.split()}, quick() if options.quick else everything()
    wanted = [configuration for configuration in every if asked <= {*str(configuration).split()}]
    if not wanted:
        parser.error(f"no configuration has all of the words {options.match!r}")
    jobs = [(configuration, target) for configuration in wanted for target in options.target]
    entries: list[Resources] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for number, entry in enumerate(pool.map(resources, *zip(*jobs, strict=True), chunksize=4), 1):
            entries.append(entry)
            if not options.json:
                needs = f"{entry.registers:3} registers {entry.spills:5} spilled {entry.shared:6} B shared"
                print(f"{entry.configuration:<72} {entry.target:<9} {needs} {entry.code:6} B code")
            elif sys.stderr.isatty():
                print(f"\r{number}/{len(jobs)}", end="", file=sys.stderr)
    spilled = [entry for entry in entries if entry.spills]
    beyond = [entry for entry in spilled if entry.spills > SPILL_LIMIT]
    if options.json:
        print(json.dumps({"triton": triton.__version__, "kernels": [asdict(entry) for entry in entries]}, indent=1))
    print(
        f"{len(entries)} compiled, {len(spilled)} spill, {len(beyond)} of them more than {SPILL_LIMIT} bytes",
        file=sys.stderr,
    )
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
