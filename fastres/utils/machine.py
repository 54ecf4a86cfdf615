"""What this machine has. Nothing here fails for what it lacks."""

import importlib.metadata
import os
import subprocess
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

# Environment variables with these beginnings change what torch, Triton, Numba or fastres do. Others are left out: the
# page is made to be shown, and an environment holds secrets.
_VARIABLES = (
    *("CUBLAS_", "CUDA_", "CXX", "FASTRES_", "GOMP_", "KMP_", "MKL_", "NUMBA_", "NVIDIA_TF32", "OMP_", "ONEDNN_"),
    *("PYTORCH_", "TORCHINDUCTOR_", "TORCH_", "TRITON_"),
)


def computes_bf16(isa: Collection[str]) -> bool:
    """Whether a CPU with these instruction sets, `Environment.isa`, multiplies bf16 itself; emulated, a small
    network takes 8 times as long as in fp32. True where they are unknown."""
    return not isa or bool({"avx512_bf16", "amx_bf16", "bf16"} & set(isa))


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


def variables() -> dict[str, str]:
    """The environment variables that change what torch, its compilers, Numba or fastres do."""
    return {key: os.environ[key] for key in sorted(os.environ) if key.startswith(_VARIABLES)}
