"""The command `fastres`, and `python -m fastres`."""

import os
import signal
from contextlib import suppress


def main() -> None:
    """Entry point of the command: hears Ctrl-C before anything else is imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from fastres.cli.app import main as run

    run()


def _leave(number: int, frame: object) -> None:
    """End at once: nothing has begun, and an exception would be the import's, which may swallow it."""
    with suppress(OSError):
        os.write(2, b"fastres: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
