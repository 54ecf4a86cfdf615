"""Files that are complete or absent, and the errors of disks that become one line."""

import errno
import os
import secrets
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastres.errors import UserError, disk_errors_are_the_users, disk_fault, out_of_gpu_memory
from fastres.utils.files import as_on_disk, atomic_file, check_writable, write_json, write_text
from fastres.utils.terminal import printable


def test_a_block_that_raises_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(KeyError), atomic_file(path) as file:
        file.write(b"half")
        raise KeyError
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_somebody_laid_there_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where its name, which is drawn, was guessed."""
    (tmp_path / "victim").write_text("precious")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0123")
    (tmp_path / f".file.{os.getpid()}-0123.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file", "text")
    assert (tmp_path / "victim").read_text() == "precious"


def impossible(tmp_path: Path, what: str) -> Path:
    """A path that no file can be written to."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return {
        "a folder": tmp_path / "folder",
        "the folder itself": Path(),
        "a file for a parent": tmp_path / "file" / "below",
        "a long name": tmp_path / ("x" * 300),
        "a long parent": tmp_path / ("x" * 300) / "file",
        "links in a circle": tmp_path / "circle" / "deep" / "file",
    }[what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a folder", "it is a folder: give the name of a file"),
        ("the folder itself", "it is a folder"),
        ("a file for a parent", "a file stands where a folder is needed"),
        ("a long name", "the name is too long for the file system: choose a shorter one"),
        ("a long parent", "the name is too long"),
        ("links in a circle", "symbolic links go in a circle"),
    ],
)
def test_what_cannot_be_written_is_said_before_and_while_writing(tmp_path: Path, what: str, message: str) -> None:
    path = impossible(tmp_path, what)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        check_writable(path)
    with pytest.raises(UserError, match=message):
        write_text(path, "text")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_checking_writes_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "old", "kept")
    check_writable(tmp_path / "old")
    check_writable(tmp_path / "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "kept")]


def test_a_name_that_is_no_utf8_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data/caf\\udce9.*: rename that file") as caught:
        write_text(tmp_path / "recipe.toml", 'name = "a"\nsource = "data/' + os.fsdecode(b"caf\xe9") + '"\n')
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_errors_that_no_fix_is_known_for_stay_what_they_are() -> None:
    with pytest.raises(OSError, match="Input/output error"), disk_errors_are_the_users(Path("x")):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert disk_fault(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert disk_fault(OSError("no number")) is None
    assert disk_fault(OSError(errno.ENOSPC, "No space left", "a/b")) == (
        "a/b: the disk is full: free some space or choose another place"
    )


def test_cudas_lack_of_memory_is_found_below_what_wraps_it() -> None:
    import torch

    lack = torch.OutOfMemoryError("CUDA out of memory.")
    wrapped = RuntimeError("a compiled step failed")
    wrapped.__cause__ = lack
    assert out_of_gpu_memory(lack)
    assert out_of_gpu_memory(wrapped)
    assert not out_of_gpu_memory(RuntimeError("CUDA error"))
    assert not out_of_gpu_memory(MemoryError())


def test_looking_for_cudas_lack_of_memory_does_not_import_torch() -> None:
    script = (
        "import sys; from fastres.errors import out_of_gpu_memory\n"
        "assert not out_of_gpu_memory(MemoryError()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_printable_text_commands_no_terminal_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert len(shown) == len(text)
    assert shown.isprintable()
    # Every letter stays or becomes a question mark, and a question mark stands only for what does not print.
    assert all(new == old or (new == "?" and not old.isprintable()) for old, new in zip(text, shown, strict=True))


def test_what_a_killed_writer_left_goes_with_the_next_check(tmp_path: Path) -> None:
    path = tmp_path / "out [1].csv"
    child = os.fork()
    if not child:
        with atomic_file(path):
            os._exit(9)  # as SIGKILL does
    os.waitpid(child, 0)
    mine = tmp_path / ".out [1].csv.backup.tmp"
    mine.touch()
    other = tmp_path / ".out 1.csv.17-0a1b2c3d.tmp"
    other.touch()
    assert len([*tmp_path.iterdir()]) == 3
    with atomic_file(path) as file:
        check_writable(path)
        file.write(b"another process is not dead")
    assert path.read_bytes() == b"another process is not dead"
    assert {*tmp_path.iterdir()} == {path, mine, other}


def test_a_path_is_found_in_the_unicode_form_of_the_disk(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    (tmp_path / decomposed / decomposed).mkdir(parents=True)
    assert as_on_disk(tmp_path / composed / composed) == tmp_path / decomposed / decomposed
    for path in (tmp_path / "plain", tmp_path / composed / "none", tmp_path / "ñ", Path("é/é"), Path("a\0é")):
        assert as_on_disk(path) == path
