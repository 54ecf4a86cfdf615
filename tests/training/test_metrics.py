"""The meter of waiting for data, with a loader whose waiting is known."""

import time
from collections.abc import Iterator

import pytest
import torch

from fastres.data.loaders import Batch
from fastres.training.metrics import StallMeter


def slow(count: int, seconds: float) -> Iterator[Batch]:
    nothing = torch.zeros(1, dtype=torch.int64)
    for _ in range(count):
        time.sleep(seconds)
        yield Batch(torch.zeros(1, 1, 1, 3, dtype=torch.uint8), nothing, nothing, nothing)


@pytest.mark.serial
def test_waiting_counts_and_working_does_not() -> None:
    meter = StallMeter(torch.device("cpu"))
    began = time.perf_counter()
    for _ in meter.watch(slow(5, 0.02)):
        time.sleep(0.02)
    whole, waited = time.perf_counter() - began, meter.read()
    # Sleeping takes at least as long as asked for: each side at least 0.1 s of the whole.
    assert 0.1 <= waited <= whole - 0.1
    assert meter.read() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_that_is_busy_does_not_wait() -> None:
    device = torch.device("cuda")
    meter = StallMeter(device)
    work = torch.randn(4096, 4096, device=device)
    for _ in range(3):
        work @ work
    torch.cuda.synchronize()
    for _ in meter.watch(slow(5, 0.0)):  # the host only has to launch: the device is always behind
        for _ in range(20):
            work @ work
    busy = meter.read()
    for _ in meter.watch(slow(5, 0.05)):  # nothing to do but wait
        pass
    # Five sleeps of 50 ms; a busy device passes both events within microseconds.
    assert meter.read() >= 0.2
    assert busy < 0.02
