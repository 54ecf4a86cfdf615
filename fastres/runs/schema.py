"""What fastres writes as JSON of runs: summary, epochs, machine and shifted tests of a run directory, and what sweeps
and speedruns make of many. Nothing here imports torch.

Times are in seconds, losses in nats an image, accuracies and stalls are shares of 1; None is what was not measured, not
finite or, in files of older versions, not yet written. To measure something more of an epoch: a field of `Epoch`, its
computation in `training/loop.py`, and, where it should show, a column of `report/run_page.py`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from fastres.utils.json_files import DAMAGED, Amount, Count, Entry, File, Finite, Loss, Share, damaged, read_lines

SUMMARY, METRICS, ENVIRONMENT = "summary.json", "metrics.jsonl", "environment.json"


class Best(Entry):
    """The epoch whose weights `train.best` chose."""

    metric: str
    epoch: Count
    """Counted from 1."""
    value: Loss


class Round(Entry):
    """A round of pseudo-labelling."""

    round: Count | None = None
    added: Count | None = None
    """Images that the round before labelled."""
    test_accuracy: Share | None = None
    test_loss: Loss | None = None
    seconds: Amount | None = None


class Epoch(Entry):
    """A line of metrics.jsonl. Without validation images, or a test of this epoch, these fields are not set."""

    epoch: Count
    """Counted from 1."""
    step: Count | None = None
    """Steps of the run up to its end."""
    lr: Annotated[Loss | None, Finite] = None
    """Learning rate of its last step."""
    train_loss: Annotated[Loss | None, Finite] = None
    train_accuracy: Annotated[Amount | None, Finite] = None
    """In a mixed batch a prediction is correct by the share of the label that it names."""
    val_loss: Annotated[Loss | None, Finite] = None
    val_accuracy: Annotated[Share | None, Finite] = None
    test_loss: Annotated[Loss | None, Finite] = None
    test_accuracy: Annotated[Share | None, Finite] = None
    seconds: Annotated[Amount | None, Finite] = None
    images_per_second: Annotated[Amount | None, Finite] = None
    """In steps that compile nothing."""
    input_stall: Annotated[Share | None, Finite] = None
    """Share of the time in which the device waited for data."""


class Calibration(Entry):
    """How logits become probabilities: softmax(logits / temperature) (Guo et al. 2017, section 4.2)."""

    temperature: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """None: the probabilities are uncalibrated, as if it were 1."""
    images: Count = 0
    """Validation images that it was fitted on."""
    reason: str | None = None
    """Why there is no temperature."""


class Summary(File):
    """summary.json, whose presence says that a run is complete."""

    name: str | None = None
    stopped: str | None = None
    """`completed`, or why not."""
    parameters: Count | None = None
    """Trainable ones."""
    multiply_adds: Count | None = None
    """Of an image."""
    compiled: bool | None = None
    compile_note: str | None = None
    """Why a part of it was not compiled, or not taken from the cache."""
    captured: bool | None = None
    """Whether steps were replays of CUDA graphs."""
    capture_note: str | None = None
    compiled_from_cache: bool | None = None
    tta: str | None = None
    tta_passes: Count | Amount | None = None
    """Images that the network evaluates to classify one."""
    loader: str | None = None
    input_stall: Share | None = None
    recipe_hash: str | None = None
    source: str | None = None
    split: str | None = None
    precision: str | None = None
    test_accuracy: Share | None = None
    test_loss: Loss | None = None
    test_images: Count | None = None
    expected_calibration_error: Amount | None = None
    calibration: Calibration | None = None
    calibrated_error: Amount | None = None
    """`expected_calibration_error` of the calibrated probabilities; None where they are not."""
    best: Best | None = None
    epochs: Count | Amount | None = None
    """A whole number, except where the last epoch ended in its middle."""
    steps: Count | None = None
    images_per_second: Amount | None = None
    cold_seconds: Amount | None = None
    """From the start (of the command, else of the call of `train`) to the end of the first step, which was compiled: in
    this run, else in the one that compiled what this one found, where that is known."""
    warm_seconds: Amount | None = None
    """The same where the step was found compiled; None in a run that compiled."""
    knn_accuracy: Share | None = None
    """Of nearest neighbours among the features, where features were learnt."""
    probe_decay: Amount | None = None
    """L2 penalty of the linear probe that became the classifier, where features were learnt."""
    rounds: tuple[Round, ...] = ()
    """Where a training was several."""
    seconds: Amount | None = None
    """Of the whole run, interruptions left out."""
    device: str | None = None
    """Model of the CPU or GPU."""
    peak_memory_bytes: Count | None = None
    """Of the GPU on CUDA, resident otherwise."""


class NetworkFacts(Entry):
    """Metadata of a kept network: without these, weights cannot be used on new images."""

    classes: Annotated[list[str], Field(min_length=1, max_length=100_000)]
    image_size: Annotated[int, Field(ge=1, le=4096)]
    mean: tuple[Loss, Loss, Loss]
    """Of each channel of the training images, in units of 1 = white."""
    std: tuple[Loss, Loss, Loss]
    """Of the same."""
    crop: Literal["centre"] = "centre"
    """What of an image is resized: the largest centred square."""
    resize: Literal["bicubic"] = "bicubic"
    """The filter, antialiased."""
    batch_size: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Images of a batch of the test; None in files of older versions."""
    calibration: Calibration | None = None
    """None in files of older versions."""


