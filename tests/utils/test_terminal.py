"""Output of a command whose terminal or reader has gone, or that has none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastres.utils.progress import progress, say
from fastres.utils.terminal import on_terminal, tell

WRITE = r"""if True:
    import os, sys
    from fastres.utils.terminal import lasting_streams
    sys.stdin.read(1)
    with lasting_streams():
        for stream in (sys.stdout, sys.stderr):
            for number in range(2):
                print("a \udce9 line", file=stream, flush=True)
        os.write(2, b"from below\n")
        said = open(sys.argv[1], "w")
        assert said.fileno() > 2, "a file in the place of a stream would get what is printed"
        said.write("went on")
    assert sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_take_everything(closed: str, tmp_path: Path) -> None:
    command = f'"$0" -c "$1" "$2" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, WRITE.replace("sys.stdin.read(1)", ""), tmp_path / "said"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text() == "went on"
    assert (done.stdout, done.stderr) == (
        "" if " >&-" in f" {closed}" else "a ? line\na ? line\n",
        "" if "2>&-" in closed else "a ? line\na ? line\nfrom below\n",
    )


def test_a_terminal_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    terminal, own = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, tmp_path / "said"], stdin=subprocess.PIPE, stdout=own, stderr=own
    )
    os.close(own)
    os.close(terminal)  # from here on the process's writing fails with EIO
    process.communicate(b"x")
    assert process.returncode == 0
    assert (tmp_path / "said").read_text() == "went on"


def test_a_program_without_standard_error_prints_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not on_terminal()
    tell("a line")
    say("a message")
    with progress("work", 3) as advance:
        advance(3)
    assert capsys.readouterr().out == ""
