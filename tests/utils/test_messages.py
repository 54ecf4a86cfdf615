"""Messages: on standard error by themselves, and wherever the logger `fastres` is told to send them."""

import logging

import pytest

from fastres.utils.progress import LOG, say


def test_messages_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("100% of %s")
    say("nothing", quiet=True)
    assert capsys.readouterr().err == "100% of %s\n"


def test_a_program_can_have_them_elsewhere(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOG, "handlers", [])
    monkeypatch.setattr(LOG, "propagate", True)
    say("a message")
    assert [(record.name, record.levelno) for record in caplog.records] == [("fastres", logging.INFO)]
    assert capsys.readouterr().err == ""