def read_epochs(run: Path, fix: str = DAMAGED) -> list[Epoch]:
    """The finished epochs of a run. Raises UserError where the file is damaged."""
    rows = read_lines(run / METRICS, Epoch, fix)
    if [row.epoch for row in rows] != list(range(1, len(rows) + 1)):
        raise damaged(run / METRICS, "its epochs do not count from 1", fix)
    return rows


class Corruptions(File):
    """shift.json: accuracies on shifted test sets."""

    clean_accuracy: Share | None = None
    mean_corruption_accuracy: Share
    drop: float | None = None
    """Of that mean below the clean accuracy."""
    severities: list[int]
    accuracy: dict[str, list[Share]]
    """Of each kind, by severity."""
    mean_by_kind: dict[str, Share] = {}
    mean_by_severity: list[Share] = []
    notes: list[str] = []
    source: str | None = None
    test_images: Count | None = None
    tta: str | None = None
    device: str | None = None
    seed: Count | None = None


# ---------------------------------------------------------------------------------------------------- many runs


class Failure(File):
    """diverged.json: why a point of a sweep has no result."""

    error: str


class Point(Entry):
    """A point of sweep.json: None is what was not measured, of a diverged one everything.

    Validation is that of the weights which were kept and tested: of the epoch of `train.best`, else of the last.
    """

    name: str
    point: str
    """Name of the entry of `sweep.points` that it comes from; empty for a sweep without."""
    settings: dict[str, JsonValue]
    """What differs between the points: dotted keys and their values."""
    state: Literal["complete", "pruned", "diverged", "failed"]
    error: str | None = None
    test_accuracy: Share | None = None
    test_loss: Loss | None = None
    test_images: Count | None = None
    parameters: Count | None = None
    multiply_adds: Count | None = None
    epochs: Count | Amount | None = None
    seconds: Amount | None = None
    images_per_second: Amount | None = None
    stopped: str | None = None
    val_accuracy: Share | None = None
    val_loss: Loss | None = None
    train_loss: Loss | None = None
    leaky: bool | None = None
    """Whether its validation images are trained on."""


class Mean(Entry):
    """The mean of the metric over the seeds of one combination of the other settings."""

    settings: dict[str, JsonValue]
    points: Count
    diverged: Count
    mean: Loss | None
    sd: Amount | None
    interval_low: Loss | None
    interval_high: Loss | None


class BestTrial(Entry):
    """The trial that a search found, with the test that nothing else of the search saw."""

    name: str
    test_accuracy: Share | None
    test_loss: Loss | None
    test_images: Count | None
    val_accuracy: Share | None = None
    val_loss: Loss | None = None


class Sweep(File):
    """sweep.json: all points, best first, whose presence says that all are done."""

    metric: str
    """By which they are ordered."""
    source: str
    search: bool
    points: list[Point]
    means: list[Mean]
    """Where seeds are among what differs."""
    best: BestTrial | None = None
    """Of a search."""


class SpeedrunPlan(File):
    """plan.json: what was fixed before the first run."""

    recipe_hash: str
    runs: Count
    target: Share
    device: str | None
    data: str
    """Fingerprint of the data set."""


class SpeedrunRow(Entry):
    """A line of runs.jsonl."""

    run: Count
    """Counted from 0."""
    seed: Count
    test_accuracy: Share
    test_loss: Annotated[Loss | None, Finite]
    seconds: Amount
    compiled: bool
    cold_seconds: Amount | None = None
    """From the opened data to the end of the first run of a process."""
    compiled_from_cache: bool | None = None


class TrialFacts(Entry):
    """What study.db has of a trial besides what Optuna keeps there itself."""

    folder: Annotated[str, Field(pattern=r"^trial-[0-9]{4,9}$")] | None = None
    """Name of its run directory."""
    error: str | None = None
    """Why its values make no run."""


class Speedrun(SpeedrunPlan):
    """speedrun.json: means over the runs; what a single run cannot give is None."""

    source: str
    first_seed: Count
    parameters: Count
    multiply_adds: Count
    epochs: Count | Amount
    steps: Count
    precision: str
    compile_note: str | None
    tta: str
    tta_passes: Count | Amount
    test_images: Count
    loader: str
    timed: str
    not_timed: str
    mean_accuracy: Share
    sd_accuracy: Amount | None
    interval_low: float | None
    interval_high: float | None
    p_mean_above_target: Share | None
    mean_seconds: Amount
    sd_seconds: Amount | None
    cold_seconds: Amount | None
    compiled_from_cache: bool | None
    compiled: bool
