"""The execution of a whole grid: registers of all threads, branches, barriers, and the order in which blocks run.

Threads that stand at one instruction form a group, which executes it at once, in NumPy. A group splits at a branch
where its threads disagree; of several groups the one that stands first in the program goes on, and groups that meet
become one. By default all blocks run in step. With an order, blocks or warps take turns at random, some instructions
each, so that every wait for another block is a wait.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ptx.copies import Copies
from ptx.instructions import Branch, Step, decode, numbers
from ptx.memory import UNSIGNED, GlobalMemory, SharedMemory, Uninitialised
from ptx.parse import Program, PtxError

Selection = Any
"""The threads of a group: a slice, or their numbers in order. Threads are numbered block after block."""

WIDTHS = {"pred": 0, "b16": 2, "b32": 4, "b64": 8}
LIMIT = (200_000, 5_000)
"""Instructions of all groups together, and for each turn besides: a wait that never ends goes beyond them."""
PATIENCE = 4096
"""Instructions after which a group that may be waiting lets those behind it in the program go on."""


@dataclass(frozen=True)
class Order:
    """A random order, by its seed, of blocks or of warps."""

    seed: int
    warps: bool = False


class Group:
    """Threads that stand at one instruction."""

    def __init__(self, position: int, threads: Selection, delays: int = 0) -> None:
        self.position, self.threads, self.delays = position, threads, delays

    def key(self) -> tuple[int, int]:
        return self.delays, self.position


class Machine:
    """A launch: registers and memory of all its threads."""

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        shared: int,
        arguments: Mapping[str, Any],
        *,
        exact: bool = False,
        uninitialised: Uninitialised | None = None,
        count_sectors: bool = False,
        limit: tuple[int, int] = LIMIT,
    ) -> None:
        self.program, self.grid = program, grid
        self._limit = limit
        code = decode(program)
        if exact and code.inexact:
            raise PtxError(f"{program.name} promises bits but approximates: {code.inexact[0]}")
        self.steps: tuple[Step | Branch, ...] = code.steps
        self.guards = code.guards
        self.blocks, self.block_threads = grid[0] * grid[1] * grid[2], program.threads
        self.threads = self.blocks * self.block_threads
        thread = np.arange(self.threads)
        self.block = thread // self.block_threads
        self.warp = thread // 32
        self.warp_in_block = thread % self.block_threads // 32
        self.special = self._special(thread)

        self.memory = GlobalMemory(uninitialised, count_sectors)
        self.parameters = self._parameters(arguments)
        self.shared = SharedMemory(self.blocks, shared, code.shared_word)
        self.copies = Copies(self.memory, self.shared, self.block_threads, self.threads)

        count = len(program.registers)
        self.registers: list[NDArray | None] = [None] * count
        self.complete = [False] * count
        """Whether all threads have written a register."""
        self._written: list[NDArray | None] = [None] * count
        self._widths = [WIDTHS[kind] for kind in program.registers.values()]
        self._arbitrary = code.arbitrary

        self.executed = 0
        self._waiting = np.full(self.threads, -1)
        """The barrier at which a thread waits."""
        self._arrived = np.zeros(self.blocks, np.int64)
        self._left = np.zeros(self.blocks, np.int64)
        """Threads that wait at a barrier, and that have returned."""

    def _special(self, thread: NDArray) -> dict[str, NDArray]:
        across, down, _ = self.grid
        found = {
            "%tid.x": thread % self.block_threads,
            "%laneid": thread % 32,
            "%ctaid.x": self.block % across,
            "%ctaid.y": self.block // across % down,
            "%ctaid.z": self.block // (across * down),
            "%ntid.x": np.full(self.threads, self.block_threads),
        }
        found |= {f"%nctaid.{axis}": np.full(self.threads, size) for axis, size in zip("xyz", self.grid, strict=True)}
        return {name: values.astype(np.uint32) for name, values in found.items()}

    def _parameters(self, arguments: Mapping[str, Any]) -> dict[str, int]:
        """The bits of each parameter. Triton appends pointers to scratch memory, which these kernels need not: null."""
        values = [
            self.memory.admit(name, value)
            if isinstance(value, Tensor)
            else int(np.float32(value).view(np.uint32))
            if isinstance(value, float)
            else int(value)
            for name, value in arguments.items()
        ]
        return dict(zip(self.program.parameters, values + [0] * 8, strict=False))

    # Registers

    def read(self, register: int, threads: Selection) -> NDArray:
        """The bits of a register in some threads; reading what was never written is an error."""
        if not self.complete[register]:
            self._check_written(register, threads)
        values = self.registers[register]
        assert values is not None
        return values[threads]

    def _check_written(self, register: int, threads: Selection) -> None:
        written = self._written[register]
        if written is None or not written[threads].all():
            if register not in self._arbitrary:
                raise PtxError(f"reads {list(self.program.registers)[register]}, which was not written")
            self._set_arbitrary(register)
        elif written.all():
            self.complete[register] = True

    def _set_arbitrary(self, register: int) -> None:
        """Random bits for what the compiler left undefined: whatever depends on them is wrong."""
        draw, width = np.random.default_rng(register), self._widths[register]
        bits = draw.integers(0, 256, self.threads * max(width, 1), np.uint8)
        values = bits.view(UNSIGNED[width]) if width else bits % 2 == 1
        written, old = self._written[register], self.registers[register]
        if written is not None and old is not None:
            values = np.where(written, old, values)
        self.write(register, slice(0, self.threads), values)

    def write(self, register: int, threads: Selection, values: Any) -> None:
        """Set a register's bits, of its own width."""
        target = self.registers[register]
        if target is None:
            width = self._widths[register]
            target = self.registers[register] = np.zeros(self.threads, UNSIGNED[width] if width else np.bool_)
            self._written[register] = np.zeros(self.threads, np.bool_)
        target[threads] = values
        if not self.complete[register]:
            if isinstance(threads, slice) and threads.stop - threads.start == self.threads:
                self.complete[register] = True
            else:
                written = self._written[register]
                assert written is not None
                written[threads] = True

    # Execution

    def run(self, order: Order | None = None, cooperative: bool = False) -> None:
        """Until all threads have returned. Without an order all blocks run in step.

        With one, not all blocks run at once unless the launch is cooperative: some begin when others have ended.
        """
        size = self.threads if order is None else 32 if order.warps else self.block_threads
        self._turn_size = size
        self._most = self._limit[0] + self._limit[1] * (self.threads // size)
        self._turns = [[Group(0, slice(first, first + size))] for first in range(0, self.threads, size)]
        with np.errstate(all="ignore"):
            if order is None:
                self._advance(self._turns[0], self._most + 1)
            else:
                self._in_order(random.Random(order.seed), cooperative)
        if self._left.sum() != self.threads:
            raise PtxError("a barrier is reached by a part of a block: the others have returned or wait elsewhere")

    def _in_order(self, draw: random.Random, cooperative: bool) -> None:
        """Turns of random length, of blocks that come at random."""
        coming = list(range(self.blocks))
        draw.shuffle(coming)
        most = self.blocks if cooperative else draw.randint(1, self.blocks)
        resident, coming = coming[:most], coming[most:]
        of_block = self.block_threads // self._turn_size
        while resident:
            ready = [
                groups
                for block in resident
                for groups in self._turns[block * of_block : (block + 1) * of_block]
                if groups
            ]
            if not ready:
                return  # all wait
            groups = draw.choice(ready)
            self._advance(groups, draw.randrange(1, 300))
            if not groups:
                ended = [block for block in resident if self._left[block] == self.block_threads]
                for block in ended:
                    resident.remove(block)
                    resident += [coming.pop()] if coming else []

    def _advance(self, groups: list[Group], budget: int) -> None:
        """Let the groups of one turn go on until they wait, have returned, or have executed so many instructions."""
        while groups and budget > 0:
            group = min(groups, key=Group.key)
            others = [other.position for other in groups if other is not group]
            ahead = [position for position in others if position > group.position]
            stop = min(ahead, default=len(self.steps))
            most = min(budget, PATIENCE) if others else budget
            before = self.executed
            self._run_group(groups, group, stop, most)
            budget -= self.executed - before
            if others and self.executed - before >= PATIENCE:
                group.delays += 1
            self._merge(groups)
            if self.executed > self._most:
                raise PtxError("no end: a wait that never ends?")

    def _run_group(self, groups: list[Group], group: Group, stop: int, most: int) -> None:
        """Execute a group's instructions until it reaches `stop`, splits, waits or has returned."""
        steps, guards = self.steps, self.guards
        position, threads = group.position, group.threads
        last = self.executed + most
        try:
            while position < stop and self.executed < last:
                step, guard = steps[position], guards[position]
                self.executed += 1
                chosen = threads if guard is None else self._chosen(threads, guard)
                if isinstance(step, Branch):
                    group.position = position
                    following = position + 1 if chosen is None else self._branch(groups, group, step, chosen)
                    if following is None:
                        return
                    position = following
                else:
                    if chosen is not None:
                        step(self, chosen)
                    position += 1
        except PtxError as error:
            text = self.program.instructions[position].text
            raise PtxError(f"{self.program.name}, instruction {position}, {text}: {error}") from error
        group.position = position

    def _branch(self, groups: list[Group], group: Group, branch: Branch, chosen: Selection) -> int | None:
        """Where the whole group goes on; None where it is not what it was."""
        everybody = chosen is group.threads
        if branch.kind == "jump" and everybody:
            return branch.targets[0]
        if branch.kind == "barrier" and everybody and self._whole_blocks(chosen):
            self.shared.epoch[self.block[chosen][:: self.block_threads]] += 1
            return group.position + 1
        here = group.position
        self._leave(groups, group, chosen)
        if branch.kind == "jump":
            groups.append(Group(branch.targets[0], chosen, group.delays))
        elif branch.kind == "table":
            choice = self.read(branch.register, chosen)
            if int(choice.max()) >= len(branch.targets):
                raise PtxError("a branch beyond its table")
            for value in np.unique(choice).tolist():
                some = tidy(numbers(chosen)[choice == value])
                groups.append(Group(branch.targets[value], some, group.delays))
        elif branch.kind == "return":
            self._left += np.bincount(self.block[chosen], minlength=self.blocks)
        else:
            self._wait(here, chosen)
        return None

    @staticmethod
    def _leave(groups: list[Group], group: Group, some: Selection) -> None:
        """The others of a group go on to the next instruction, if there are any."""
        if some is group.threads:
            groups.remove(group)
        else:
            group.position, group.threads = group.position + 1, without(group.threads, some)

    def _wait(self, position: int, threads: Selection) -> None:
        """Threads come to a barrier; who completes a block lets it go on."""
        self._waiting[threads] = position
        self._arrived += np.bincount(self.block[threads], minlength=self.blocks)
        turns = set()
        for block in np.flatnonzero(self._arrived == self.block_threads).tolist():
            own = slice(block * self.block_threads, (block + 1) * self.block_threads)
            if (self._waiting[own] != position).any():
                raise PtxError("the threads of a block wait at different barriers")
            self._waiting[own] = -1
            self._arrived[block] = 0
            self.shared.epoch[block] += 1
            size = min(self._turn_size, self.block_threads)
            for first in range(own.start, own.stop, size):
                turns.add(first // self._turn_size)
                self._turns[first // self._turn_size].append(Group(position + 1, slice(first, first + size)))
        for turn in turns:
            self._merge(self._turns[turn])

    def _whole_blocks(self, threads: Selection) -> bool:
        """Whether a group has all threads of each of its blocks, so that nobody needs to wait."""
        size = self.block_threads
        if isinstance(threads, slice):
            return threads.start % size == 0 and threads.stop % size == 0
        blocks = threads[::size]
        return len(threads) % size == 0 and bool((threads.reshape(-1, size) == blocks[:, None] + np.arange(size)).all())

    def _merge(self, groups: list[Group]) -> None:
        """Groups that have met become one."""
        if len(groups) < 2:
            return
        at: dict[int, list[Group]] = {}
        for group in groups:
            at.setdefault(group.position, []).append(group)
        if len(at) == len(groups):
            return
        groups[:] = [
            together[0]
            if len(together) == 1
            else Group(
                position,
                tidy(np.sort(np.concatenate([numbers(group.threads) for group in together]))),
                min(group.delays for group in together),
            )
            for position, together in at.items()
        ]

    def _chosen(self, threads: Selection, guard: tuple[int, bool]) -> Selection | None:
        """Those of a group that its predicate lets execute: the group itself where it is all, None where it is none."""
        register, negated = guard
        true = self.read(register, threads)
        if negated:
            true = ~true
        if true.all():
            return threads
        if not true.any():
            return None
        return tidy(numbers(threads)[true])


def tidy(threads: NDArray) -> Selection:
    """Numbers as a slice where they are one."""
    first, last = int(threads[0]), int(threads[-1])
    return slice(first, last + 1) if last - first + 1 == len(threads) else threads


def without(threads: Selection, some: Selection) -> Selection:
    """The threads that are not among `some` of them."""
    return tidy(np.setdiff1d(numbers(threads), numbers(some), assume_unique=True))
