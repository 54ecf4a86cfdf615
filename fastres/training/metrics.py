"""Metrics of an epoch, summed on the device, how long the device waits for data, and the memory of a run."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from fastres.data.loaders import Batch
from fastres.runs.schema import Epoch


class StallMeter:
    """Seconds in which the device had nothing to do but wait for the next batch.

    On a CPU that is the time spent in the loader. On CUDA the host runs ahead of the device, so that its waiting costs
    nothing as long as the device is busy: one event is recorded before a batch is asked for and one when it is there.
    While the device still works on the step before, it passes both at once; the time between them is what it waited,
    copies included. Nothing is read, and the host never waits, before `read`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, watched."""
        on_cuda = self._device.type == "cuda"
        while True:
            asked = self._event() if on_cuda else None
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if asked is not None:
                self._events.append((asked, self._event()))
            else:
                self._seconds += time.perf_counter() - began
            yield batch

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def read(self) -> float:
        """Seconds since the last reading; on CUDA this waits for the device."""
        for asked, there in self._events:
            there.synchronize()
            self._seconds += asked.elapsed_time(there) / 1e3
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds


class EpochMetrics:
    """Sums over the steps of an epoch that stay on the device until somebody reads them."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, step: int | Tensor, loss: Tensor, correct: Tensor, images: int) -> None:
        """Take in a batch: `step` counted from 1 over the run (a captured step has it in a tensor, int64 [1]), its mean
        loss, its correct predictions."""
        loss = loss.double()
        self.sums[0] += loss * images
        self.sums[1] += correct
        self.sums[2] += images
        # The first step with a non-finite loss; 0 while there is none.
        number = step.double().squeeze() if isinstance(step, Tensor) else float(step)
        self.sums[3] = torch.where((self.sums[3] == 0) & ~torch.isfinite(loss), number, self.sums[3])

    def read(self) -> tuple[float, float, int]:
        """Mean loss, accuracy, and the first step whose loss was not finite (0: none). Waits for the device."""
        total, correct, images, bad = self.sums.tolist()
        return total / images, correct / images, int(bad)

    def clear(self) -> None:
        """Begin an epoch."""
        self.sums.zero_()


def input_stall(rows: list[Epoch]) -> float | None:
    """Share of the time of all training steps in which the device waited for data, from the rows of metrics.jsonl."""
    known = [(row.input_stall, row.seconds) for row in rows if row.input_stall is not None and row.seconds]
    return sum(stall * seconds for stall, seconds in known) / sum(seconds for _, seconds in known) if known else None


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held, in bytes: of the GPU on CUDA, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
