"""Code that launches Triton kernels on CPU tensors, run with the machine in the GPU's place."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ptx.driver import Launch, emulated
from ptx.machine import Machine, Order
from ptx.memory import Uninitialised
from ptx.parse import parse


@dataclass(frozen=True)
class Executed:
    """A launch that was executed."""

    launch: Launch
    traffic: Counter[tuple[str, str]]
    """Bytes by "load" or "store" and the argument's name."""
    sectors: Counter[tuple[str, str]]


@dataclass
class Session:
    """How launches are executed, and those that were."""

    capability: int = 90
    order: Order | None = None
    exact: bool = False
    """Whether the kernels promise bits, so that no instruction may leave them open."""
    count_sectors: bool = False
    edit: Callable[[Launch], str] | None = None
    """Gives the PTX that is executed in the place of a launch's own: plants a fault into it."""
    executed: list[Executed] = field(default_factory=list)


TOTAL: Counter[str] = Counter()
"""What all sessions of the process have executed: "launches", and "kernels" different in their code."""
_SEEN: set[str] = set()


@contextmanager
def running(**options: Any) -> Iterator[Session]:
    """Triton's launches go to the machine, as `Session` says; new empty tensors are known to be unwritten.

    Raises PtxError out of a launch for whatever the machine refuses.
    """
    session = Session(**options)
    uninitialised = Uninitialised()

    def execute(launch: Launch) -> None:
        text = launch.ptx if session.edit is None else session.edit(launch)
        machine = Machine(
            parse(text),
            launch.grid,
            launch.shared,
            launch.arguments,
            exact=session.exact,
            uninitialised=uninitialised,
            count_sectors=session.count_sectors,
        )
        machine.run(session.order, launch.cooperative)
        session.executed.append(Executed(launch, machine.memory.traffic, machine.memory.sectors))
        TOTAL["launches"] += 1
        TOTAL["kernels"] += text not in _SEEN
        _SEEN.add(text)

    with emulated(execute, session.capability), uninitialised.watch():
        yield session
