"""The regression gate: whether the working tree trains an epoch slower than another commit, and which part of it.

Each side is a process of its own (worker.py) with its own fastres, both measured by this checkout's worker. They
take turns in fours: one side, the other, and both again in an order that a coin decides each time, A B B A or B A A B.
So whatever drifts or disturbs for longer than four turns meets both sides alike, and what disturbs for less is as
likely to hit either. The ratio of a four is the time of the working tree's two turns over that of the other's two.

The rule is a sign test. Were the working tree slower by exactly `Rule.limit`, each four would lie above or below with
probability ½, whatever the distribution of the noise, because the order is drawn. A part is slower, or not slower, once
so many fours lie on one side of the limit that this coin shows it with probability `Rule.error` or less, divided by the
number of looks (Bonferroni). What no look decides is decided by the median of all fours, and marked as such.
"""

import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from fastres.bench.timing import seconds as timed
from fastres.recipe import Recipe
from fastres.utils.machine import computes_bf16, environment_facts

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "report_best.toml"
SETTINGS = ["data.source=shapes10", "data.train_images=2000", "data.test_images=200", "eval.batch_size=200"]
if not computes_bf16(environment_facts()["isa"]):  # emulated, a step takes ten times as long, and the gate an hour
    SETTINGS.append("train.precision=fp32")
PARTS = ("epoch", "step", "augmentation", "loader", "evaluation")
PAUSE = 0.01
"""Seconds before a turn: idle OpenMP threads of the other side spin for some milliseconds after their last work."""
AGREES = 0.02
"""Relative difference of what both sides compute that may be rounding: bf16 has 8 bits, and sums are over thousands."""


class GateError(Exception):
    """The gate cannot be run, or its sides cannot be compared; the message says why."""


@dataclass(frozen=True)
class Rule:
    """When the gate decides."""

    limit: float = 1.05
    """Ratio of times that counts as slower."""
    error: float = 0.01
    """Probability of each wrong verdict at exactly that ratio."""
    looks: tuple[int, ...] = (10, 14, 20, 28, 40, 60)
    """Numbers of fours after which it looks."""


SHORT = Rule(looks=(10, 14, 20))


@dataclass(frozen=True)
class Finding:
    """A part of an epoch on both sides."""

    part: str
    slower: bool
    decided: bool
    """By the sign test; else by the median."""
    fours: int
    ratio: float
    """Median of the fours: seconds of the working tree over those of the baseline."""
    low: float
    high: float
    """95% interval of the median, by order statistics."""
    seconds: float
    """Of a turn of the working tree, median."""
    baseline_seconds: float
    images: int
    """In a turn."""

    @property
    def text(self) -> str:
        """A sentence."""
        change = f"{self.ratio - 1:+.1%} ({self.low - 1:+.1%} to {self.high - 1:+.1%})"
        how = "" if self.decided else ", undecided by the sign test"
        return f"{self.part}: {'slower' if self.slower else 'not slower'}, {change} after {self.fours} fours{how}"


def verdict(ratios: Sequence[float], rule: Rule) -> bool | None:
    """Whether `ratios`, as many as at one of the rule's looks, show that the time is above its limit; None: neither."""
    above = sum(ratio > rule.limit for ratio in ratios)
    error = rule.error / len(rule.looks)
    if at_least(above, len(ratios)) <= error:
        return True
    return False if at_least(len(ratios) - above, len(ratios)) <= error else None


def at_least(heads: int, tosses: int) -> float:
    """Probability of `heads` or more in so many tosses of a coin."""
    return sum(math.comb(tosses, count) for count in range(heads, tosses + 1)) / 2**tosses


