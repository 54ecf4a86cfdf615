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
process (SIGBUS). A damaged graph is compiled anew, and so is one with a file too many. Loading runs code, so nobody but
this user and root may be able to put anything in the place of `root` or of a folder above it (utils/private_folders.py
says how that is told). Where somebody is, graphs are kept in a private folder instead.
"""

import functools
import hashlib
import json
import os
import platform
import shutil
import tempfile
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
from fastres.errors import UserError
from fastres.utils.files import write_bytes, write_json
from fastres.utils.json_files import LIMIT as LIMIT_OF_JSON
from fastres.utils.json_files import Amount, Count, File
from fastres.utils.locks import lock, open_lock, try_lock
from fastres.utils.machine import variables
from fastres.utils.private_folders import NotPrivate, contents, demand_safe, digest, digests, opened, private_folder

MANIFEST, GRAPH = "manifest.json", "graph.bin"
LIMIT = 32
"""Graphs that are kept; those that were not used for the longest time go first. One takes 3 to 10 MB."""

INDUCTOR = "inductor"
"""Folder below `root` of TorchInductor's own caches: see `configure_cache_dir`."""


class CacheUnavailable(Exception):
    """Graphs cannot be kept here; the text is the reason, which follows "not kept for the next start: "."""


class Damaged(Exception):
    """A kept graph is not what was kept; the text says why."""


def root() -> Path:
    """Folder of the kept graphs: see `locate`."""
    return locate()[0]


