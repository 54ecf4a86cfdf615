"""The run itself, measuring, and records."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fastres.recipe.fields import Epochs, NotNegative, Positive, Precision, Rate, Share, Table
from fastres.utils.untrusted import name_of_folder


class LookaheadConfig(Table):
    """Slow weights that follow the trained ones at intervals and replace them (Zhang et al. 2019, algorithm 1)."""

    every: Positive = 5
    """Steps between two such exchanges (k)."""
    decay: Share = 0.5
    """Share of themselves that the slow weights keep at an exchange (1 - α); 0.77 (0.95⁵) in airbench96."""
    power: NotNegative = 0.0
    """The share grows over the run as (share of the run that is done)^power: 0 keeps it constant, as in the paper; 3 in
    airbench96, whose slow weights follow fast at first and average over many steps at the end."""


class TrainConfig(Table):
    """The run itself."""

    epochs: Epochs = 20.0
    """Passes over the training images; the last one stops in its middle if this is no whole number."""
    batch_size: Positive = 128
    """Images in one optimisation step."""
    drop_last: bool = False
    """Leave out the partial batch at the end of an epoch."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides initial weights, order, split and augmentation."""
    precision: Precision = "bf16"
    """Type of activations; weights, statistics and the loss stay in fp32. fp16 scales its loss."""
    channels_last: bool = True
    """Lay tensors out as N, H, W, C, which convolutions are faster on."""
    compile: bool = True
    """Compile the step with TorchInductor; where no compiler is found, the run goes on without and says why."""
    deterministic: bool = False
    """On CUDA, choose only kernels that repeat bit for bit; CPU runs always do."""
    grad_clip: Rate | None = None
    """Largest L2 norm of the whole gradient."""
    label_smoothing: Share = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2016, section 7)."""
    ema: Share = 0.0
    """Decay per step of an exponential moving average of the weights, which is then evaluated and kept; 0: none."""
    lookahead: LookaheadConfig | None = None
    """Slow weights, which are then evaluated and kept (unless `ema` is set too, which averages on top); by default
    none."""
    best: str | None = None
    """Metric of metrics.jsonl that chooses the checkpoint to test, such as `val_loss`; lowest for a loss, highest for
    an accuracy. By default the last weights are tested."""
    early_stopping: Annotated[int, Field(ge=0)] = 0
    """Stop after so many epochs without a better `best`; 0: never."""
    checkpoint_seconds: NotNegative = 60.0
    """Save at most this often in mid-epoch; 0 saves after every step. The end of an epoch always saves."""


class EvalConfig(Table):
    """Measuring."""

    batch_size: Positive = 500
    """Images at a time."""
    test_every: Annotated[int, Field(ge=0)] = 0
    """Test every so many epochs, for the curve; 0: only once, at the end."""
    tta: Literal["none", "mirror", "translate", "selective"] = "none"
    """Test-time augmentation: average the logits of several views of an image. `mirror`: the image and its mirror
    image, in twice the time of `none`; `translate`: both, with half of the weight, and both shifted by one pixel up and
    left and down and right, with a quarter each, in six times the time (Jordan 2024, section 3.5); `selective`:
    `mirror`, and `translate` for the images of which that is least sure, in 2 + 4·`tta_share` times the time."""
    tta_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the images that `tta = "selective"` also shifts."""
    tta_while_training: bool = False
    """Whether validation and test after each epoch use `tta` too; the final test always does."""


class RecordConfig(Table):
    """Records besides the metrics."""

    name: Annotated[str, AfterValidator(name_of_folder)] | None = None
    """Name of the run, with which that of its folder begins; by default the recipe file's."""
    report: bool = True
    """Draw the figures and the page at the end."""
    tensorboard: bool = False
    """Write TensorBoard events too; needs `pip install 'fastres[tensorboard]'`."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Track the run with Weights & Biases too; needs `pip install 'fastres[wandb]'`. `offline`: into `wandb/` of the
    run directory, without network or account, from where `wandb sync` sends it; `online`: at once."""
    wandb_project: Annotated[str, Field(pattern=r"^[^/\\#?%:]{1,128}$")] = "fastres"
    """Project of Weights & Biases; the runs of a sweep are a group in it."""
