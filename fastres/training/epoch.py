"""An epoch's steps: batch, augmentation, mixing, step and metrics, on a CPU one by one, on a GPU as graphs.

On a GPU everything that changes from step to step lies in device memory: the epoch's order, counters, learning rates,
the metrics' sums. A step is then the same work each time, captured once in a CUDA graph and launched whole, and nothing
waits for the host within an epoch.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from fastres.data.loaders import Batch, ResidentLoader
from fastres.engine.cuda_graph import CudaGraphCache
from fastres.training.data import DataModule
from fastres.training.metrics import EpochMetrics, StallMeter
from fastres.training.step import Step, StepVariant

IMAGES_A_LAUNCH = 256
"""Steps of fewer images are launched several at a time: at batch 20 a step is shorter than some of its launches."""


class Launch(NamedTuple):
    """Work done, or, on a GPU, enqueued."""

    steps: int
    images: int


class Runner:
    """Runs `step` over the batches of `data_module.train` and adds to `epoch_metrics`; `stall` watches the loader.

    `on_device` keeps counters and rates on the device: by default on CUDA. On a CPU it only slows the steps down, and
    serves to test what a GPU does.
    """

    def __init__(
        self,
        step: Step,
        data_module: DataModule,
        epoch_metrics: EpochMetrics,
        stall: StallMeter,
        *,
        on_device: bool | None = None,
    ) -> None:
        self.step, self.data_module, self.epoch_metrics, self.stall = step, data_module, epoch_metrics, stall
        device = step.device
        self.on_device = device.type == "cuda" if on_device is None else on_device
        self.steps_per_launch = 1
        """Steps of one launch, where they are alike."""
        why_not = "fp16 looks at the gradients to scale its loss" if step.scaler.is_enabled() else None
        self.graphs = CudaGraphCache(device, why_not)
        if not self.on_device:
            return
        step.keep_hyperparameters_on_device()
        loader = data_module.train
        size = loader.batch_size
        self._resident = isinstance(loader, ResidentLoader)
        self._counters = torch.zeros(3, dtype=torch.int64, device=device)  # step, epoch, step of the epoch
        self._ahead = torch.tensor([1, 0, 1], device=device)
        self._every = torch.arange(size, device=device)
        length = len(loader) * size if self._resident else size
        self._rows = torch.zeros(length, dtype=torch.int64, device=device)
        self._labels = torch.zeros(length, dtype=torch.int64, device=device)
        self._pixels: Tensor | None = loader.source if isinstance(loader, ResidentLoader) else None
        self.steps_per_launch = max(1, IMAGES_A_LAUNCH // size) if self._resident and step.identical_steps else 1

    @property
    def captured(self) -> bool:
        """Whether steps are replays of graphs, as far as any has been captured yet."""
        return self.graphs.captured > 0

    @property
    def fallback_reason(self) -> str | None:
        """Why they are not."""
        return self.graphs.fallback_reason

    def epoch(self, epoch: int, first_step: int, count: int) -> Iterator[Launch]:
        """Train on `count` steps of `epoch` from its step `first_step` on, both counted from 0."""
        if not self.on_device:
            yield from self._one_by_one(epoch, first_step, count)
            return
        before = epoch * len(self.data_module.train)
        counters = torch.tensor([before + first_step, epoch, first_step])
        if self.step.device.type == "cuda":
            counters = counters.pin_memory()
        self._counters.copy_(counters, non_blocking=True)
        work = self._from_store if self._resident else self._arriving
        yield from work(epoch, first_step, count)

    # ------------------------------------------------------------------------------------------------- on the host

    def _one_by_one(self, epoch: int, first_step: int, count: int) -> Iterator[Launch]:
        before, augment = epoch * len(self.data_module.train), self.data_module.augment
        batches = islice(self.data_module.train.batches(epoch, first_step), count)
        for at, batch in enumerate(self.stall.watch(batches), first_step):
            if self.step.recipe.mix.active:
                mixed = augment(batch.source, batch.labels, batch.indices, epoch, at, batch.rows)
                loss, correct = self.step(before + at, *mixed)
            else:
                images = self.data_module.augment_batch(batch.source, batch.indices, epoch, batch.rows)
                loss, correct = self.step(before + at, images, batch.labels)
            self.epoch_metrics.add(before + at + 1, loss, correct, len(batch.rows))
            yield Launch(1, len(batch.rows))

    # ------------------------------------------------------------------------------------------------- on the device

    def _from_store(self, epoch: int, first_step: int, count: int) -> Iterator[Launch]:
        """Batches are gathered on the device, by the counters, from the store and the epoch's order."""
        loader, before = self.data_module.train, epoch * len(self.data_module.train)
        rows, labels = loader.table(epoch)
        self._rows[: len(rows)].copy_(rows)
        self._labels[: len(rows)].copy_(labels)
        at, end = first_step, first_step + count
        while at < end:
            size = min(loader.batch_size, len(rows) - at * loader.batch_size)
            whole = (len(rows) - at * loader.batch_size) // loader.batch_size
            steps = max(1, min(self.steps_per_launch, end - at, whole))
            if steps > 1 and self.step.variant(before + at) != self.step.variant(before + at + steps - 1):
                steps = 1
            yield self._launch(before + at, size, steps)
            at += steps

    def _arriving(self, epoch: int, first_step: int, count: int) -> Iterator[Launch]:
        """Batches are copied to where the graphs look for them."""
        before = epoch * len(self.data_module.train)
        batches = islice(self.data_module.train.batches(epoch, first_step), count)
        for at, batch in enumerate(self.stall.watch(batches), first_step):
            self._place(batch)
            yield self._launch(before + at, len(batch.rows), 1)

    def _place(self, batch: Batch) -> None:
        size = len(batch.rows)
        if self._pixels is None:
            shape = self.data_module.train.batch_size, *batch.source.shape[1:]
            self._pixels = torch.zeros(shape, dtype=torch.uint8, device=self.step.device)
        self._pixels[:size].copy_(batch.source)
        self._rows[:size].copy_(batch.indices)
        self._labels[:size].copy_(batch.labels)

    def _launch(self, step: int, size: int, steps: int) -> Launch:
        variant = self.step.prepare(step)

        def work() -> None:
            for _ in range(steps):
                self._work(variant, size)

        self.graphs.run((variant, size, steps), work)
        return Launch(steps, steps * size)

    def _work(self, variant: StepVariant, size: int) -> None:
        """A step by the counters, which then move on."""
        step, epoch, step_of_epoch = self._counters[:1], self._counters[1:2], self._counters[2:]
        assert self._pixels is not None
        if self._resident:
            places = step_of_epoch * self.data_module.train.batch_size + self._every[:size]
            rows, labels = self._rows.index_select(0, places), self._labels.index_select(0, places)
            indices = rows
        else:
            rows, indices, labels = self._every[:size], self._rows[:size], self._labels[:size]
        augment = self.data_module.augment
        if self.step.recipe.mix.active:
            mixed = augment(self._pixels, labels, indices, epoch, step_of_epoch, rows)
            loss, correct = self.step.update(variant, *mixed, counter=step)
        else:
            images = self.data_module.augment_batch(self._pixels, indices, epoch, rows)
            loss, correct = self.step.update(variant, images, labels, counter=step)
        self._counters.add_(self._ahead)
        self.epoch_metrics.add(step, loss, correct, size)