def locate() -> tuple[Path, str | None]:
    """Folder of the kept graphs, made if need be, and why it is not the first of these: `fastres` below
    `$TORCHINDUCTOR_CACHE_DIR` where that is set; `fastres/compiled` below `$XDG_CACHE_HOME` or `~/.cache`;
    `fastres-<number of the user>` in the folder for temporary files, which reboots empty.

    Raises CacheUnavailable where none can be used.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    wanted: list[Path] = []
    refused: list[str] = []
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is to be ignored, says its specification
        wanted.append((cache if cache.is_absolute() else Path.home() / ".cache") / "fastres" / "compiled")
    except RuntimeError as error:  # there is no home folder
        refused.append(str(error))
    with suppress(OSError):  # there is none
        wanted.append(Path(tempfile.gettempdir()).absolute() / f"fastres-{os.geteuid()}")
    configured = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    ours = {os.path.realpath(folder / INDUCTOR) for folder in wanted}  # as `configure_cache_dir` sets it
    if configured and configured != default_cache_dir() and os.path.realpath(configured) not in ours:
        wanted.insert(0, Path(configured).absolute() / "fastres")
    for folder in wanted:
        try:
            return private_folder(folder), refused[0] if refused else None
        except OSError as error:
            refused.append(f"{folder}: {error.strerror or error}")
        except NotPrivate as error:
            refused.append(str(error))
    raise CacheUnavailable(refused[0] if refused else "there is no folder for them")


def configure_cache_dir() -> None:
    """Give TorchInductor's own caches, which graphs that are not kept here use, a folder of this user's, unless one was
    chosen: torch's is in /tmp, where anybody could have put it. Does nothing where there is none."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        with suppress(CacheUnavailable, OSError):
            folder = root() / INDUCTOR
            folder.mkdir(mode=0o700, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


class Manifest(File):
    """manifest.json of a kept graph."""

    about: str
    files: dict[str, tuple[Count, str]]
    """Size and SHA-256 of each file of the folder, by its path in there."""
    cold_seconds: Amount | None = None


class Graph:
    """A compiled graph: call it with the arguments of the function that was compiled."""

    def __init__(
        self,
        run: Any,
        owner: tuple[Any, ...],
        folder: Path,
        manifest: "Manifest",
        *,
        cached: bool,
        fallback_reason: str | None = None,
    ) -> None:
        run.disable_guard_check()  # `guards_hold` is that check
        self._run, self._owner, self._folder, self._manifest = run, owner, folder, manifest
        self.from_cache = cached
        """Whether another process compiled it."""
        self.fallback_reason = fallback_reason
        """Why it was compiled although a kept graph existed, or is kept elsewhere than it should be; else None."""

    @property
    def cold_seconds(self) -> float | None:
        """Seconds of the start that compiled it, from the beginning of the process to the end of the first step."""
        return self._manifest.cold_seconds

    def remember(self, cold_seconds: float) -> None:
        """Keep how long the start took that compiled it, in seconds, for later starts to tell."""
        self._manifest = self._manifest.updated(cold_seconds=cold_seconds)
        with suppress(Exception):  # it went away, or the disk is full: later starts know less
            self._manifest.write(self._folder / MANIFEST)

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
    cache_root, elsewhere = locate()
    moved = None if elsewhere is None else f"kept in {cache_root}: {elsewhere}"
    key = key_of(function, arguments, network, about)
    owner = (function.__self__,) if hasattr(function, "__self__") else ()
    folder = cache_root / key
    with _locked(cache_root / f"{key[:2]}.lock"), _without_gradients(network):
        reason = None
        try:
            with (
                _checked(folder) as (manifest, data, checked),
                named_compiler(),
                _inductor_in(checked, cache_root, compiles=False),
            ):
                graph = Graph(_load(data), owner, folder, manifest, cached=True, fallback_reason=moved)
                if graph.guards_hold(*arguments):
                    os.utime(folder / MANIFEST, follow_symlinks=False)
                    return graph
            reason = "its guards do not hold"
        except FileNotFoundError:  # there is none yet, or not a whole one
            pass
        except Damaged as error:
            reason = str(error)
        except Exception as error:  # torch's private business, as is what it raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        with usable_compiler(cache_root):
            _clear(folder)
            folder.mkdir(mode=0o700)
            with _inductor_in(folder, cache_root, compiles=True):
                traced: Any = torch.compile(function, dynamic=False, fullgraph=True)
                run = traced.aot_compile((arguments, {}))
                data = type(run).serialize(run).serialized_data
        write_bytes(folder / GRAPH, data)
        manifest = Manifest(about=about, files=digests(folder))
        manifest.write(folder / MANIFEST)
    _prune(cache_root, key)
    anew = None if reason is None else f"compiled anew, because what was kept cannot be used: {reason}"
    notes = "; ".join(filter(None, (anew, moved))) or None
    return Graph(run, owner, folder, manifest, cached=False, fallback_reason=notes)


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


@contextmanager
def _checked(folder: Path) -> Iterator[tuple[Manifest, bytes, Path]]:
    """The manifest of `folder`, its serialised graph as it was compared with that, and a path of the folder that leads
    to it whatever takes its place. Raises FileNotFoundError where there is no manifest, and Damaged unless the
    folder holds what its manifest lists, and nothing else, and nobody else could have put it there."""
    with opened(folder, os.O_DIRECTORY) as descriptor:
        held = Path(f"/proc/self/fd/{descriptor}")
        os.stat(MANIFEST, dir_fd=descriptor, follow_symlinks=False)
        try:
            demand_safe(folder, os.fstat(descriptor), last=True)
            manifest, data, contained = None, b"", {}
            for name, file in contents(descriptor):
                if name == MANIFEST:
                    manifest = Manifest.parse(file.read(LIMIT_OF_JSON), folder / name)
                    continue
                if name == GRAPH:
                    data = file.read()
                    file.seek(0)
                contained[name] = digest(file)
            if manifest is None or manifest.files != contained:
                raise Damaged("its files are damaged")
        except (OSError, UserError, NotPrivate) as error:
            raise Damaged("its files are damaged") from error
        yield manifest, data, held


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    with suppress(OSError, ValueError, RecursionError), opened(path, 0) as descriptor:
        content = json.loads(os.read(descriptor, LIMIT_OF_JSON))
        if isinstance(content, dict):
            return content
    return {}


@contextmanager
def _headers(cache_root: Path) -> Iterator[Path]:
    """Folder of the precompiled headers, without those that were damaged or never finished, unless another process
    uses the folder too: they may be what it works on."""
    folder = cache_root / "headers"
    folder.mkdir(mode=0o700, exist_ok=True)
    with open_lock(cache_root / "headers.lock") as held:
        if try_lock(held):
            known = {name: tuple(facts) for name, facts in _read_json(cache_root / "headers.json").items()}
            for path in folder.iterdir():
                if not path.is_dir() or path.is_symlink():
                    _keep_if(path, known.get(path.name))
        lock(held, shared=True)
        yield folder
        with suppress(OSError):  # a file of another process went away
            write_json(cache_root / "headers.json", digests(folder))


def _keep_if(path: Path, known: tuple[Any, ...] | None) -> None:
    """Remove `path` unless it is the file of size and SHA-256 `known`."""
    with suppress(OSError), opened(path, 0) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
        if digest(file) == known:
            return
    path.unlink()


def _clear(folder: Path) -> None:
    with suppress(FileNotFoundError):
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)


def _prune(cache_root: Path, but: str) -> None:
    """Remove the graphs that were not used for the longest time."""
    with suppress(OSError):
        paths = [path for path in cache_root.glob(f"*/{MANIFEST}") if path.parent.name != but]
        used = {path.parent: path.stat().st_mtime for path in paths}
        for folder in sorted(used, key=lambda folder: used[folder], reverse=True)[LIMIT - 1 :]:
            with _locked(cache_root / f"{folder.name[:2]}.lock"):
                _clear(folder)
