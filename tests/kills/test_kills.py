"""A thousand SIGKILLs at random instants, half of them before a change of the file system: the same command then ends
with the files of one that nobody disturbed, bit for bit, and leaves no others."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.forks import Forks
from tests.kills.commands import (
    Command,
    Compare,
    Predict,
    Prepare,
    PrepareBeton,
    PrepareEncoded,
    Reproduce,
    Search,
    Speedrun,
    Sweep,
    Train,
    TrainWithPage,
    run,
)

KILLS: dict[type[Command], int] = {
    Train: 250,
    TrainWithPage: 50,
    Prepare: 100,
    PrepareEncoded: 75,
    PrepareBeton: 75,
    Sweep: 100,
    Search: 100,
    Speedrun: 80,
    Predict: 80,
    Compare: 50,
    Reproduce: 40,
}
SAMPLE: dict[type[Command], int] = {Predict: 3}
SLOW = (pytest.mark.slow, pytest.mark.kills)
pytestmark = pytest.mark.serial
MODULES = (
    *("tests.kills.commands", "fastres.cli.app", "fastres.training.run", "fastres.evaluation.predict", "torch._dynamo"),
    *("fastres.experiments.sweep.search", "fastres.experiments.speedrun.run", "fastres.experiments.reproduce.run"),
    *("fastres.experiments.compare.page", "numba", "jinja2", "safetensors.torch", "tomli_w", "PIL.PngImagePlugin"),
    *("PIL.JpegImagePlugin", "optuna", "sqlalchemy.dialects.sqlite", "alembic.migration", "matplotlib.patheffects"),
)
"""What the commands import, some of it late."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(MODULES) as forks:
        yield forks


class Killer:
    """Kills a command at random, and lets it end."""

    def __init__(self, forks: Forks, command: Command) -> None:
        self.forks, self.command, self.log = forks, command, command.place / "out.log"
        command.place.mkdir()
        command.write(forks)
        self._clear()
        assert self._end(command.place / "changes") == 0, self.log.read_text()
        self.changes = int((command.place / "changes").read_text())
        self.expected = command.result()
        self._clear()
        started = time.monotonic()  # of a second one, which finds compiled what the first one compiled
        assert self._end() == 0, self.log.read_text()
        self.seconds = time.monotonic() - started
        self._check(["nothing"])

    def _clear(self) -> None:
        shutil.rmtree(self.command.out.parent, ignore_errors=True)
        self.command.out.parent.mkdir()

    def _end(self, count: Path | None = None) -> int:
        """Run the command to its end; 0 where there was nothing left to do."""
        if self.command.finished():
            return 0
        return self.forks.run(run, self.command.arguments(), None, count, output=self.log)

    def kill(self, random: Random) -> int:
        """From nothing, one kill or several, then the end. Returns how many killed it."""
        self._clear()
        kills, what = 0, []
        for _ in range(random.choice((1, 1, 2, 4))):
            if self.command.finished():
                break
            arguments = self.command.arguments()
            if random.random() < 0.5:
                event = random.randrange(self.changes)
                what.append(f"before change {event}")
                code = self.forks.run(run, arguments, event, output=self.log)
            else:
                seconds = random.random() * self.seconds
                what.append(f"after {seconds:.3f} s")
                child = self.forks.start(run, arguments, output=self.log)
                code = child.wait(seconds)
                if code is None:
                    child.kill()
                    code = child.wait()
            assert code in (0, -9), f"{what}: {self.log.read_text()}"
            kills += code == -9
            if code == 0:
                break
        else:
            assert self._end() == 0, f"{what}: {self.log.read_text()}"
        self._check(what)
        return kills

    def _check(self, what: list[str]) -> None:
        found = self.command.result()
        assert found.keys() == self.expected.keys(), f"{what}: {found.keys() ^ self.expected.keys()}"
        different = [name for name, content in found.items() if content != self.expected[name]]
        assert not different, f"{what}: {different}"


@pytest.mark.parametrize(
    ("command", "count"),
    [
        *(pytest.param(command, count, id=f"{command.name}-{count}") for command, count in SAMPLE.items()),
        *(pytest.param(command, count, id=f"{command.name}-{count}", marks=SLOW) for command, count in KILLS.items()),
    ],
)
def test_killed_and_run_again(
    command: type[Command],
    count: int,
    forks: Forks,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    if command is PrepareBeton:
        request.getfixturevalue("needs_ffcv")
    killer, done, rounds = Killer(forks, command(tmp_path / "place")), 0, 0
    while done < count:
        done += killer.kill(Random(f"{command.name} {rounds}"))
        rounds += 1
        assert rounds < 20 + 4 * count, "the command ends before it is killed"
    record_property(
        "log",
        f"{command.name}: {done} kills in {rounds} rounds; alone it takes {killer.seconds:.2f} s and changes the file "
        f"system {killer.changes} times; the files of each round are those of the undisturbed one",
    )
