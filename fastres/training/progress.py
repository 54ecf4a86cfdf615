"""The display of a training: a line an epoch, a bar within it, and the time that is left."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from fastres.runs.schema import Epoch
from fastres.utils.format import duration
from fastres.utils.terminal import on_terminal, tell


class Pace:
    """Speed of the recent past and the time that is left of the whole run. The caller brings the clock, in seconds.

    The first step of a process and its first end of an epoch compile, so neither counts; nor does a single step of a
    second or more that takes ten times as long as the others, such as the first partial batch, which compiles anew.
    Steps are timed in stretches of at least a second, of which the median of the last 30 counts. The ends of epochs
    (evaluation, checkpoint) are timed apart; a GPU that runs behind its launches catches up there.
    """

    def __init__(self, epochs: float, steps_per_epoch: int) -> None:
        self._total, self._per_epoch = round(epochs * steps_per_epoch), steps_per_epoch
        self._now: float | None = None
        self._step = 0
        self._stretches: deque[tuple[float, float]] = deque(maxlen=30)  # (seconds a step, images a second)
        self._seconds, self._steps, self._images = 0.0, 0, 0
        self._ends: deque[float] = deque(maxlen=5)
        self._ends_seen = 0
        self._passed_over = False

    def step(self, now: float, step: int, images: int) -> None:
        """Step number `step` of the run, counted from 1, ended at `now`; `images` were used since the last call."""
        last, before = self._now, self._step
        self._now, self._step = now, step
        if last is None:
            return
        if (step - 1) // self._per_epoch != (before - 1) // self._per_epoch:
            self._ends_seen += 1
            if self._ends_seen > 1:
                self._ends.append(max(0.0, now - last - (step - before) * (self._step_seconds() or 0.0)))
            return
        usual = self._step_seconds()
        slow = usual is not None and now - last >= max(1.0, 10 * usual * (step - before))
        if slow and not self._passed_over:  # a second slow step in a row is the new speed
            self._passed_over = True
            return
        self._passed_over = False
        self._seconds += now - last
        self._steps += step - before
        self._images += images
        if self._seconds >= 1.0:
            self._stretches.append((self._seconds / self._steps, self._images / self._seconds))
            self._seconds, self._steps, self._images = 0.0, 0, 0

    def _step_seconds(self) -> float | None:
        if self._stretches:
            return statistics.median(seconds for seconds, _ in self._stretches)
        return self._seconds / self._steps if self._steps else None

    def images_per_second(self) -> float | None:
        """Images a second inside epochs; None before there is anything to measure."""
        if self._stretches:
            return statistics.median(images for _, images in self._stretches)
        return self._images / self._seconds if self._seconds > 0 else None

    def left(self) -> float | None:
        """Seconds from the last step to the end of the run; None before there is anything to measure."""
        a_step = self._step_seconds()
        if a_step is None and not self._ends:
            return None
        ends = (self._total - 1) // self._per_epoch - (self._step - 1) // self._per_epoch + 1
        an_end = statistics.median(self._ends) if self._ends else 0.0
        return (self._total - self._step) * (a_step or 0.0) + ends * an_end


def _loss(value: float | None) -> str:
    return f"{'nan' if value is None else format(value, '.4f'):>7}"


def _percent(value: float | None) -> str:
    return f"{'nan' if value is None else format(value, '.2%'):>7}"


class Progress:
    """How a run goes, on standard error: a bar on a terminal, else a line an epoch and, in long epochs, one every 30 s.

    `epochs` may end in the middle of one. `first_step` is the number of steps that a resumed run finds done. `quiet`
    prints nothing at all. `clock` tells seconds.
    """

    def __init__(
        self,
        *,
        epochs: float,
        steps_per_epoch: int,
        batch_size: int,
        first_step: int = 0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._per_epoch = round(epochs * steps_per_epoch), steps_per_epoch
        self._epochs, self._quiet, self._clock = math.ceil(epochs), quiet, clock
        start = f", from step {first_step}" if first_step else ""
        self._opening = f"{epochs:.6g} epochs of {steps_per_epoch} steps, {batch_size} images a step{start}"
        self._pace = Pace(epochs, steps_per_epoch)
        self._speed: float | None = None  # images a second of the last whole epoch
        self._bar: Bar | None = None
        self._task = TaskID(0)
        # A redraw takes about 2 ms and a log should stay short: a bar moves 4 times a second, a log grows twice a
        # minute.
        console = Console(stderr=True, highlight=False)
        live = on_terminal() and not console.is_dumb_terminal and not quiet
        self._interval = 0.25 if live else 30.0
        self._next = clock() + (0.0 if live else self._interval)
        if live:
            # No refresh thread: it would take time from a loop that launches kernels. Standard output stays untouched
            # for --json.
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(None),
                TextColumn("{task.percentage:3.0f}%"),
            )
            self._bar = Bar(*columns, console=console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._task = self._bar.add_task("starting", total=self._steps, completed=first_step)

    def __enter__(self) -> Self:
        self.message(self._opening)
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *about: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, images: int, loss: float | None = None, accuracy: float | None = None) -> None:
        """Step number `step` of the run, counted from 1, has ended; costs under 20 µs on average.

        `images` were used since the last call. `loss` and `accuracy` (0 to 1) are means over the epoch so far.
        """
        now = self._clock()
        self._pace.step(now, step, images)
        if now < self._next or self._quiet:
            return
        self._next = now + self._interval
        epoch, done = (step - 1) // self._per_epoch + 1, (step - 1) % self._per_epoch + 1
        cells = [self._counted(epoch)]
        if self._bar is None:
            cells.append(f"step {done}/{min(self._per_epoch, self._steps - (epoch - 1) * self._per_epoch)}")
        if loss is not None:
            cells.append(f"loss {_loss(loss).strip()}")
        if accuracy is not None:
            cells.append(f"acc {_percent(accuracy).strip()}")
        # Launches run ahead of a GPU inside an epoch, so a whole epoch's speed is the truer one.
        speed, left = self._speed or self._pace.images_per_second(), self._pace.left()
        if speed is not None:
            cells.append(f"{speed:,.0f} images/s")
        if left is not None:
            cells.append(f"{duration(left)} left")
        if self._bar is None:
            self.message("  ".join(cells))
        else:
            self._bar.update(self._task, completed=step, description="  ".join(cells), refresh=True)

    def epoch(self, row: Epoch) -> None:
        """Print the line of a finished epoch; `row` is a row of metrics.jsonl."""
        self._speed = row.images_per_second or self._speed
        cells = [self._counted(row.epoch), f"lr {row.lr:<8.3g}"]
        for part in ("train", "val", "test"):
            if f"{part}_loss" in row.model_fields_set:
                cells.append(f"{part} {_loss(row[f'{part}_loss'])} {_percent(row[f'{part}_accuracy'])}")
        cells.append(f"{row.images_per_second or 0:>9,.0f} images/s  {row.seconds or 0:>7.1f} s")
        left = self._pace.left()
        if self._bar is None and left is not None and row.epoch < self._epochs:
            cells.append(f"{duration(left)} left")
        self.message("  ".join(cells))

    def _counted(self, epoch: int) -> str:
        return f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}"

    def message(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        else:
            self._next = self._clock() + self._interval
            tell(text)
