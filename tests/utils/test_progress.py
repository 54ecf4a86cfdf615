"""What preparations say while they go on, where standard error is no terminal."""

import pytest

from fastres.utils import progress


def test_lines_tell_what_is_done_and_how_long_the_rest_takes(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 104.0, 110.0, 140.0, 140.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("reading", 4_000) as advance:
        advance(500)  # after 4 s: too early for a line
        advance(500)  # a quarter in 10 s
        advance(3_000)
    assert capfd.readouterr().err.splitlines() == [
        "reading: 1,000 of 4,000, 10 s, about 30 s left",
        "reading: 4,000 of 4,000, 40 s, about 0 s left",
        "reading: 4,000 of 4,000, done in 40.0 s",
    ]


def test_an_unknown_total_has_no_time_left(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("reading", None) as advance:
        advance(500)
    assert capfd.readouterr().err.splitlines() == ["reading: 500, 10 s", "reading: 500, done in 10.0 s"]