def interval(ratios: Sequence[float], error: float = 0.05) -> tuple[float, float]:
    """Interval of the median that is exact for any distribution: from the k-th value to the k-th from above, with the
    largest k whose chance of missing is `error` or less; the extremes where there are too few."""
    ordered, count = sorted(ratios), len(ratios)
    k = max((k for k in range(1, count // 2 + 1) if 2 * at_least(count - k + 1, count) <= error), default=1)
    return ordered[k - 1], ordered[count - k]


def decide(four: Callable[[], float], rule: Rule) -> tuple[list[float], bool, bool]:
    """Ask for ratios of `four` until the rule decides: the ratios, whether the tree is slower, and by the sign test."""
    ratios: list[float] = []
    for look in rule.looks:
        ratios += [four() for _ in range(look - len(ratios))]
        said = verdict(ratios, rule)
        if said is not None:
            return ratios, said, True
    return ratios, statistics.median(ratios) > rule.limit, False


class Side:
    """A process with the fastres of one checkout. Its methods raise GateError where it ends before it is closed."""

    def __init__(self, checkout: Path, recipe: Path, data: Path, threads: int) -> None:
        self.checkout, self.threads = checkout, threads
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - close does
        worker = Path(__file__).with_name("worker.py")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, worker, checkout, recipe, data],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env=environment | {"OMP_NUM_THREADS": str(threads)},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._asks: IO[str] = self.process.stdin
        self._answers: IO[str] = self.process.stdout
        self.parts: dict[str, dict[str, Any]] = {}

    def ready(self) -> None:
        """Wait until everything is compiled."""
        self.parts = self._answer()

    def turn(self, part: str) -> float:
        """Seconds of a turn of `part`."""
        time.sleep(PAUSE)
        with suppress(BrokenPipeError):  # the missing answer is reported by _answer
            self._asks.write(part + "\n")
            self._asks.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        line = self._answers.readline()
        if line:
            return json.loads(line)
        self.said.seek(0)
        last = [text for text in self.said.read().splitlines() if text.strip()][-1:]
        raise GateError(f"the worker on {self.checkout} ended: {' '.join(last) or 'without a word'}")

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self._asks.close()
        self.process.wait()
        self._answers.close()
        self.said.close()


def free_cores(seconds: float = 1.0) -> int:
    """How many threads find a core that nobody else uses, at least 1: by what the cores did in so many seconds, where
    the system tells. Threads that wait for one another while some other process holds a core of theirs measure the
    scheduler: with one of two cores busy, a step by two threads scattered by 20%, and by one as if idle."""
    wanted = torch.get_num_threads()
    before = _idle_seconds()
    if before is None:
        return wanted
    began = time.perf_counter()
    time.sleep(seconds)
    after = _idle_seconds()
    assert after is not None
    # Rounded to the nearest: what runs now and then, this process among it, costs no core.
    return max(1, min(wanted, math.floor((after - before) / (time.perf_counter() - began) + 0.5)))


def _idle_seconds() -> float | None:
    """For how long the cores that this process may use have been idle, together; None where there is no /proc."""
    try:
        text = Path("/proc/stat").read_text()
    except OSError:
        return None
    cores = os.sched_getaffinity(0)
    lines = [line.split() for line in text.splitlines() if re.match(r"cpu\d", line)]
    ticks = sum(int(idle) + int(waiting) for name, _, _, _, idle, waiting, *_ in lines if int(name[3:]) in cores)
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def open_sides(recipe: Recipe, *checkouts: Path) -> Iterator[list[Side]]:
    """A side for each checkout, compiled. Raises GateError where one does not start."""
    with tempfile.TemporaryDirectory(prefix="fastres-gate-") as folder, ExitStack() as stack:
        path, data = Path(folder) / "recipe.toml", Path(folder) / "data"
        path.write_text(recipe.to_toml())
        sides, threads = [], free_cores()
        # One after the other: side by side they would compile, and draw shapes10, at half the speed each.
        for checkout in checkouts:
            sides.append(stack.enter_context(closing(Side(checkout, path, data, threads))))
            sides[-1].ready()
        yield sides


@dataclass
class Gate:
    """Both sides, ready."""

    sides: list[Side]
    """The baseline's, and that of the working tree."""
    rule: Rule
    coin: random.Random = field(default_factory=random.Random)

    def compare(self, part: str) -> Finding:
        """Time `part` on both sides until the rule decides."""
        baseline, tree = self.sides
        times: dict[Side, list[float]] = {baseline: [], tree: []}

        def four() -> float:
            first, second = self.coin.sample(self.sides, 2)
            spent = {first: 0.0, second: 0.0}
            for side in (first, second, second, first):
                took = side.turn(part)
                times[side].append(took)
                spent[side] += took
            return spent[tree] / spent[baseline]

        four()  # caches, clocks
        for taken in times.values():
            taken.clear()
        ratios, slower, decided = decide(four, self.rule)
        seconds, baseline_seconds = (statistics.median(times[side]) for side in (tree, baseline))
        images = tree.parts[part]["images"]
        ratio = statistics.median(ratios)
        return Finding(part, slower, decided, len(ratios), ratio, *interval(ratios), seconds, baseline_seconds, images)


@contextmanager
def opened(baseline: Path, recipe: Recipe, *, checkout: Path = ROOT, rule: Rule | None = None) -> Iterator[Gate]:
    """The gate between two checkouts. Raises GateError where a side does not start, or where they compute different
    numbers: then a ratio would say nothing."""
    with open_sides(recipe, baseline, checkout) as sides:
        check_same(*(side.parts for side in sides))
        yield Gate(sides, rule or Rule())


def against_rival(tree: Side, rival: Callable[[], object], fours: int = 5) -> float:
    """Seconds of `rival`'s step over those of a side's, by turns with as many threads: for information."""
    threads = torch.get_num_threads()
    torch.set_num_threads(tree.threads)
    try:
        rival()
        ratios = []
        for _ in range(fours):
            theirs = 0.0
            for _ in range(2):
                time.sleep(PAUSE)
                theirs += timed(rival)
            ratios.append(theirs / (tree.turn("step") + tree.turn("step")))
    finally:
        torch.set_num_threads(threads)
    return statistics.median(ratios)


def check_same(baseline: dict[str, dict[str, Any]], tree: dict[str, dict[str, Any]]) -> None:
    """Raise GateError where the parts of both sides did not compute the same numbers."""
    for part in PARTS:
        before, now = baseline[part]["computed"], tree[part]["computed"]
        close = len(before) == len(now) and all(
            math.isclose(one, other, rel_tol=AGREES, abs_tol=AGREES) for one, other in zip(before, now, strict=True)
        )
        if not close:
            raise GateError(f"{part}: the working tree computes {now}, the baseline {before}: there is nothing to time")


# ---------------------------------------------------------------------------------------------------- the baseline


def _git(*arguments: str, root: Path = ROOT) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise GateError("git is not installed, which has the baseline") from error
    except subprocess.CalledProcessError as error:
        why = error.stderr.strip().splitlines()[-1:] or [f"{arguments[-1]} is no commit of this checkout"]
        raise GateError(f"git {arguments[0]}: {why[0]}") from error
    return done.stdout.strip()


def baseline_of(given: str | None, root: Path = ROOT) -> str:
    """The commit to compare with: `given`; else the last one that differs from the working tree, which is HEAD where
    the package has uncommitted changes, and HEAD~1 where it has none."""
    if given is None:
        given = "HEAD" if _git("status", "--porcelain", "--", "fastres", "kernels", root=root) else "HEAD~1"
    return _git("rev-parse", "--verify", "--quiet", f"{given}^{{commit}}", root=root)


def check_out(commit: str, folder: Path, root: Path = ROOT) -> Path:
    """Put the package as of `commit` into the new folder `folder`, which is returned."""
    with tempfile.TemporaryDirectory() as temporary:
        archive = Path(temporary) / "tree.tar"
        _git("archive", "--output", str(archive), commit, "fastres", "kernels", root=root)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder
