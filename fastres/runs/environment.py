"""environment.json: the machine and the versions that a run depends on. Nothing here fails for what a machine lacks."""

import math
import os
import platform
import re
import warnings
from contextlib import suppress
from pathlib import Path

from fastres._version import __version__
from fastres.utils.json_files import Count, Entry, File
from fastres.utils.machine import installed_version, nvidia_gpus, run_quietly, variables

# Instruction sets that decide how fast a convolution is, as /proc/cpuinfo names them on x86 and Arm.
_ISA = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "bf16", "i8mm", "sve", "sve2"),
)


class Gpu(Entry):
    """A GPU that torch can use."""

    name: str
    capability: str | None = None
    memory_bytes: Count | None = None
    driver: str | None = None


class Environment(File):
    """environment.json: the machine and the versions behind a run; None is what could not be found out."""

    fastres: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    """Whether the checkout's code differs from that commit."""
    python: str | None = None
    torch: str | None = None
    torchvision: str | None = None
    triton: str | None = None
    numba: str | None = None
    numpy: str | None = None
    platform: str | None = None
    cpu_model: str | None = None
    isa: list[str] = []
    """Instruction sets that decide how fast a convolution is."""
    cores: Count | None = None
    usable_cores: Count | None = None
    torch_isa: str | None = None
    """What torch uses of them."""
    threads: Count | None = None
    cuda: str | None = None
    cudnn: Count | None = None
    memory_bytes: Count | None = None
    gpu_name: str | None = None
    """Of the first GPU."""
    gpus: list[Gpu] = []
    variables: dict[str, str] = {}
    """Environment variables that change what torch, its compilers, Numba or fastres do."""
    device: str | None = None
    """The one that is trained on."""

    @property
    def device_name(self) -> str | None:
        """Model of the CPU or GPU that is trained on."""
        return self.gpu_name if (self.device or "").startswith("cuda") else self.cpu_model


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


def _cpu() -> Environment:
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
    return Environment(cpu_model=name or platform.machine() or None, isa=isa, cores=cores, usable_cores=usable)


def _memory() -> int | None:
    """Bytes of main memory that this process may use."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(physical, int(limit)) if limit.isdigit() else physical


def _torch() -> Environment:
    """What takes importing torch; nothing where it cannot be imported."""
    # A GPU whose driver is too old makes torch warn and go on without it. A broken installation fails in any way.
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        import torch

        driver = next((gpu["driver"] for gpu in nvidia_gpus()), None)
        gpus = []
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            capability = f"{gpu.major}.{gpu.minor}"
            gpus.append(Gpu(name=gpu.name, capability=capability, memory_bytes=gpu.total_memory, driver=driver))
        return Environment(
            torch_isa=torch.backends.cpu.get_cpu_capability(),
            threads=torch.get_num_threads(),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version() if torch.version.cuda else None,
            gpu_name=gpus[0].name if gpus else None,
            gpus=gpus,
        )
    return Environment(torch_isa=None, threads=None, cuda=None, cudnn=None, gpu_name=None, gpus=[])


def environment(device: str | None = None) -> Environment:
    """The machine and the versions behind a run on `device`. Never raises."""
    commit, dirty = _commit()
    facts = Environment(
        fastres=__version__,
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        platform=platform.platform(),
        memory_bytes=_memory(),
        variables=variables(),
    )
    packages = ("torch", "torchvision", "triton", "numba", "numpy")
    facts = facts.updated(**{package: installed_version(package) for package in packages})
    for part in (_cpu(), _torch(), *([] if device is None else [Environment(device=device)])):
        facts = facts.updated(**part.given())
    return facts


def facts_to_publish() -> Environment:
    """`environment()` for a file that is made to be shown: without `variables`, which hold paths of this machine."""
    return Environment(**{key: value for key, value in environment().given().items() if key != "variables"})
