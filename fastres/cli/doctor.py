"""Output of `fastres doctor`: the equipment of this machine, and what is missing with the line that puts it right."""

import os
import re
import shlex
import shutil
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fastres.engine.cpp_compiler import compiler_command, compiler_fault
from fastres.errors import UserError
from fastres.runs.environment import Environment, environment
from fastres.utils.json_files import Entry
from fastres.utils.machine import installed_version, nvidia_gpus, run_quietly
from fastres.utils.terminal import printable

# Distributions without which some command fails; those that the command line needs to start at all are left out.
NEEDED = ("torch", "torchvision", "triton", "numba", "numpy", "matplotlib", "jinja2", "pillow", "safetensors")
TORCH = ((2, 11), (2, 14))  # from, and below
TORCH_FIX = "'torch>=2.11,<2.14' torchvision"
# Name, distributions any of which is enough, what it is, and the line that installs it.
EXTRAS = (
    ("optuna", ("optuna",), "searches, [sweep.search]", "pip install 'fastres[sweep]'"),
    ("tensorboard", ("tensorboard",), "curves beside metrics.jsonl", "pip install 'fastres[tensorboard]'"),
    (
        "ffcv",
        ("ffcv",),
        "fast streaming loader, built from source",
        "apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev && pip install 'fastres[ffcv]'",
    ),
    (
        "nvidia-dali",
        ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110"),
        "streaming loader that decodes JPEG on the GPU",
        "pip install 'fastres[dali]'",
    ),
    ("wandb", ("wandb",), "Weights & Biases, record.wandb", "pip install 'fastres[wandb]'"),
)
ENOUGH_DISK = 2 << 30  # bytes: CIFAR-10's archive, its store and a run's checkpoints take about 0.5 GiB
COMPILER_FIX = "apt-get install g++ python3-dev"
ELSEWHERE = "set FASTRES_DATA, or data.root in the recipe, to another folder"


class Problem(Entry):
    """Something that is missing or wrong."""

    what: str
    fix: str
    """The line that puts it right."""


class Compiler(Entry):
    """A compiler that was found."""

    path: str
    version: str | None


class Extra(Entry):
    """An optional package."""

    name: str
    what: str
    version: str | None
    install: str


class StoreFolder(Entry):
    """A prepared store; of a damaged one, and of FFCV's file format, the first three facts alone."""

    folder: str
    bytes: int
    sound: bool
    name: str | None = None
    image_size: int | None = None
    classes: int | None = None
    images: dict[str, int] | None = None
    """Of each part."""


class Download(Entry):
    """A downloaded file."""

    name: str
    bytes: int


class DataFolder(Entry):
    """The folder of downloads and stores; None is what could not be found out."""

    root: str | None = None
    writable: bool | None = None
    free_bytes: int | None = None
    downloads: list[Download]
    stores: list[StoreFolder]


class Cache(Entry):
    """Compiled code that later runs start faster with."""

    name: str
    path: str
    bytes: int
    complete: bool
    """Whether all files were counted in time."""


class Examination(Entry):
    """Everything that `fastres doctor` finds."""

    environment: Environment
    devices: list[str]
    """Names that torch can use."""
    compilers: dict[str, Compiler | None]
    extras: list[Extra]
    data: DataFolder
    caches: list[Cache]
    problems: list[Problem]


def examine(root: str | Path | None = None) -> Examination:
    """Look at this machine; `root` is the folder of downloads and stores, as for `fastres.data.open_dataset`. Never
    raises for what is missing, changes nothing, and takes about 3 s."""
    facts = environment()
    compilers = {"c++": _compiler("CXX", "g++", "clang++", "c++"), "c": _compiler("CC", "gcc", "clang", "cc")}
    data, unreadable = _data(root)
    problems = [*_machine_problems(facts, compilers), *unreadable, *_data_problems(data)]
    return Examination(
        environment=facts,
        devices=[*(f"cuda:{index} {gpu.name}" for index, gpu in enumerate(facts.gpus)), f"cpu {facts.cpu_model}"],
        compilers=compilers,
        extras=[
            Extra(name=name, what=what, version=next(filter(None, map(installed_version, names)), None), install=fix)
            for name, names, what, fix in EXTRAS
        ],
        data=data,
        caches=_caches(),
        problems=[Problem(what=what, fix=fix) for what, fix in problems],
    )


def _compiler(variable: str, *names: str) -> Compiler | None:
    command = compiler_command(variable, names)
    if command is None:
        return None
    told = run_quietly([*command, "--version"]) or ""
    path = " ".join([shutil.which(command[0]) or command[0], *command[1:]])
    return Compiler(path=path, version=told.splitlines()[0] if told else None)


