"""What the tests of several loaders share."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def alarm(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test may not hang: not even where a lock is waited for, which a signal interrupts."""

    def bark(*_: object) -> None:
        raise TimeoutError("this took too long")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(600 if request.node.get_closest_marker("slow") else 60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
