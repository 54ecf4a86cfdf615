"""Signals that end a command, and are not lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastres.utils.signals import Ending, Interrupt

pytestmark = pytest.mark.serial


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_raises_and_its_meaning_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Ending():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before and not Ending.asked


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Ending():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


class Swallows:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_signal_where_python_can_only_print_it_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Ending():
        one = Swallows()
        del one
        time.sleep(5)
    assert capsys.readouterr().err == ""


def test_a_signal_that_an_import_swallowed_stops_the_training_before_it_begins() -> None:
    with pytest.raises(KeyboardInterrupt), Ending():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        with Interrupt():
            pytest.fail("it went on")


# What an import does with the exception that a signal raises in it: passes it on, or makes another one of it.
IMPORTED = {
    "typer": "TOLD; time.sleep(30)",
    "torch": "TOLD; time.sleep(30)",
    "torch ": "try: TOLD; time.sleep(30)\nexcept BaseException: raise ImportError('half of torch is missing')",
}


@pytest.mark.parametrize("module", IMPORTED)
def test_ctrl_c_while_modules_are_imported_is_a_word(module: str, tmp_path: Path) -> None:
    """In the first half second of a command: its own imports, or those of what it runs."""
    told = "os.write(1, b'here')"
    text = "import os, time\n" + IMPORTED[module].replace("TOLD", told)
    (tmp_path / f"{module.strip()}.py").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastres", "train", "recipe.toml", "--out", tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.read(4) == "here"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "fastres: interrupted\n")
    assert not (tmp_path / "out").exists()
