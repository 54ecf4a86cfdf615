"""One training: epochs, checkpoints, records."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from fastres.engine.cuda_graph import side_stream
from fastres.engine.device import choose_device
from fastres.engine.memory import StartupTimer
from fastres.errors import Diverged, Interrupted, UserError
from fastres.evaluation.calibration import calibrate, describe
from fastres.evaluation.metrics import Measures, measure, passes
from fastres.models import Network
from fastres.recipe import EvalConfig, Recipe
from fastres.runs import checkpoint
from fastres.runs.environment import environment
from fastres.runs.recorder import Recorder, summary_writer
from fastres.runs.schema import ENVIRONMENT, SUMMARY, Best, Calibration, Epoch, Summary
from fastres.runs.tracking import Tracker, check_tracker
from fastres.training.data import labels_of
from fastres.training.methods.base import Method
from fastres.training.metrics import input_stall, peak_memory
from fastres.training.page import draw_page
from fastres.training.progress import Progress
from fastres.training.session import Session
from fastres.training.state import TrainState, check_alike
from fastres.training.step import StepVariant
from fastres.utils.machine import computes_bf16, contention
from fastres.utils.signals import Interrupt

OnEpoch = Callable[[list[Epoch]], str | None]
"""Hears the rows of metrics.jsonl so far, and may say why to stop."""


@dataclass(frozen=True)
class RunResult:
    """Results of a run."""

    run: Path
    """The run directory."""
    summary: Summary
    """Contents of summary.json."""

    @property
    def test_accuracy(self) -> float:
        """Share of the test images that the kept network gets right."""
        assert self.summary.test_accuracy is not None
        return self.summary.test_accuracy


class Run(Session):
    """A session and the loop of one run; a class so that each phase is a short method."""

    def __init__(
        self,
        recipe: Recipe,
        device: str,
        quiet: bool,
        startup_timer: StartupTimer,
        on_epoch: OnEpoch | None = None,
        method: Method[Any] | None = None,
    ) -> None:
        self.on_epoch = on_epoch
        self.startup_timer, self.began = startup_timer, startup_timer.seconds
        self.busy = contention()
        if recipe.record.tensorboard:
            summary_writer()  # raises where it is missing, before there is a run directory
        check_tracker(recipe.record)
        super().__init__(recipe, choose_device(device), quiet=quiet, method=method)
        self.steps = self.step.steps
        self.epochs = math.ceil(self.steps / len(self.data_module.train))  # one that stops in its middle counts
        self.at = TrainState()
        self.uncaptured = False  # whether that has been said
        self.was_compiled: bool | None = None  # of a resumed run, before the interruption
        # Batch sizes and phases of this process: the first of each compiles.
        self.met: set[tuple[int, StepVariant]] = set()

    # ------------------------------------------------------------------------------------------------ the run

    def execute(self, run: Path) -> Summary:
        """Train in `run`, from its last checkpoint if it has one, to the end."""
        options, rows = self.recipe.train, self.restore(run)
        self.run = run
        self.environment = environment(str(self.device))
        self.environment.write(run / ENVIRONMENT)
        self.recorder = Recorder(run, rows=rows, tensorboard=self.recipe.record.tensorboard)
        self.progress = Progress(
            epochs=self.steps / len(self.data_module.train),
            steps_per_epoch=len(self.data_module.train),
            batch_size=options.batch_size,
            first_step=self._steps_done(),
            quiet=self.quiet,
        )
        self.tracker = Tracker(run, self.recipe, rows, self.progress.message)
        self.saved = time.perf_counter()
        summary = None
        try:
            with side_stream(self.device), self.progress, Interrupt() as self.interrupt:
                self.progress.message(f"{run}: {self.parameters:,} parameters on {self.device}")
                self.progress.message(f"loader {self.data_module.loading.name}: {self.data_module.loading.reason}")
                if self.busy:
                    self.progress.message(self.busy)
                on_cpu_in_bf16 = options.precision == "bf16" and self.device.type == "cpu"
                if on_cpu_in_bf16 and not computes_bf16(self.environment.isa):
                    faster = "train.precision = 'fp32' is far faster here"
                    self.progress.message(f"this CPU has no bf16 instructions: {faster}")
                if self.step.loss_and_correct.active:
                    self.progress.message("compiling the step: half a minute the first time, seconds once it is cached")
                stopped = "completed"
                while self.at.epoch < self.epochs:
                    if self._out_of_patience():
                        stopped = "early stopping"
                        break
                    self._epoch()
                    self._stop_if_asked()
                    why = self.on_epoch(self.recorder.rows) if self.on_epoch is not None else None
                    if why is not None:
                        stopped = why
                        self.progress.message(f"{why} after epoch {self.at.epoch}")
                        break
                summary = self._finish(stopped)
        finally:
            self.tracker.close(summary)
            self.recorder.close()
            self.data_module.close()
        return summary

    def _epoch(self) -> None:
        at, epoch = self.at, self.at.epoch
        steps_before = epoch * len(self.data_module.train)
        started = time.perf_counter()
        left = self.steps - steps_before - at.step  # a last epoch may stop in its middle
        for done in self.runner.epoch(epoch, at.step, left):
            kind = (done.images // done.steps, self.step.variant(steps_before + at.step))
            at.step += done.steps
            self._show(steps_before + at.step, done.images)
            now = time.perf_counter()  # from one step's end to the next: waiting for the batch counts
            at.time_step(done.images, now - started, timed=kind in self.met)
            started = now
            if not self.met:
                self._started()
            self.met.add(kind)
            if self.interrupt.requested:
                self._save()
                self._stop_if_asked()
            if now - self.saved >= self.recipe.train.checkpoint_seconds:
                self._save()
                started = time.perf_counter()
        if self.device.type == "cuda" and self.runner.fallback_reason and not self.uncaptured:
            self.progress.message(f"steps are launched kernel by kernel: {self.runner.fallback_reason}")
            self.uncaptured = True
        row = self._row()
        at.next_epoch()
        self.epoch_metrics.clear()
        self._keep_if_best(row)
        self.recorder.log(row)
        self.tracker.log(self.recorder.rows[-1])
        self.progress.epoch(row)
        self._save()

    def _steps_done(self) -> int:
        """Steps of the run so far; a last epoch that ended in its middle counts with those it had."""
        return min(self.at.epoch * len(self.data_module.train) + self.at.step, self.steps)

    def _stop_if_asked(self) -> None:
        if self.interrupt.requested:
            raise Interrupted(
                f"{self.interrupt.requested}: saved after step {self._steps_done()}; "
                f"go on with `fastres train --resume {quote(str(self.run))}`"
            )

    def _show(self, step: int, images: int) -> None:
        """On a CPU, where reading costs nothing, show loss and accuracy and look for a non-finite loss at each step."""
        self.progress.step(step, images, *(self._read_tally() if self.device.type == "cpu" else ()))

    def _started(self) -> None:
        compiled = self.step.loss_and_correct
        self.at.started(time.perf_counter() - self.began, compiled)
        self.startup_timer.done()
        if self.recipe.train.compile and compiled.fallback_reason is not None:
            how = "" if compiled.active else "running without compilation: "
            self.progress.message(f"{how}{compiled.fallback_reason}")
        if self.was_compiled not in (None, compiled.active):
            before = "compiled" if self.was_compiled else "not compiled"
            self.progress.message(f"this run was {before} before it was interrupted: its bits will differ from now on")

    def _read_tally(self) -> tuple[float, float]:
        """Mean loss and accuracy of this epoch so far; a non-finite loss ends the run."""
        loss, accuracy, bad = self.epoch_metrics.read()
        if bad:
            raise self._not_finite("the loss is", bad)
        return loss, accuracy

    def _not_finite(self, what: str, step: int) -> Diverged:
        """The error that ends a run in which a number is not finite at `step`, counted from 1."""
        last = self.run / checkpoint.LAST
        saved = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint had been saved yet"
        return Diverged(
            f"{what} not finite at step {step} (epoch {(step - 1) // len(self.data_module.train) + 1}), learning rate "
            f"{self.step.learning_rate(step - 1):.4g}; {saved}.\n"
            "Lower optimizer.lr or set train.grad_clip, and train again from the start."
        )

    def _row(self) -> Epoch:
        at, step = self.at, self._steps_done()
        waited = time.perf_counter()
        loss, accuracy = self._read_tally()
        at.epoch_stalled += self.stall.read()
        at.time_step(0, time.perf_counter() - waited, timed=True)
        row = Epoch(
            epoch=at.epoch + 1,
            step=step,
            lr=self.step.learning_rate(step - 1),
            train_loss=loss,
            train_accuracy=accuracy,
            seconds=at.epoch_seconds,
            images_per_second=at.epoch_images / at.epoch_images_seconds if at.epoch_images else None,
            input_stall=min(1.0, at.epoch_stalled / at.epoch_seconds),  # by two clocks on CUDA
        )
        if self.data_module.validation is not None:
            logits = self.evaluator.logits(self.data_module.validation, self._while_training())
            measured = measure(logits, labels_of(self.data_module.validation))
            row = row.updated(val_loss=measured.loss, val_accuracy=measured.accuracy)
        every = self.recipe.eval.test_every
        if every and (at.epoch + 1) % every == 0:
            measured = self._test(self._while_training())[0]
            row = row.updated(test_loss=measured.loss, test_accuracy=measured.accuracy)
        return row

    # ------------------------------------------------------------------------------------------------ best and last

    def _keep_if_best(self, row: Epoch) -> None:
        metric, best = self.recipe.train.best, self.at.best
        if metric is None:
            return
        value, sign = row[metric], 1 if metric.endswith("loss") else -1
        if value is not None and (best is None or sign * value < sign * best.value):
            self.at.best = Best(metric=metric, epoch=row.epoch, value=value)
            checkpoint.save_weights(self.run / checkpoint.BEST, self.step.averaged, self.data_module.about)

    def _out_of_patience(self) -> bool:
        patience, best = self.recipe.train.early_stopping, self.at.best
        if not patience or best is None or self.at.epoch - best.epoch < patience:
            return False
        self.progress.message(f"no better {best.metric} in {patience} epochs: stopped early")
        return True

    def _save(self) -> None:
        if self.at.step:
            self._read_tally()  # on CUDA nobody has looked since the epoch began
            self.at.epoch_stalled += self.stall.read()
        if not self.step.is_finite():  # never replace a good checkpoint by one that cannot go on
            raise self._not_finite("weights are", self._steps_done())
        now = time.perf_counter()
        self.at.seconds, self.began = self.at.seconds + now - self.began, now
        state = {
            "recipe": self.recipe.hash(),
            "data": self.data_module.fingerprint,
            "teacher": self.method.fingerprint,
            "position": self.at.state(),
            "tally": self.epoch_metrics.sums.cpu(),
            "rows": [row.to_json() for row in self.recorder.rows],
            "step": self.step.state(),
        }
        checkpoint.save(self.run / checkpoint.LAST, state)
        self.saved = time.perf_counter()

    def restore(self, run: Path) -> list[Epoch]:
        """Go back to the last checkpoint of `run`, if it has one; returns the rows of the finished epochs."""
        path = run / checkpoint.LAST
        if not path.is_file():
            return []
        state = checkpoint.load(path)
        try:
            if state["recipe"] != self.recipe.hash():
                raise UserError(f"{run}/recipe.toml is not the recipe that {path} was trained with: undo its changes")
            if state["data"] != self.data_module.fingerprint:
                raise UserError(f"{self.recipe.data.source} is not the data that {path} was trained on: restore it")
            if self.method.fingerprint is not None and state["teacher"] != self.method.fingerprint:
                raise UserError(f"method.teacher is not the one that {path} was trained with: restore it")
            self.at = TrainState.of(state["position"])
            rows = [Epoch(**row) for row in state["rows"]]
            if len(rows) != self.at.epoch or self.at.epoch > self.epochs or self.at.step > len(self.data_module.train):
                raise ValueError("the run has no such step")
            check_alike(self.epoch_metrics.sums, state["tally"])
            self.epoch_metrics.sums.copy_(state["tally"])
            self.step.load_state(state["step"])
            self.was_compiled = bool(state["step"]["compiled"])
            return rows
        except UserError:
            raise
        except Exception as error:  # what a dictionary of anything makes those who read it raise
            raise UserError(f"{path} is not a checkpoint of this version of fastres: train again") from error

    # ------------------------------------------------------------------------------------------------ the end

    def _while_training(self) -> EvalConfig | None:
        """Settings of the evaluation after an epoch: without views, which multiply its time, unless asked for."""
        return self.recipe.eval if self.recipe.eval.tta_while_training else None

    def _test(self, options: EvalConfig | None) -> tuple[Measures, Tensor]:
        logits = self.evaluator.logits(self.data_module.test, options)
        return measure(logits, labels_of(self.data_module.test)), logits

    def _finish(self, stopped: str) -> Summary:
        """Test what is kept; write weights, page and summary."""
        if self.at.best is not None:
            weights, _ = checkpoint.load_weights(self.run / checkpoint.BEST)
            self.step.averaged.load_state_dict(weights)
        assert isinstance(self.step.averaged, Network)
        features = self.method.after_training(
            self.step.averaged, self.data_module, self.recipe, self.device, self.progress.message
        )
        measured, logits = self._test(self.recipe.eval)
        if not math.isfinite(measured.loss):
            raise self._not_finite("the tested loss is", self._steps_done())
        calibration = self._calibrate()
        about = self.data_module.about.updated(calibration=calibration)
        checkpoint.save_weights(self.run / checkpoint.FINAL, self.step.averaged, about)
        tested = measure(logits, labels_of(self.data_module.test), calibration.temperature)
        summary = self._summary(stopped, measured, features).updated(
            calibration=calibration, calibrated_error=tested.calibrated_error
        )
        if self.recipe.record.report:
            try:
                shown = self.recorder.rows, summary, self.environment
                page = draw_page(self.run, self.recipe, self.data_module, *shown, logits.softmax(1))
                self.progress.message(f"report: {page}")
            except UserError:
                raise
            except Exception as error:  # a figure that cannot be drawn must not cost the run its result
                again = f"`fastres report {quote(str(self.run))}` draws it again"
                self.progress.message(f"the page could not be drawn ({type(error).__name__}: {error}): {again}")
        summary.write(self.run / SUMMARY)  # last: its presence says that the run is complete
        return summary

    def _calibrate(self) -> Calibration:
        """Temperature of the kept network's probabilities, from validation images seen as the test images are."""
        began, validation = time.perf_counter(), self.data_module.validation
        logits = None if validation is None else self.evaluator.logits(validation, self.recipe.eval)
        labels = None if validation is None else labels_of(validation)
        calibration = calibrate(logits, labels, self.recipe.data.split)
        took = "" if logits is None else f", in {time.perf_counter() - began:.1f} s"
        self.progress.message(f"probabilities are {describe(calibration)}{took}")
        return calibration

    def _summary(self, stopped: str, measured: Measures, features: dict[str, float]) -> Summary:
        recipe, at, steps, compiled = self.recipe, self.at, self._steps_done(), self.step.loss_and_correct
        per_epoch = len(self.data_module.train)
        return Summary(
            name=self.run.name,
            stopped=stopped,
            parameters=self.parameters,
            multiply_adds=self.multiply_adds,
            compiled=compiled.active,
            compile_note=compiled.fallback_reason or self.evaluator.compiled.fallback_reason,
            captured=self.runner.captured,
            capture_note=self.runner.fallback_reason,
            compiled_from_cache=compiled.from_cache,
            tta=recipe.eval.tta,
            tta_passes=passes(recipe.eval),
            loader=self.data_module.loading.name,
            input_stall=input_stall(self.recorder.rows),
            recipe_hash=recipe.hash(),
            source=recipe.data.source,
            split=recipe.data.split,
            precision=recipe.train.precision,
            test_accuracy=measured.accuracy,
            test_loss=measured.loss,
            test_images=measured.images,
            expected_calibration_error=measured.expected_calibration_error,
            best=at.best,
            epochs=at.epoch if steps == at.epoch * per_epoch else steps / per_epoch,
            steps=steps,
            images_per_second=at.images / at.images_seconds if at.images else None,
            cold_seconds=at.cold_seconds or None,
            warm_seconds=at.warm_seconds or None,
            seconds=at.seconds + time.perf_counter() - self.began,
            device=self.environment.device_name,
            peak_memory_bytes=peak_memory(self.device),
        ).updated(**features)