def _machine_problems(facts: Environment, compilers: dict[str, Compiler | None]) -> Iterator[tuple[str, str]]:
    """What is wrong with software, GPU and compilers, each with the line that puts it right."""
    for name in NEEDED:
        elsewhere = name == "triton" and not (facts.platform or "").startswith("Linux")
        if installed_version(name) is None and not elsewhere:
            yield f"{name} is not installed", f"pip install {name}"
    low, high = (".".join(map(str, version)) for version in TORCH)
    parsed = re.match(r"(\d+)\.(\d+)", facts.torch or "")
    if parsed and not TORCH[0] <= (int(parsed[1]), int(parsed[2])) < TORCH[1]:
        what = f"torch {facts.torch} is not one that fastres is tested with ({low} up to, not including, {high})"
        yield what, f"pip install {TORCH_FIX}"
    if facts.torch and facts.threads is None:
        fix = "python -c 'import torch' says why; pip install --force-reinstall torch torchvision"
        yield f"torch {facts.torch} is installed but cannot be imported", fix
    limits = [name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    if limits and facts.threads is not None and facts.threads < (facts.usable_cores or 1):
        what = f"{limits[0]} keeps torch to {facts.threads} of {facts.usable_cores} cores"
        yield what, f"unset {' '.join(limits)}"
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        if os.environ.get(name) == "1":
            yield f"{name} is 1: training goes uncompiled", f"unset {name}"
    seen = [] if facts.gpus else nvidia_gpus()
    if seen and facts.cuda is None:
        what = f"there is a GPU ({seen[0]['name']}), but torch {facts.torch} is built without CUDA"
        yield what, f"pip install --force-reinstall {TORCH_FIX}"
    elif seen and "CUDA_VISIBLE_DEVICES" in os.environ:
        yield "CUDA_VISIBLE_DEVICES hides the GPU", "unset CUDA_VISIBLE_DEVICES"
    elif seen:
        about = f"{seen[0]['name']}, driver {seen[0]['driver']}, torch for CUDA {facts.cuda}"
        yield f"torch cannot use the GPU ({about})", f"install a driver for CUDA {facts.cuda} or later"
    if compilers["c++"] is None:
        told = os.environ.get("CXX")
        there = f"there is no C++ compiler {told}, which CXX names" if told else "there is no C++ compiler"
        yield f"{there}: training on the CPU goes uncompiled, which is slower", "unset CXX" if told else COMPILER_FIX
    elif not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        what = "Python.h is missing, which TorchInductor's and Triton's code includes: training goes uncompiled"
        yield what, COMPILER_FIX
    elif (fault := compiler_fault()) is not None:
        what = f"the C++ compiler does not work, and training on the CPU goes uncompiled; it says: {fault}"
        folder = os.environ.get("TMPDIR") or "/tmp"
        full = f"free some space in {folder}, or set TMPDIR to another folder"
        yield what, full if "o space left" in fault else COMPILER_FIX
    if facts.gpus and compilers["c"] is None:
        yield "there is no C compiler, which Triton launches with", "apt-get install gcc"


def _data(root: str | Path | None) -> tuple[DataFolder, list[tuple[str, str]]]:
    """The folder of downloads and stores, and why it cannot be looked at."""
    try:
        from fastres.data import data_root

        data_folder = data_root(root)
        # The nearest folder that exists says whether the rest could be made.
        standing = next(folder for folder in (data_folder, *data_folder.parents) if folder.exists())
        downloads, stores = _listed(data_folder / "downloads"), _listed(data_folder / "stores")
        return DataFolder(
            root=str(data_folder),
            writable=standing.is_dir() and os.access(standing, os.W_OK | os.X_OK),
            free_bytes=shutil.disk_usage(standing).free,
            downloads=[Download(name=path.name, bytes=_bytes(path)[0]) for path in downloads],
            stores=[_store_folder(path) for path in stores if path.is_dir()],
        ), []
    except (ImportError, OSError, RuntimeError, UserError) as error:
        what = f"the data folder cannot be looked at: {error}".splitlines()[0]
        return DataFolder(downloads=[], stores=[]), [(what, ELSEWHERE)]


def _data_problems(data: DataFolder) -> Iterator[tuple[str, str]]:
    if data.writable is False:
        yield f"{data.root} cannot be written", ELSEWHERE
    if data.free_bytes is not None and data.free_bytes < ENOUGH_DISK:
        yield f"only {_size(data.free_bytes)} are free at {data.root}", f"free some space, or {ELSEWHERE}"
    for store in data.stores:
        if not store.sound:
            path = f"{data.root}/stores/{store.folder}"
            yield f"the prepared store {path} is damaged", f"rm -r {shlex.quote(path)}"


def _store_folder(path: Path) -> StoreFolder:
    from fastres.data.store.beton import is_beton
    from fastres.data.store.decoded import open_store

    entry = StoreFolder(folder=path.name, bytes=_bytes(path)[0], sound=True)
    if is_beton(path):
        return entry
    try:
        store = open_store(path, "")
    except UserError:
        return entry.updated(sound=False)
    parts = {"train": store.train, "test": store.test, "unlabelled": store.unlabelled}
    images = {name: len(part.images) for name, part in parts.items() if part is not None}
    return entry.updated(name=store.name, image_size=store.image_size, classes=len(store.classes), images=images)


def _listed(folder: Path) -> list[Path]:
    """Contents of `folder`, sorted; hidden names are locks and unfinished work."""
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return []


def _bytes(path: Path, pattern: str = "*", seconds: float = 1.0) -> tuple[int, bool]:
    """Bytes of a file, or of the files below a folder that match; and whether `seconds` were enough to see them all."""
    with suppress(OSError):
        if path.is_file():
            return path.stat().st_size, True
        total, deadline = 0, time.monotonic() + seconds
        for file in path.rglob(pattern):
            with suppress(OSError):  # it went away
                total += file.lstat().st_size if not file.is_dir() else 0
            if time.monotonic() > deadline:  # TorchInductor leaves hundreds of thousands of files
                return total, False
        return total, True
    return 0, True


def _caches() -> list[Cache]:
    places: list[tuple[str, Path, str]] = []
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with suppress(Exception):  # there is no usable folder, or torch is broken
        from fastres.engine.compile_cache import root

        inductor = inductor or str(root())
    if inductor:
        places.append(("TorchInductor", Path(inductor), "*"))
    with suppress(RuntimeError):  # there is no home folder
        home = Path(os.environ.get("TRITON_HOME") or Path.home())
        places.append(("Triton", Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache"), "*"))
    numba = os.environ.get("NUMBA_CACHE_DIR")
    places.append(("Numba", Path(numba) if numba else Path(__file__).resolve().parents[1], "*.nb[ci]"))
    counted = [(name, path, _bytes(path, pattern)) for name, path, pattern in places]
    return [Cache(name=name, path=str(path), bytes=size, complete=all_) for name, path, (size, all_) in counted]


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit, bits in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << bits:
            return f"{count / (1 << bits):,.1f} {unit}"
    return f"{count} bytes"


def render(facts: Examination, console: Console | None = None) -> None:
    """Print what `examine` returned, on standard output unless told otherwise; problems come last."""
    console = console or Console(highlight=False)
    machine, data = facts.environment, facts.data
    commit = f", commit {machine.commit[:12]}{' with changes' if machine.dirty else ''}" if machine.commit else ""
    cores = f"{machine.usable_cores} of {machine.cores} cores, {machine.threads} threads"
    gpus = [
        (name.split()[0], f"{gpu.name}, {_size(gpu.memory_bytes)}, capability {gpu.capability}, driver {gpu.driver}")
        for name, gpu in zip(facts.devices, machine.gpus, strict=False)
    ]
    _section(
        console,
        "Machine",
        [
            *(gpus or [("GPU", "none that torch can use")]),
            ("CPU", f"{machine.cpu_model}, {cores}"),
            ("instructions", ", ".join(machine.isa) or "unknown"),
            ("memory", _size(machine.memory_bytes)),
            ("system", f"{machine.platform}, Python {machine.python}"),
        ],
    )
    versions = [(name, machine[name] or "missing") for name in ("torch", "torchvision", "triton", "numba", "numpy")]
    tools = [(name, f"{tool.path}: {tool.version}" if tool else "missing") for name, tool in facts.compilers.items()]
    _section(console, "Software", [("fastres", f"{machine.fastres}{commit}"), *versions, *tools])
    extras = [(extra.name, extra.version or f"absent ({extra.what}): {extra.install}") for extra in facts.extras]
    _section(console, "Extras, all optional", extras)
    stores = [(store.folder, _store(store)) for store in data.stores]
    downloads = [(download.name, f"downloaded, {_size(download.bytes)}") for download in data.downloads]
    folder = f"{data.root}, {_size(data.free_bytes)} free"
    _section(console, "Data", [("folder", folder), *downloads, *(stores or [("stores", "none prepared yet")])])
    caches = [
        (cache.name, f"{'' if cache.complete else 'over '}{_size(cache.bytes)} in {cache.path}")
        for cache in facts.caches
    ]
    _section(console, "Caches of compiled code", caches)
    if not facts.problems:
        console.print(Text("Nothing needed is missing.", style="bold green"))
        return
    console.print(Text("Problems", style="bold red"))
    for problem in facts.problems:
        _line(console, "", f"  {problem.what}")
        _line(console, "    fix: ", problem.fix)


def _store(store: StoreFolder) -> str:
    if not store.sound:
        return f"damaged, {_size(store.bytes)}"
    if store.images is None:
        return f"for FFCV, {_size(store.bytes)}"
    counts = ", ".join(f"{count:,} {name}" for name, count in store.images.items())
    return f"{counts} images of {store.image_size} px, {store.classes} classes, {_size(store.bytes)}"


def _section(console: Console, title: str, lines: list[tuple[str, str]]) -> None:
    console.print(Text(title, style="bold"))
    wide = max(len(name) for name, _ in lines)
    for name, value in lines:
        _line(console, f"  {name:<{wide}}  ", value)
    console.print()


def _line(console: Console, dim: str, normal: str) -> None:
    """Print a line that is never broken, since it may be there to be copied. Brackets in names are no markup."""
    console.print(Text.assemble((printable(dim), "dim"), printable(normal)), soft_wrap=True)
