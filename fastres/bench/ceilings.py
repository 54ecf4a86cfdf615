"""Ceilings of the machine at hand, measured in the same run as the figures that are compared with them."""

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastres.bench.timing import GPU, Call, Effort, Timing, measure, sets_for_cold_cache
from fastres.utils.machine import facts_to_publish, run_quietly

LARGE_BYTES = 2**30
"""A copy of this size misses any cache."""
_DRY_CACHE_BYTES = 2**13
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
"""Of matrix units: the type in memory. tf32 is fp32 there, and rounded on its way into them."""
_TYPES = {**PRECISIONS, "fp32": torch.float32}
MATRIX_SIDES = (4096, 8192, 16384)
DRY_MATRIX_SIDES = (32, 64)


def cache_bytes(device: torch.device) -> int:
    """Bytes of the GPU's L2. On a CPU a small number, so that a dry run rotates through a few buffers as well."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else _DRY_CACHE_BYTES


def machine(device: torch.device) -> dict[str, Any]:
    """Name, size and versions of everything that decides a figure, ready for JSON."""
    facts = facts_to_publish()
    if device.type != "cuda":
        return {**facts, "device": platform.processor() or platform.machine(), "cache_bytes": last_level_cache()}
    gpu = torch.cuda.get_device_properties(device)
    query = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw"
    return {
        **facts,
        "device": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "cache_bytes": gpu.L2_cache_size,
        "memory_bytes_gpu": gpu.total_memory,
        "state": {
            "query": query,
            "values": run_quietly(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]),
        },
    }


def last_level_cache() -> int:
    """Bytes of this machine's largest CPU cache as Linux tells them, 32 MiB where it does not."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes), default=32 << 20)


def copy_rate(tensor_bytes: int, device: torch.device, *, cold: bool, effort: Effort = GPU) -> tuple[float, Timing]:
    """Bytes a second, read plus written, of device-to-device copies of `tensor_bytes`, and their timing.

    With `cold`, copies rotate through buffers of three times the L2; else one pair of buffers is copied again and
    again, within the L2 if it fits. Must run within `side_stream`.
    """
    traffic = 2 * tensor_bytes
    sets = sets_for_cold_cache(traffic, cache_bytes(device)) if cold else 1
    # Random bytes: zeros can move faster than data.
    sources = [torch.randint(0, 256, (tensor_bytes,), dtype=torch.uint8, device=device) for _ in range(sets)]
    calls = [partial(torch.empty_like(source).copy_, source) for source in sources]
    timing = measure({"copy": calls}, device, effort)["copy"]
    return traffic / timing.seconds, timing


def memory_rates(tensor_bytes: int, device: torch.device, effort: Effort = GPU) -> dict[str, float]:
    """Bytes a second, read plus written, of three passes in turn over fp32 tensors of `tensor_bytes`, which should miss
    every cache: `copy`; `update` of one tensor in place; `read`, which adds one up. Must run within `side_stream`.

    A CPU reads the lines that a copy is about to write, uncounted, so that only the other two show what its memory can
    do (McCalpin 1995, "Memory bandwidth and machine balance", counts likewise).
    """
    source = torch.randn(tensor_bytes // 4, device=device)  # random: zeros can move faster than data
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"copy": partial(target.copy_, source), "update": target.neg_, "read": source.sum}
    timings = measure({name: [call] for name, call in calls.items()}, device, effort)
    tensors = {"copy": 2, "update": 2, "read": 1}
    return {name: tensors[name] * 4 * source.numel() / timing.seconds for name, timing in timings.items()}


def empty_kernel(device: torch.device, effort: Effort = GPU) -> Timing:
    """An empty kernel as one node of a CUDA graph: the least that any kernel costs. Must run within `side_stream`."""

    def nothing() -> None:
        if device.type == "cuda":
            torch.cuda._sleep(0)

    return measure({"empty": [nothing]}, device, effort)["empty"]


def matrix_rate(
    precision: str, device: torch.device, *, effort: Effort = GPU, sides: Sequence[int] | None = None
) -> dict[str, Any]:
    """Rate at which square matrices multiply in `precision`, one of PRECISIONS or fp32, at the best of a few `sides`
    (by default a GPU's, and tiny ones on a CPU); ready for JSON.

    `operations_per_second` counts a multiply-add as two. The matrices are random: products of zeros take less power,
    and so less time. Must run within `side_stream`. Raises torch.cuda.OutOfMemoryError where a size does not fit.
    """
    dtype = _TYPES[precision]
    best: dict[str, Any] = {"operations_per_second": 0.0}
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        for side in sides or (MATRIX_SIDES if device.type == "cuda" else DRY_MATRIX_SIDES):
            left, right, product = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
            call = partial(torch.matmul, left, right, out=product)
            timing = measure({"product": [call]}, device, effort)["product"]
            rate = 2 * side**3 / timing.seconds
            if rate > best["operations_per_second"]:
                best = {"what": "matrix product", "precision": precision, "side": side, "operations_per_second": rate}
                best |= timing.facts()
    finally:
        torch.set_float32_matmul_precision(before)
    return best
