"""The C++ compiler: how it is named, called and asked, and what is said of one that does not work."""

import errno
import os
import shlex
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastres.engine import compile_cache, cpp_compiler
from fastres.engine.compile import Compiled


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    cpp_compiler.compiler_fault.cache_clear()
    cpp_compiler._say_once.cache_clear()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in a folder whose name a shell would take apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "it's a cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return tmp_path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_how_a_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    for name in ("cache", "clang++", "my compilers/g++"):
        script(programs / name, "exit 0")
    monkeypatch.setenv("PATH", str(programs))
    spaced = str(programs / "my compilers" / "g++")
    for told, expected in {
        "": ["clang++"],
        "cache g++ -O1": ["cache", "g++", "-O1"],
        spaced: [spaced],
        f"cache '{spaced}'": ["cache", spaced],
        "g++": None,
        "missing g++": None,
        "cache 'g++": None,
    }.items():
        monkeypatch.setenv("CXX", told)
        assert cpp_compiler.compiler_command() == expected
        assert (cpp_compiler.missing_compiler() is None) == (expected is not None)
    assert 'no C++ compiler "cache \'g++", which CXX names' in str(cpp_compiler.missing_compiler())
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install g++" in str(cpp_compiler.missing_compiler())


def test_paths_arrive_as_they_are(tmp_path: Path) -> None:
    """All that TorchInductor's command line names: sources, results, libraries' folders, the precompiled header."""
    from torch._inductor import cpp_builder

    odd = tmp_path / 'it\'s "a" \\ folder'
    odd.mkdir()
    plain: dict[str, Any] = {"compiler": "g++", "include_dirs": [str(odd)], "libraries_dirs": [str(odd / "lib")]}
    options = cpp_builder.BuildOptionsBase(**plain)
    options.precompiled_header = str(odd / "header.h")
    with cpp_compiler.named_compiler():
        builder = cpp_builder.CppBuilder("name", [str(odd / "a.cpp"), str(odd / "b.cpp")], options, str(odd))
        words = shlex.split(builder.get_command_line())
        target = builder.get_target_file_path()
    expected = [str(odd / name) for name in ("a.cpp", "b.cpp", "header.h")]
    assert [*expected, f"-I{odd}", f"-L{odd / 'lib'}", target] == [
        word for word in words if str(odd) in word and not word.startswith("-")
    ][:3] + [word for word in words if word.startswith(("-I", "-L"))] + [words[words.index("-o") + 1]]
    assert target == str(odd / "name.so")
    assert options._libraries_dirs == [str(odd / "lib")], "what torch goes on with is as it was"


def test_it_compiles_through_a_launcher_into_an_odd_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX of two words, and paths with a space and a quotation mark."""
    log = home / "log"
    launcher = script(home / "launcher", f'echo called >> {log}; exec "$@"')
    monkeypatch.setenv("CXX", f"{launcher} g++")
    compiled = Compiled(lambda x: (x * 2 + 1).relu(), enabled=True)
    # Without what takes ten seconds on an empty folder: trying instruction sets, and precompiling a header.
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False}):
        assert torch.equal(compiled(torch.arange(-4.0, 4)), (torch.arange(-4.0, 4) * 2 + 1).relu())
    assert compiled.active and compiled.fallback_reason is None
    assert log.read_text().count("called") >= 2  # once for the few lines that are tried first
    assert list((home / "it's a cache").rglob("*.so"))


@pytest.mark.parametrize("keeps", [True, False])
def test_what_a_broken_compiler_says_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool) -> None:
    """Before anything is traced, which takes ten seconds for a network, and once in a process."""
    calls = home / "calls"
    text = f"echo called >> {calls}; echo compiling; echo 'x.cpp:1: fatal error: no such luck'; echo stopped; exit 1"
    monkeypatch.setenv("CXX", str(script(home / "broken" / "g++", text)))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("it was compiled in vain"))
    network = nn.Linear(3, 2)
    for _ in range(2):
        compiled = Compiled(network.forward, enabled=True, network=network if keeps else None)
        assert torch.equal(compiled(torch.ones(2, 3)), network(torch.ones(2, 3)))
        assert not compiled.active
        reason = "the C++ compiler does not work: x.cpp:1: fatal error: no such luck"
        assert compiled.fallback_reason == reason
    assert calls.read_text().count("called") == 1
    assert not list(home.rglob("graph.bin")) and not list(home.rglob("isa-*.json"))


def test_what_the_compiler_says_later_is_said_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that cannot be compiled to be kept is not compiled a second time, not to be kept."""
    from torch._inductor.exc import CppCompileError, InductorError

    def fail(*_: Any) -> None:
        raise InductorError(CppCompileError(["g++"], "k.cpp: note: 1\nk.cpp: error: no room\nfinished"), None)

    monkeypatch.setattr(compile_cache, "get_or_compile", fail)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("it was compiled again"))
    network = nn.Linear(3, 2)
    compiled = Compiled(network.forward, enabled=True, network=network)
    compiled(torch.ones(2, 3))
    assert not compiled.active
    assert compiled.fallback_reason == "compilation failed: the C++ compiler said: k.cpp: error: no room"


@pytest.mark.parametrize("fallocate", [errno.ENOSPC, errno.EDQUOT, None])
def test_temporary_files_go_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallocate: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    full, spare = tmp_path / "full", tmp_path / "spare"
    full.mkdir()
    spare.mkdir()
    monkeypatch.setenv("TMPDIR", str(full))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def reserve(number: int, _offset: int, _size: int) -> None:
        if fallocate is not None and Path(f"/proc/self/fd/{number}").readlink().is_relative_to(full):
            raise OSError(fallocate, os.strerror(fallocate))

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    with cpp_compiler._temporary_files_fit(spare):
        expected = full if fallocate is None else spare
        assert Path(tempfile.gettempdir()).is_relative_to(expected)
        assert Path(os.environ["TMPDIR"]).is_relative_to(expected)
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(full)
    assert not list(spare.iterdir())
    said = capsys.readouterr().err
    assert ("no room" in said and str(spare) in said) == (fallocate is not None)


@pytest.mark.parametrize("how", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE", "config", "set_stance"])
def test_torch_compile_that_is_switched_off(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls the function eagerly and says nothing: we do."""
    network = nn.Linear(3, 2)
    if how.isupper():
        monkeypatch.setenv(how, "1")
    with ExitStack() as stack:
        if how in ("TORCH_COMPILE_DISABLE", "config"):  # torch reads the variable when it is imported
            stack.enter_context(torch._dynamo.config.patch(disable=True))
        if how == "set_stance":
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        compiled = Compiled(network.forward, enabled=True, network=network)
    assert not compiled.active and how in str(compiled.fallback_reason)
    assert torch.equal(compiled(torch.ones(2, 3)), network(torch.ones(2, 3)))
