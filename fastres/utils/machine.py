"""What this machine has. Nothing here fails for what it lacks."""

import importlib.metadata
import math
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastres._version import __version__

# Environment variables with these beginnings change what torch, Triton, Numba or fastres do. Others are left out: the
# page is made to be shown, and an environment holds secrets.
_VARIABLES = (
    *("CUBLAS_", "CUDA_", "CXX", "FASTRES_", "GOMP_", "KMP_", "MKL_", "NUMBA_", "NVIDIA_TF32", "OMP_", "ONEDNN_"),
    *("PYTORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_", "TRITON_"),
)


# Instruction sets that decide how fast a convolution is, as /proc/cpuinfo names them on x86 and Arm.
_ISA = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "bf16", "i8mm", "sve", "sve2"),
)


def computes_bf16(isa: Collection[str]) -> bool:
    """Whether a CPU with these instruction sets, `Environment.isa`, multiplies bf16 itself; emulated, a small
    network takes 8 times as long as in fp32. True where they are unknown."""
    return not isa or bool({"avx512_bf16", "amx_bf16", "bf16"} & set(isa))


def contention() -> str | None:
    """A line where other processes keep the cores busy, so that what is measured now is not the machine's own speed;
    None where none do, or nobody knows. To be asked before the work: its own threads are a load too."""
    with suppress(OSError):
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > cores:
            return f"this machine is busy (load {load:.1f} on {cores} cores): rates below are not its own"
    return None


def usable_memory() -> int:
    """Bytes of this machine's memory, or of what this process's control groups may use of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2
                root, name = Path("/sys/fs/cgroup"), "memory.max"
            elif "memory" in controllers.split(","):
                root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
            else:
                continue
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):  # each group's limit holds for those within it
                with suppress(OSError, ValueError):  # there is none, or it is "max"
                    limits.append(int((folder / name).read_text()))
                if folder == root:
                    break
    return min(limits)


def run_quietly(command: list[str], seconds: float = 3.0) -> str | None:
    """Standard output of `command`, stripped; None if it is missing, fails or takes longer than `seconds`."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=True, stdin=subprocess.DEVNULL)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, without importing it; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def nvidia_gpus() -> list[dict[str, str]]:
    """Name and driver of the NVIDIA GPUs that the driver sees, whatever torch was built for."""
    listed = run_quietly(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]) or ""
    rows = [line.rsplit(",", 1) for line in listed.splitlines() if "," in line]
    return [{"name": name.strip(), "driver": driver.strip()} for name, driver in rows]


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from, and whether its code differs from it."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "--no-optional-locks", "-C", str(root)]
    top = run_quietly([*git, "rev-parse", "--show-toplevel"])
    # A virtual environment may lie inside some other project's checkout: its commit says nothing about fastres.
    if not top or Path(top).resolve() != root:
        return None, None
    changes = run_quietly([*git, "status", "--porcelain", "--", "fastres", "kernels"])
    return run_quietly([*git, "rev-parse", "--verify", "--quiet", "HEAD"]), None if changes is None else changes != ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _cpu() -> dict[str, Any]:
    facts = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", facts, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", facts, re.MULTILINE)
    name = model[1].strip() if model else run_quietly(["sysctl", "-n", "machdep.cpu.brand_string"])
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = re.match(r"(\d+) (\d+)", _read("/sys/fs/cgroup/cpu.max"))
    if quota:  # a container's limit, which os.cpu_count does not know
        usable = min(usable, max(1, math.ceil(int(quota[1]) / int(quota[2]))))
    present = set(flags[1].split()) if flags else set()
    isa = [name for name in _ISA if name in present]
    return {"cpu_model": name or platform.machine() or None, "isa": isa, "cores": cores, "usable_cores": usable}


def _memory() -> int | None:
    """`usable_memory`, where the system tells."""
    with suppress(AttributeError, OSError, ValueError):
        return usable_memory()
    return None


def _torch() -> dict[str, Any]:
    """Facts that take importing torch; empty where it cannot be imported."""
    facts: dict[str, Any] = {}
    # A GPU whose driver is too old makes torch warn and go on without it. A broken installation fails in any way.
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        import torch

        facts["cuda"] = torch.version.cuda
        facts["threads"] = torch.get_num_threads()
        facts["torch_isa"] = torch.backends.cpu.get_cpu_capability()
        facts["cudnn"] = torch.backends.cudnn.version() if torch.version.cuda else None
        driver = next((gpu["driver"] for gpu in nvidia_gpus()), None)
        facts["gpus"] = []
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            capability = f"{gpu.major}.{gpu.minor}"
            facts["gpus"].append(
                {"name": gpu.name, "capability": capability, "memory_bytes": gpu.total_memory, "driver": driver}
            )
    return facts


def variables() -> dict[str, str]:
    """The environment variables that change what torch, its compilers, Numba or fastres do."""
    return {key: os.environ[key] for key in sorted(os.environ) if key.startswith(_VARIABLES)}


def environment_facts() -> dict[str, Any]:
    """The machine and the versions behind a run, as environment.json has them (`runs/environment.py`); made without
    pydantic, which the GPU suite may lack. Never raises."""
    commit, dirty = _commit()
    facts = _torch()
    gpus = facts.get("gpus", [])
    return {
        "fastres": __version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        **{package: installed_version(package) for package in ("torch", "torchvision", "triton", "numba", "numpy")},
        "platform": platform.platform(),
        **_cpu(),
        **{key: facts.get(key) for key in ("torch_isa", "threads", "cuda", "cudnn")},
        "memory_bytes": _memory(),
        "gpu_name": gpus[0]["name"] if gpus else None,
        "gpus": gpus,
        "variables": variables(),
    }


def facts_to_publish() -> dict[str, Any]:
    """The same for a file that is made to be shown: without `variables`, which hold paths of this machine."""
    return {key: value for key, value in environment_facts().items() if key != "variables"}
