"""Compiled graphs kept between runs, so that a second start of a recipe neither traces nor compiles.

TorchInductor's own caches keep what the C++ compiler made, but a start still traces the network, differentiates the
graph and lowers it: 10 s on two cores up to the end of the first step. What is kept here is the end of all that, as
`torch.compile(…).aot_compile` serialises it: 4 s to the same point, of which importing torch and its compiler are 2.5.

Each graph has a folder named by its key, the hash of everything that its code may depend on:

    <root>/<key>/graph.bin       the serialised graph, forward and backward
    <root>/<key>/…               TorchInductor's files: generated Python, C++ and shared libraries
    <root>/<key>/manifest.json   size and SHA-256 of each of them, written last: no manifest, no graph
    <root>/<xx>.lock             held while a process compiles or loads a graph whose key begins with these two letters

Files are compared with the manifest before anything is loaded, because a truncated library does not fail, it kills the
process (SIGBUS). A damaged graph is compiled anew. Loading runs code, so `root` must belong to this user and nobody
else may write there; it is not in /tmp, where anybody could have put it and reboots empty it.
"""

import functools
import hashlib
import json
import os
import platform
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fastres._version import __version__
from fastres.engine.cpp_compiler import compiler_command, named_compiler, usable_compiler
from fastres.utils.files import write_bytes, write_json
from fastres.utils.locks import lock, open_lock, try_lock
from fastres.utils.machine import variables

LIMIT = 32
"""Graphs that are kept; those that were not used for the longest time go first. One takes 3 to 10 MB."""

INDUCTOR = "inductor"
"""Folder below `root` of TorchInductor's own caches: see `configure_cache_dir`."""


class CacheUnavailable(Exception):
    """Graphs cannot be kept here; the text is the reason, which follows "not kept for the next start: "."""


