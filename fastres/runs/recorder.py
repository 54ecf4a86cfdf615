"""The metrics that a run writes while it goes: an object a line and epoch."""

from pathlib import Path
from typing import Any

from fastres.errors import UserError, disk_errors_are_the_users
from fastres.runs.schema import METRICS, Epoch
from fastres.utils.json_files import write_lines


class Recorder:
    """The metrics of a run: `metrics.jsonl`, a JSON object a line and epoch, and TensorBoard's events if asked for.

    `rows` holds what the file holds, so a number that is not finite is None there. A resumed run gives the rows of the
    epochs it keeps; those of the epochs it repeats vanish from the file with the next `log`.

    Raises UserError if `tensorboard` is set and TensorBoard is not installed, and all methods where nothing can be
    written. TensorBoard writes in a thread of its own, whose error the next call raises.
    """

    def __init__(self, run: Path, *, rows: list[Epoch] | None = None, tensorboard: bool = False) -> None:
        self.rows = list(rows or [])
        self._path = run / METRICS
        self._events = run / "tensorboard"
        self._writer: Any = None
        if tensorboard:
            # TensorBoard hides the events from purge_step on that an interrupted run left behind.
            purge = len(self.rows) + 1 if self.rows else None
            with disk_errors_are_the_users(self._events):
                self._writer = summary_writer()(str(self._events), purge_step=purge)

    def log(self, row: Epoch) -> None:
        """Add the metrics of one epoch and rewrite the file."""
        self.rows.append(row)
        write_lines(self._path, self.rows)
        if self._writer is None:
            return
        with disk_errors_are_the_users(self._events):
            for key, value in row.to_json().items():
                part, _, what = key.partition("_")
                tag = f"{what}/{part}" if what in ("loss", "accuracy") else key
                if value is not None and key not in ("epoch", "step"):
                    self._writer.add_scalar(tag, value, row.epoch)
            self._writer.flush()

    def close(self) -> None:
        """Close TensorBoard's file; metrics.jsonl needs no closing."""
        if self._writer is not None:
            with disk_errors_are_the_users(self._events):
                self._writer.close()


def summary_writer() -> Any:
    """TensorBoard's class SummaryWriter. Raises UserError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "record.tensorboard needs TensorBoard, which is not installed:\n"
            "run pip install 'fastres[tensorboard]', or set record.tensorboard = false"
        ) from error
    return SummaryWriter
