"""The C++ compiler that TorchInductor calls on a CPU: which one, whether it works, and what it says where it does not.

TorchInductor puts its command together as text, unquoted, and looks for a program that is named as CXX is. A space in
the path of the cache or of Python, or CXX="ccache g++", ended each compilation after half a minute of preparing it, in
vain at every start. So did a TMPDIR without room.
"""

import copy
import functools
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fastres.utils.progress import say
from fastres.utils.variables import kept_variables

ROOM = 32 << 20
"""Bytes that the compiler's temporary files may take; one preprocessed header is 10 MB."""
_SOURCE = "#include <Python.h>\n#include <omp.h>\n#include <vector>\nint sum(std::vector<int>& v) { return v.at(0); }\n"


class CompilerFault(Exception):
    """The compiler does not compile; the text is what it says."""


def compiler_command(variable: str = "CXX", names: tuple[str, ...] = ("g++", "clang++", "c++")) -> list[str] | None:
    """The compiler as words of a command: what CXX says, a program with arguments or one whose path may have spaces,
    else the first of `names` that is installed. None where there is none."""
    told = os.environ.get(variable, "").strip()
    if not told:
        return next(([name] for name in names if shutil.which(name)), None)
    if shutil.which(told):
        return [told]
    try:
        parts = shlex.split(told)
    except ValueError:  # a quotation mark without its partner
        return None
    return parts if parts and shutil.which(parts[0]) else None


def missing_compiler() -> str | None:
    """Message that TorchInductor's C++ compiler is missing, with the command to install it; None where there is one."""
    if compiler_command() is not None:
        return None
    if told := os.environ.get("CXX"):
        return f"there is no C++ compiler {told!r}, which CXX names: unset CXX, or name one that is installed"
    return "no C++ compiler found: `apt-get install g++ python3-dev`"


@functools.cache
def compiler_fault() -> str | None:
    """What the compiler says to a few lines that include Python.h and omp.h; None where it compiles them. 0.3 s, once
    in a process: preparing what it is to compile takes 10 s and more."""
    command = compiler_command()
    if command is None:
        return missing_compiler()
    flags = ["-shared", "-fPIC", "-fopenmp", "-std=c++17", f"-I{sysconfig.get_path('include')}", "-o", os.devnull]
    command += ["-x", "c++", "-", *flags]
    try:
        done = subprocess.run(command, input=_SOURCE.encode(), capture_output=True, timeout=60)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"{command[0]}: {error}".splitlines()[0][:200]
    return said((done.stdout + done.stderr).decode(errors="replace")) if done.returncode else None


def said(output: str) -> str:
    """The line of a compiler's output that tells what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing"]
    return next((line for line in lines if "error" in line.lower()), lines[-1])[:200]


@contextmanager
def usable_compiler(spare: Path | None = None) -> Iterator[None]:
    """As `named_compiler`; temporary files are in a folder below `spare` where the usual one has no room. Raises
    CompilerFault where the compiler does not work even so."""
    with _temporary_files_fit(spare):
        if (fault := compiler_fault()) is not None:
            raise CompilerFault(fault)
        with named_compiler():
            yield


@contextmanager
def named_compiler() -> Iterator[None]:
    """TorchInductor calls the compiler as CXX names it, with paths as they are; compiled code is found by it."""
    from torch._inductor import cpp_builder

    command, search = compiler_command(), cpp_builder.cpp_compiler_search
    own = [(None, "g++"), (None, os.environ.get("CXX"))]  # what torch's settings are where nobody chose

    def search_or_told(wanted: Any) -> str:
        return shlex.join(command) if command is not None and tuple(wanted) in own else search(wanted)

    builder: Any = cpp_builder.CppBuilder
    with (
        mock.patch.object(cpp_builder, "cpp_compiler_search", search_or_told),
        mock.patch.object(builder, "__init__", _quoting(builder.__init__)),
    ):
        yield


def _quoting(build: Callable[..., None]) -> Callable[..., None]:
    """TorchInductor's CppBuilder.__init__, with paths that a shell would read as they are."""

    @functools.wraps(build)
    def quoted(self: Any, name: str, sources: str | list[str], BuildOption: Any, output_dir: str = "") -> None:
        options = copy.copy(BuildOption)
        options._libraries_dirs = [shlex.quote(folder) for folder in options._libraries_dirs]
        if options.precompiled_header:
            options.precompiled_header = shlex.quote(options.precompiled_header)
        paths = [sources] if isinstance(sources, str) else sources
        build(self, name, [shlex.quote(path) for path in paths], options, output_dir)
        self._output = self._output.replace(self._target_file, shlex.quote(self._target_file))

    return quoted


@contextmanager
def _temporary_files_fit(spare: Path | None) -> Iterator[None]:
    """Temporary files of this process and of those that it starts are where there is room for them, if anywhere."""
    told, usual = os.environ.get("TMPDIR"), tempfile.gettempdir()  # another one where Python could not write there
    roomy = None
    if not (_has_room(told or usual) and _has_room(usual)):
        roomy = next(filter(_has_room, [usual] if spare is None else [usual, str(spare)]), None)
    if roomy is None:
        yield
        return
    _say_once(f"{told or usual} has no room for the compiler's temporary files: they are in {roomy}")
    with (
        tempfile.TemporaryDirectory(dir=roomy, prefix="tmp-") as folder,
        mock.patch.object(tempfile, "tempdir", folder),
        kept_variables("TMPDIR"),
    ):
        os.environ["TMPDIR"] = folder
        yield


def _has_room(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, ROOM)
    except OSError:
        return False
    return True


_say_once = functools.cache(say)