def root() -> Path:
    """Folder of the kept graphs: `fastres` below `$TORCHINDUCTOR_CACHE_DIR` where that is set, else `fastres/compiled`
    below `$XDG_CACHE_HOME` or `~/.cache`. It is made if need be. Raises CacheUnavailable where it cannot be, or where
    others can write into it."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    cache = os.environ.get("XDG_CACHE_HOME", "")  # a relative one is to be ignored, says its specification
    try:
        folder = (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "fastres" / "compiled"
    except RuntimeError as error:  # there is no home folder
        raise CacheUnavailable(str(error)) from error
    configured = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if configured and configured not in (
        default_cache_dir(),
        str(folder / INDUCTOR),
    ):  # torch and `configure_cache_dir` set them
        folder = Path(configured) / "fastres"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _demand_own(folder)
    except OSError as error:
        raise CacheUnavailable(f"{folder}: {error.strerror or error}") from error
    return folder


def configure_cache_dir() -> None:
    """Give TorchInductor's own caches, which graphs that are not kept here use, a folder of this user's, unless one was
    chosen: torch's is in /tmp, where anybody could have put it. Does nothing where there is none."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        with suppress(CacheUnavailable, OSError):
            folder = root() / INDUCTOR
            folder.mkdir(mode=0o700, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _demand_own(folder: Path) -> None:
    """Raise CacheUnavailable unless `folder` is a folder of this user's into which nobody else can write."""
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise CacheUnavailable(f"{folder} is not a folder")
    if status.st_uid != os.geteuid():
        raise CacheUnavailable(f"{folder} belongs to another user")
    if status.st_mode & 0o022:
        raise CacheUnavailable(f"others can write into {folder}: `chmod 700 {folder}`")


class Graph:
    """A compiled graph: call it with the arguments of the function that was compiled."""

    def __init__(
        self,
        run: Any,
        owner: tuple[Any, ...],
        folder: Path,
        manifest: dict[str, Any],
        *,
        cached: bool,
        fallback_reason: str | None = None,
    ) -> None:
        run.disable_guard_check()  # `guards_hold` is that check
        self._run, self._owner, self._folder, self._manifest = run, owner, folder, manifest
        self.from_cache = cached
        """Whether another process compiled it."""
        self.fallback_reason = fallback_reason
        """Reason why it was compiled although a kept graph existed; else None."""

    @property
    def cold_seconds(self) -> float | None:
        """Seconds of the start that compiled it, from the beginning of the process to the end of the first step."""
        return self._manifest.get("cold_seconds")

    def remember(self, cold_seconds: float) -> None:
        """Keep how long the start took that compiled it, in seconds, for later starts to tell."""
        self._manifest["cold_seconds"] = cold_seconds
        with suppress(Exception):  # it went away, or the disk is full: later starts know less
            write_json(self._folder / "manifest.json", self._manifest)

    def guards_hold(self, *arguments: Tensor) -> bool:
        """Whether all that tracing found to decide the code is still as it was; 20 µs."""
        return self._run.guard_check(*self._owner, *arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """None is what pickling it gives: another graph's guards are serialised with the object whose method they
        guard, which holds this one."""
        return type(None), ()

    def __call__(self, *arguments: Tensor) -> Any:
        return self._run(*self._owner, *arguments)


def get_or_compile(
    function: Callable[..., Any], arguments: tuple[Tensor, ...], network: nn.Module, about: str
) -> Graph:
    """The graph of `function` for arguments like these: loaded where it is kept, else compiled and kept.

    Args:
        function: a function or bound method that reads `network` and its arguments, on a CPU.
        about: everything else that it reads.

    Raises CacheUnavailable where the folder is not usable, CompilerFault where the compiler is not, and whatever torch
    raises where it cannot compile.
    """
    cache_root = root()
    key = key_of(function, arguments, network, about)
    owner = (function.__self__,) if hasattr(function, "__self__") else ()
    folder = cache_root / key
    with _locked(cache_root / f"{key[:2]}.lock"), _without_gradients(network):
        manifest, reason = _sound(folder), None
        if manifest is not None:
            try:
                with named_compiler(), _inductor_in(folder, cache_root, compiles=False):
                    run = _load((folder / "graph.bin").read_bytes())
                    graph = Graph(run, owner, folder, manifest, cached=True)
                    if graph.guards_hold(*arguments):
                        os.utime(folder / "manifest.json")
                        return graph
                reason = "its guards do not hold"
            except Exception as error:  # torch's private business, as is what it raises
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
        elif (folder / "manifest.json").exists():
            reason = "its files are damaged"
        with usable_compiler(cache_root):
            _clear(folder)
            folder.mkdir(mode=0o700)
            with _inductor_in(folder, cache_root, compiles=True):
                traced: Any = torch.compile(function, dynamic=False, fullgraph=True)
                run = traced.aot_compile((arguments, {}))
                data = type(run).serialize(run).serialized_data
        write_bytes(folder / "graph.bin", data)
        manifest = {"about": about, "files": _listed(folder)}
        write_json(folder / "manifest.json", manifest)
    _prune(cache_root, key)
    fallback_reason = None if reason is None else f"compiled anew, because what was kept cannot be used: {reason}"
    return Graph(run, owner, folder, manifest, cached=False, fallback_reason=fallback_reason)


@contextmanager
def _without_gradients(network: nn.Module) -> Iterator[None]:
    """No parameter has a gradient until the block ends: torch's guards, which look at none, would serialise those that
    training has left as something that cannot be loaded again."""
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


# ------------------------------------------------------------------------------------------------------- the key


def key_of(function: Callable[..., Any], arguments: tuple[Tensor, ...], network: nn.Module, about: str) -> str:
    """Hash of what the code of a graph may depend on: function, shapes and layouts, the network, `about`, what torch is
    set to, the sources of fastres, and the machine. 15 ms."""
    tensors = [("", argument) for argument in arguments] + [*network.named_parameters(), *network.named_buffers()]
    facts = [
        getattr(function, "__qualname__", repr(function)),
        about,
        str(network),
        [module.training for module in network.modules()],
        [(name, str(t.dtype), str(t.device), *t.shape, *t.stride(), t.requires_grad) for name, t in tensors],
        _settings(),
        _sources(),
        _machine(),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _settings() -> list[Any]:
    """Torch's current settings on which generated code may depend."""
    import torch._functorch.config
    import torch._inductor.config

    configured = (torch._dynamo.config, torch._functorch.config, torch._inductor.config)
    # Where data and caches lie changes no code.
    told = {key: value for key, value in variables().items() if not key.endswith(("_CACHE_DIR", "FASTRES_DATA"))}
    return [
        *(sorted((key, _stable(value)) for key, value in one.save_config_portable().items()) for one in configured),
        *sorted(told.items()),
        os.environ.get("ATEN_CPU_CAPABILITY"),
        torch.get_num_threads(),  # written into the generated loops
        str(torch.get_default_dtype()),
        [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")],
        [torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()],
        torch.backends.mkldnn.enabled,
    ]


def _stable(value: Any) -> str:
    """Its repr, the same in every process: the order of a set is not."""
    return repr(sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else value)


@functools.cache
def _sources(package: Path = Path(__file__).parents[1]) -> str:
    """Hash of the package's sources, `kernels` among them: any may have been traced into the graph."""
    digest = hashlib.sha256(__version__.encode())
    for folder, inner, names in os.walk(package, followlinks=True):
        inner[:] = sorted(name for name in inner if name != "__pycache__")
        for path in (Path(folder) / name for name in sorted(names) if name.endswith(".py")):
            digest.update(f"\0{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _machine() -> str:
    """Hash of torch's build, the compiler and the processor."""
    compilers = []
    for name in compiler_command() or ():
        if path := shutil.which(name):
            status = Path(path).resolve().stat()  # asking for its version would take 20 ms
            compilers.append([path, status.st_size, status.st_mtime_ns])
    processor = platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        processor += "".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
    python = [platform.python_version(), platform.python_implementation()]
    facts = [torch.__version__, torch.version.git_version, torch.__config__.show(), python, compilers, processor]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


# ------------------------------------------------------------------------------------------------- torch's side


@contextmanager
def imports_beside() -> Iterator[None]:
    """Import what loading a graph takes, 0.5 s, while the block computes without Python's lock. The block must not
    import parts of torch itself: their circles do not stand two threads."""

    def work() -> None:
        with suppress(Exception):  # `get_or_compile` meets it again
            import torch._inductor.compile_fx  # noqa: F401

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _load(data: bytes) -> Any:
    from torch._dynamo.aot_compile import AOTCompiledFunction
    from torch._dynamo.convert_frame import get_compile_id
    from torch._dynamo.utils import get_metrics_context
    from torch._guards import CompileContext, compile_context

    with compile_context(CompileContext(get_compile_id({}))), get_metrics_context():
        return AOTCompiledFunction.deserialize(data)


@contextmanager
def _inductor_in(folder: Path, cache_root: Path, *, compiles: bool) -> Iterator[None]:
    """TorchInductor with its files in `folder`, and in `cache_root` what its graphs share.

    It finds out which instruction sets the compiler has by compiling and loading libraries: 8 s on an empty folder, and
    0.7 s in each process that finds them compiled. What came out on this machine stands in `isa-<machine>.json`. Its
    precompiled header (6 s and 150 MB, which halve the time of each of some twenty compilations) is made in `headers`
    instead of in /tmp. Where all is compiled, it would run the preprocessor to see whether that is up to date, 0.3 s.
    """
    from torch._functorch import config as functorch
    from torch._inductor import codecache, cpu_vec_isa
    from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

    answers = cache_root / f"isa-{_machine()}.json"
    known = {key: supported for key, supported in _read_json(answers).items() if isinstance(supported, bool)}
    asked = len(known)
    check = cpu_vec_isa.VecISA.check_build

    def answer(isa: Any, code: str) -> bool:
        key = hashlib.sha256(f"{isa.build_arch_flags()} {code}".encode()).hexdigest()[:16]
        if key not in known:
            known[key] = check(isa, code)
        return known[key]

    with ExitStack() as stack:
        stack.enter_context(temporary_cache_dir(str(folder)))
        # Our autograd functions and autocast are in the graph that is kept, which `key_of` covers with their sources.
        stack.enter_context(functorch.patch(autograd_cache_allow_custom_autograd_functions=True))
        stack.enter_context(mock.patch.object(cpu_vec_isa.VecISA, "check_build", answer))
        if compiles:
            headers = stack.enter_context(_headers(cache_root))
            stack.enter_context(mock.patch.object(codecache, "_HEADER_DIR", str(headers)))
            stack.enter_context(mock.patch.object(codecache, "_HEADER_LOCK_DIR", str(headers / "locks")))
        else:
            none = classmethod(lambda cls, device: None)
            stack.enter_context(mock.patch.object(codecache.CppPythonBindingsCodeCache, "_get_uncompiled_header", none))
        yield
    if len(known) > asked:
        write_json(answers, known)


# ------------------------------------------------------------------------------------------------------- the files


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes that use `path`; one that is killed lets go."""
    with open_lock(path) as held:
        lock(held)
        yield


def _digest(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _listed(folder: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of the files below `folder`, by relative path; locks, which are empty, are left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): _digest(path) for path in files if path.name != "manifest.json"}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
    return {}


def _sound(folder: Path) -> dict[str, Any] | None:
    """The manifest of `folder`, if its files are those that it lists."""
    manifest = _read_json(folder / "manifest.json")
    try:
        _demand_own(folder)
        whole = all(_digest(folder / name) == expected for name, expected in manifest["files"].items())
        return manifest if whole else None
    except (CacheUnavailable, OSError, KeyError, TypeError, AttributeError, ValueError):
        return None


@contextmanager
def _headers(cache_root: Path) -> Iterator[Path]:
    """Folder of the precompiled headers, without those that were damaged or never finished, unless another process
    uses the folder too: they may be what it works on."""
    folder = cache_root / "headers"
    folder.mkdir(mode=0o700, exist_ok=True)
    with open_lock(cache_root / "headers.lock") as held:
        if try_lock(held):
            known = _read_json(cache_root / "headers.json")
            for path in folder.iterdir():
                if path.is_file() and _digest(path) != known.get(path.name):
                    path.unlink()
        lock(held, shared=True)
        yield folder
        with suppress(OSError):  # a file of another process went away
            write_json(cache_root / "headers.json", _listed(folder))


def _clear(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _prune(cache_root: Path, but: str) -> None:
    """Remove the graphs that were not used for the longest time."""
    with suppress(OSError):
        used = {
            path.parent: path.stat().st_mtime for path in cache_root.glob("*/manifest.json") if path.parent.name != but
        }
        for folder in sorted(used, key=lambda folder: used[folder], reverse=True)[LIMIT - 1 :]:
            with _locked(cache_root / f"{folder.name[:2]}.lock"):
                _clear(folder)
