"""The recipe: every choice of a run, typed, with a docstring a field.

A recipe is a TOML file. `extends = "other.toml"` starts from another one (a path relative to the file), and
`--set table.key=value` changes single values. Keys that do not exist, values of a wrong type and combinations that
cannot work are errors that name the file, the key and, for a misspelling, the nearest key there is. The resolved
recipe, with every default written out, goes into the run directory and reproduces the run by itself.

To add a table: write a `Table` with a docstring under each field, and add it to `Recipe`. The schema, `--set`,
`fastres show` and the error messages follow. reading.py does the parsing and the messages.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["bf16", "fp16", "fp32"]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Annotated[int, Field(gt=0, le=15)]
Chance = Annotated[float, Field(ge=0, le=1)]
# Above 2 a factor would no longer be exact in the arithmetic of augment/draws.py; colours are long lost by then.
Jitter = Annotated[float, Field(ge=0, le=2)]
# Beta(alpha, alpha) with more than 1000 is a constant one half.
Alpha = Annotated[float, Field(gt=0, le=1000)]
Interval = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)]
Colour = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=3, max_length=3)]


class Table(BaseModel):
    """A table of the recipe: unknown keys and coerced types are errors, values cannot change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, validate_default=True
    )


class Data(Table):
    """Where the images come from, and how the training images are divided."""

    source: str = "shapes10"
    """`shapes10` (drawn here), `cifar10` or `cifar100` (downloaded), or the path of an archive or a folder."""
    root: str | None = None
    """Folder of downloads and prepared stores; by default `$FASTRES_DATA`, else `~/.cache/fastres`."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side in pixels to which folders and tars of images are brought; by default 32. CIFAR and shapes10 are 32."""
    store: Literal["decoded", "encoded"] = "decoded"
    """`decoded`: pixels at one size, decoded once; `encoded`: the JPEG and PNG files of a folder or an uncompressed tar
    as they are, decoded each time they are read: slower, for sets whose pixels are too large for the disk."""
    loader: Literal["auto", "resident", "ffcv", "dali", "torch"] = "auto"
    """What reads the store; all deliver the same batches. `resident` holds the whole set in the device's memory;
    `ffcv` and `dali` stream and need `pip install 'fastres[ffcv]'` or `'fastres[dali]'`; `torch` streams with torch's
    DataLoader. `auto` takes the first of them that fits and is installed, and says why."""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Threads or processes that read ahead; by default one a core. 0: `torch` reads in the training process."""
    split: Literal["none", "holdout", "report"] = "holdout"
    """`none`: train on everything; `holdout`: a random share is kept for validation and never trained on; `report`: as
    the report's code did, validate on the first images while training on a random share of all of them, so that most
    validation images are trained on (a leak)."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images that validation takes; without effect on `split = "none"`."""
    train_images: Positive | None = None
    """Use only the first so many training images, before the split."""
    test_images: Positive | None = None
    """Use only the first so many test images."""


PRESETS: dict[str, dict[str, Any]] = {
    "resnet18": {"blocks": [2, 2, 2, 2]},
    "resnet34": {"blocks": [3, 4, 6, 3]},
    "resnet18-imagenet": {"blocks": [2, 2, 2, 2], "stem": "imagenet"},
    "resnet34-imagenet": {"blocks": [3, 4, 6, 3], "stem": "imagenet"},
}


class _Network(Table):
    activation: Literal["relu", "silu", "gelu"] = "relu"
    """What follows each BN; `gelu` is the exact form, with erf."""
    bn_scale: bool = True
    """Whether BN weights train; if not, they stay at 1."""
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a batch's statistics in the running ones, as torch counts it: one minus TensorFlow's."""
    bn_eps: Rate = 1e-5
    """Added to the variance in BN."""
    dirac_init: bool = False
    """Start convolutions inside the network as the identity: the first filters pass the input channels on, the others
    are drawn (Zagoruyko and Komodakis 2017, "DiracNets")."""
    dropout: Share = 0.0
    """Probability of dropping a feature before the classifier."""
    logit_scale: Rate = 1.0
    """Logits are multiplied by it: below 1 a network is less sure of itself early on (hlb-CIFAR10)."""
    max_parameters: Positive | None = None
    """More trainable parameters than this are an error; 5_000_000 in the report's challenge."""


class Model(_Network):
    """A residual network of basic blocks (He et al. 2016, section 3.3), one list entry a stage."""

    name: Literal["resnet"] = "resnet"
    """The family of networks: residual networks with the parameter names of torchvision."""
    preset: Literal["resnet18", "resnet34", "resnet18-imagenet", "resnet34-imagenet"] | None = None
    """Starting values of the keys below; a key that is given wins."""
    blocks: Annotated[list[Positive], Field(min_length=1)] = [2, 2, 2, 2]
    """Residual blocks in each stage."""
    channels: Annotated[list[Positive], Field(min_length=1)] = [64, 128, 256, 512]
    """Channels of each stage (the report's C_i); the stem has those of the first. By default 64, doubled each stage."""
    strides: list[Positive] = [1, 2, 2, 2]
    """Stride of the first block of each stage; by default 1, then 2."""
    kernels: list[Side] = [3, 3, 3, 3]
    """Side of the two convolutions of a block, for each stage (the report's F_i); odd, by default 3."""
    skip_kernels: list[Side] = [1, 1, 1, 1]
    """Side of the convolution on a skip that changes the shape, for each stage (the report's K_i); odd, usually 1."""
    pool: Annotated[int, Field(ge=0)] = 0
    """Side of the average pool before the classifier (the report's P); 0 pools the whole map."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """`cifar`: 3×3 convolution, stride 1; `imagenet`: 7×7, stride 2, then a 3×3 max-pool, stride 2."""
    zero_init_residual: bool = False
    """Start the last BN weight of each block at 0, so that each block begins as the identity (Goyal et al. 2017)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        """A preset's values, then lists as long as `blocks`, beneath what is given."""
        if not isinstance(values, dict):
            return values
        values = {**PRESETS.get(str(values.get("preset")), {}), **values}
        if isinstance(values.get("blocks"), list):
            stages = len(values["blocks"])
            usual = {
                "channels": [64 * 2**stage for stage in range(stages)],
                "strides": [1, *[2] * (stages - 1)],
                "kernels": [3] * stages,
                "skip_kernels": [1] * stages,
            }
            values = {**usual, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        stages = len(self.blocks)
        wrong = [key for key in ("channels", "strides", "kernels", "skip_kernels") if len(getattr(self, key)) != stages]
        if wrong:
            raise ValueError(f"blocks has {stages} entries, one a stage: {', '.join(wrong)} must have as many")
        for key in ("kernels", "skip_kernels"):
            if any(side % 2 == 0 for side in getattr(self, key)):
                raise ValueError(f"{key} must be odd, so that a convolution keeps the map's size")
        if self.zero_init_residual and not self.bn_scale:
            raise ValueError("zero_init_residual starts BN weights at 0, where bn_scale = false keeps them: choose one")
        return self


class Speednet(_Network):
    """A plain, wide network for few epochs: airbench's (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU",
    section 3): a frozen layer that whitens 2×2 patches, then groups that convolve, halve the map and convolve again."""

    name: Literal["speednet"] = "speednet"
    """The family of networks: plain ones for few epochs."""
    widths: Annotated[list[Positive], Field(min_length=1)] = [64, 256, 256]
    """Channels of each group; every group halves the map."""
    depth: Literal[2, 3] = 2
    """Convolutions in each group; of three, the last two are a residual block (airbench96)."""
    pool: Annotated[int, Field(ge=0)] = 0
    """Side of the max-pool before the classifier; 0 pools the whole map."""
    whiten_images: Positive = 5000
    """Training images, evenly spaced over the set, from whose patches the first layer is computed."""
    whiten_eps: Rate = 5e-4
    """Added to the eigenvalues of the patches' second moments, so that directions without contrast are not blown up."""
    unit_std_head: bool = True
    """Start the classifier's weights at a standard deviation of 1 (airbench94_muon); else as torch draws them."""
    activation: Literal["relu", "silu", "gelu"] = "gelu"
    """What follows each BN and the whitening; `gelu` is the exact form, with erf."""
    bn_scale: bool = False
    """Whether BN weights train; if not, they stay at 1."""
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of a batch's statistics in the running ones, as torch counts it: one minus TensorFlow's."""
    bn_eps: Rate = 1e-12
    """Added to the variance in BN."""
    dirac_init: bool = True
    """Start 3×3 convolutions as the identity: the first filters pass the input channels on, the others are drawn
    (Zagoruyko and Komodakis 2017, "DiracNets")."""
    logit_scale: Rate = 1 / 256
    """Logits are multiplied by it; by default 1 / (channels of the last group), as in airbench94_muon."""

    @model_validator(mode="before")
    @classmethod
    def _scale_by_width(cls, values: Any) -> Any:
        widths = values.get("widths") if isinstance(values, dict) else None
        if isinstance(widths, list) and widths and type(widths[-1]) is int and widths[-1] > 0:
            return {"logit_scale": 1 / widths[-1], **values}
        return values


class RandomResizedCrop(Table):
    """A random part of the image, brought back to the image's own size (torchvision's RandomResizedCrop)."""

    scale: Interval = [0.08, 1.0]
    """Least and largest share of the image's area."""
    ratio: Interval = [3 / 4, 4 / 3]
    """Least and largest ratio of width to height; its logarithm is drawn uniformly."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Pillow's filter of that name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_box(self.scale, self.ratio)
        return self


class ColorJitter(Table):
    """Brightness, contrast, saturation and hue, changed in random order (torchvision's ColorJitter)."""

    brightness: Jitter = 0.0
    """The factor is drawn from 1 - this (at least 0) to 1 + this."""
    contrast: Jitter = 0.0
    """Likewise."""
    saturation: Jitter = 0.0
    """Likewise."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The shift is drawn from minus this to this, in turns of the colour circle."""
    p: Chance = 1.0
    """Probability of changing anything."""


class Erasing(Table):
    """A random rectangle filled with one colour (Zhong et al. 2020, torchvision's RandomErasing)."""

    p: Chance = 0.5
    """Probability of erasing."""
    scale: Interval = [0.02, 0.33]
    """Least and largest share of the image's area."""
    ratio: Interval = [0.3, 3.3]
    """Least and largest ratio of height to width; its logarithm is drawn uniformly."""
    value: Colour | None = None
    """Colour in units of 1 = white; by default the mean, which normalisation turns into 0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_box(self.scale, self.ratio)
        return self


class Augment(Table):
    """What happens to a training image before the network sees it, in this order; mixing has a table of its own."""

    random_resized_crop: RandomResizedCrop | None = None
    """Crop at random and resize; by default not. `translate` still follows: set it to 0 where it should not."""
    translate: Annotated[int, Field(ge=0, le=64)] = 4
    """Largest shift in pixels along each axis, drawn uniformly: padding and a random crop."""
    padding: Literal["zero", "reflect", "constant"] = "reflect"
    """What appears at the edge that a shift uncovers. `zero` is black, before normalisation; `constant` is `fill`."""
    fill: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)] | None = None
    """Colour of `padding = "constant"`: red, green and blue, 0 to 255."""
    flip: Literal["none", "random", "alternating"] = "random"
    """Mirror left and right: with probability one half, or so at the first epoch and then in every second one (Jordan
    2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.6)."""
    color_jitter: ColorJitter | None = None
    """Change brightness, contrast, saturation and hue; by default not."""
    autocontrast: Chance = 0.0
    """Probability of stretching each channel to the full range (torchvision's RandomAutocontrast)."""
    grayscale: Chance = 0.0
    """Probability of taking the colour away (torchvision's RandomGrayscale)."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of a square of mean colour around a random pixel (DeVries and Taylor 2017); 0: none."""
    erasing: Erasing | None = None
    """Erase a random rectangle; by default not."""
    noise: NotNegative = 0.0
    """Standard deviation of Gaussian noise in each value, in units of 1 = white; results stay within black and white
    (torchvision's GaussianNoise)."""
    mean: Colour | None = None
    """Subtracted from each channel, in units of 1 = white; by default the training set's own mean."""
    std: Colour | None = None
    """Divides each channel, in units of 1 = white; by default the training set's own standard deviation."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive")
        if self.padding == "constant" and self.fill is None:
            raise ValueError("padding = 'constant' needs a colour: set fill, for example to [128, 128, 128]")
        if self.padding != "constant" and self.fill is not None:
            raise ValueError("fill is the colour of padding = 'constant': set that, or leave fill out")
        return self


class Mix(Table):
    """Mixing each image of a batch with its neighbour, after `augment`; without an alpha there is none."""

    mixup_alpha: Alpha | None = None
    """Blend the two images, the first with weight λ from Beta(alpha, alpha) (Zhang et al. 2018)."""
    cutmix_alpha: Alpha | None = None
    """Paste a box of the neighbour, 1 - λ of the area before the edges clip it (Yun et al. 2019)."""
    prob: Chance = 1.0
    """Probability that a batch is mixed."""
    switch_prob: Chance = 0.5
    """Where both alphas are given: probability of CutMix rather than MixUp."""
    until: Annotated[int, Field(ge=0)] = 0
    """Epochs after which mixing stops; 0: never."""

    @property
    def active(self) -> bool:
        """Whether any batch may be mixed."""
        return (self.mixup_alpha is not None or self.cutmix_alpha is not None) and self.prob > 0


def _check_box(scale: list[float], ratio: list[float]) -> None:
    """Refuse what no box can have."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale = {scale} must be two shares of the area, 0 < least <= largest <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio = {ratio} must be two positive numbers, the smaller one first")


class _Optimizer(Table):
    lr: Rate
    """Learning rate at the schedule's factor 1."""
    weight_decay: NotNegative
    """Weight decay as the optimizer's paper has it: added to the gradient by SGD and Adam, decoupled in AdamW."""
    decay_norm_and_bias: bool = True
    """Whether BN weights and all biases decay too; the report's code decays everything."""
    bias_lr_factor: Rate = 1.0
    """Factor of the learning rate for BN weights and biases; 64 in airbench (Jordan 2024, section 3.4)."""
    head_lr_factor: Rate = 1.0
    """Factor of the learning rate for the classifier."""
    whiten_bias_lr_factor: Rate = 1.0
    """Factor of the learning rate for the bias of speednet's whitening layer."""
    whiten_bias_epochs: NotNegative = 0.0
    """Epochs, fractions allowed, over which the rate of that bias falls linearly to 0, in place of the schedule; 0: it
    follows the schedule. 3 in airbench."""


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013)."""

    name: Literal["sgd"] = "sgd"
    """The kind of optimizer."""
    lr: Rate = 0.1
    """Learning rate at the schedule's factor 1."""
    weight_decay: NotNegative = 5e-4
    """Added to the gradient, times the weight."""
    decouple_decay: bool = False
    """Divide `weight_decay` by the parameter's learning rate, so that another rate leaves the decay as it is: at the
    schedule's factor 1, a step's gradient takes away that share of a weight, as in airbench."""
    momentum: Share = 0.9
    """Share of the last update that is kept."""
    nesterov: bool = False
    """Step by the gradient and the momentum after it (Nesterov 1983; Sutskever et al. 2013, section 2)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class _Adam(_Optimizer):
    lr: Rate = 1e-3
    """Learning rate at the schedule's factor 1."""
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay of the two running moments."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""


class Adam(_Adam):
    """Adam (Kingma and Ba 2015)."""

    name: Literal["adam"] = "adam"
    """The kind of optimizer."""
    weight_decay: NotNegative = 0.0
    """Added to the gradient, times the weight."""


class AdamW(_Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    """The kind of optimizer."""
    weight_decay: NotNegative = 0.01
    """Share of the weight, times the learning rate, that each step takes away."""
    decouple_decay: bool = False
    """Divide `weight_decay` by the parameter's learning rate: at the schedule's factor 1, each step takes away that
    share of a weight, whatever the rate (Loshchilov and Hutter 2019, algorithm 2, where only the schedule scales the
    decay)."""


class Muon(Table):
    """Momentum, orthogonalised, for the filters of convolutions (Jordan et al. 2024, "Muon: An optimizer for hidden
    layers in neural networks"); everything else has an optimizer of its own, `auxiliary`."""

    name: Literal["muon"] = "muon"
    """The kind of optimizer."""
    lr: Rate = 0.02
    """Learning rate of the filters at the schedule's factor 1: 0.24 in airbench94_muon, which renormalises at each
    step."""
    momentum: Share = 0.95
    """Share of the last update that is kept; 0.6 in airbench94_muon."""
    nesterov: bool = True
    """Step by the gradient and the momentum after it (Nesterov 1983; Sutskever et al. 2013, section 2)."""
    weight_decay: NotNegative = 0.0
    """Share of a filter, times the learning rate, that each step takes away."""
    decouple_decay: bool = False
    """Divide `weight_decay` by the learning rate: at the schedule's factor 1, each step takes away that share."""
    newton_schulz_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton–Schulz iterations of the 5th-order polynomial (3.4445, -4.7750, 2.0315) of the same article;
    airbench94_muon makes do with 3."""
    renormalise_every: Annotated[int, Field(ge=0)] = 0
    """Steps after which each filter is scaled back to its initial norm, which BN behind it does not notice; 0:
    never."""
    auxiliary: Annotated[Sgd | Adam | AdamW, Field(discriminator="name")] = Sgd()
    """Optimizer of biases, BN and classifier, with a learning rate of its own under the same schedule; `sgd` unless its
    `name` says otherwise."""

    @model_validator(mode="before")
    @classmethod
    def _name_kind(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("auxiliary"), dict):
            return {**values, "auxiliary": {"name": "sgd", **values["auxiliary"]}}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class _Schedule(Table):
    per: Literal["step", "epoch"] = "step"
    """Whether the learning rate moves at every step or once an epoch."""
    warmup_epochs: NotNegative = 0.0
    """Epochs, fractions allowed, over which the rate rises linearly from nearly 0; the rest follows after them."""


class Constant(_Schedule):
    """The same rate throughout."""

    name: Literal["constant"] = "constant"
    """The kind of schedule."""


class Linear(_Schedule):
    """A straight line from 1 to `final`."""

    name: Literal["linear"] = "linear"
    """The kind of schedule."""
    final: NotNegative = 0.0
    """Factor of the learning rate at the end."""


class Cosine(_Schedule):
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2017, without restarts)."""

    name: Literal["cosine"] = "cosine"
    """The kind of schedule."""
    final: NotNegative = 0.0
    """Factor of the learning rate at the end."""


class OneCycle(_Schedule):
    """Up and down again in half cosines (Smith, Topin 2018): torch's OneCycleLR, which ends one step earlier, without
    its momentum cycle."""

    name: Literal["one_cycle"] = "one_cycle"
    """The kind of schedule."""
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the run at which the rate is highest."""
    start: NotNegative = 0.04
    """Factor of the learning rate at the start."""
    final: NotNegative = 4e-6
    """Factor of the learning rate at the end."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs > 0:
            raise ValueError("one_cycle warms up by itself: set peak and start instead of warmup_epochs")
        return self


class Step(_Schedule):
    """The rate is multiplied by `gamma` at each milestone."""

    name: Literal["step"] = "step"
    """The kind of schedule."""
    milestones: list[NotNegative]
    """Epochs, fractions allowed, at which the rate drops."""
    gamma: Rate = 0.1
    """Factor of each drop."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sorted(self.milestones) != self.milestones:
            raise ValueError("milestones must rise")
        return self


class Knots(_Schedule):
    """Straight lines through given points."""

    name: Literal["knots"] = "knots"
    """The kind of schedule."""
    points: Annotated[
        list[Annotated[list[NotNegative], Field(min_length=2, max_length=2)]],
        Field(min_length=1),
    ]
    """Pairs of an epoch, fractions allowed, and the learning rate's factor there: [[0, 0.2], [2, 1], [7.5, 0]] rises
    for two epochs and falls to 0 at the middle of the eighth. Two points of one epoch are a jump; before the first
    point and after the last one the factor is theirs."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        epochs = [epoch for epoch, _ in self.points]
        if sorted(epochs) != epochs:
            raise ValueError("the epochs of points must rise")
        if self.warmup_epochs > 0:
            raise ValueError("knots warm up by themselves: start points at a low factor instead of warmup_epochs")
        return self


class Lookahead(Table):
    """Slow weights that follow the trained ones at intervals and replace them (Zhang et al. 2019, algorithm 1)."""

    every: Positive = 5
    """Steps between two such exchanges (k)."""
    decay: Share = 0.5
    """Share of themselves that the slow weights keep at an exchange (1 - α); 0.77 (0.95⁵) in airbench96."""
    power: NotNegative = 0.0
    """The share grows over the run as (share of the run that is done)^power: 0 keeps it constant, as in the paper; 3 in
    airbench96, whose slow weights follow fast at first and average over many steps at the end."""


class Train(Table):
    """The run itself."""

    epochs: Rate = 20.0
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
    lookahead: Lookahead | None = None
    """Slow weights, which are then evaluated and kept (unless `ema` is set too, which averages on top); by default
    none."""
    best: str | None = None
    """Metric of metrics.jsonl that chooses the checkpoint to test, such as `val_loss`; lowest for a loss, highest for
    an accuracy. By default the last weights are tested."""
    early_stopping: Annotated[int, Field(ge=0)] = 0
    """Stop after so many epochs without a better `best`; 0: never."""
    checkpoint_seconds: NotNegative = 60.0
    """Save at most this often in mid-epoch; 0 saves after every step. The end of an epoch always saves."""


class Eval(Table):
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


class Record(Table):
    """What is written besides the metrics."""

    name: str | None = None
    """Name of the run; by default the recipe file's."""
    report: bool = True
    """Draw the figures and the page at the end."""
    tensorboard: bool = False
    """Write TensorBoard events too; needs `pip install 'fastres[tensorboard]'`."""


class Recipe(Table):
    """Every choice of a run."""

    data: Data = Data()
    """Images and split."""
    model: Annotated[Model | Speednet, Field(discriminator="name")] = Model()
    """Network."""
    augment: Augment = Augment()
    """Augmentation of training images."""
    mix: Mix = Mix()
    """Mixing of images within a batch."""
    optimizer: Annotated[Sgd | Adam | AdamW | Muon, Field(discriminator="name")] = Sgd()
    """Optimizer."""
    schedule: Annotated[Constant | Linear | Cosine | OneCycle | Step | Knots, Field(discriminator="name")] = Cosine()
    """Learning-rate schedule."""
    train: Train = Train()
    """The run."""
    eval: Eval = Eval()
    """Measuring."""
    record: Record = Record()
    """Records."""

    @model_validator(mode="before")
    @classmethod
    def _name_kinds(cls, values: Any) -> Any:
        """A table that does not say its kind is of the default kind."""
        if not isinstance(values, dict):
            return values
        kinds = {"model": "resnet", "optimizer": "sgd", "schedule": "cosine"}
        given = {table: values[table] for table in kinds if isinstance(values.get(table), dict)}
        return {**values, **{table: {"name": kinds[table], **content} for table, content in given.items()}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        train, best = self.train, self.train.best
        if best is not None:
            metrics = [f"{part}_{what}" for part in ("train", "val", "test") for what in ("loss", "accuracy")]
            if best not in metrics:
                raise ValueError(f"train.best is '{best}', which no run logs: choose one of {', '.join(metrics)}")
            if best.startswith("val_") and self.data.split == "none":
                raise ValueError(f"train.best = '{best}' needs validation images: set data.split to 'holdout'")
            if best.startswith("test_") and self.eval.test_every != 1:
                raise ValueError(f"train.best = '{best}' needs a test after each epoch: set eval.test_every to 1")
        if train.early_stopping and best is None:
            raise ValueError("train.early_stopping needs a metric: set train.best, for example to 'val_loss'")
        if self.schedule.warmup_epochs >= train.epochs:
            raise ValueError("schedule.warmup_epochs must be below train.epochs")
        if isinstance(self.schedule, Knots) and self.schedule.points[-1][0] > train.epochs:
            raise ValueError(
                f"schedule.points end at epoch {self.schedule.points[-1][0]:g}, after train.epochs = {train.epochs:g}: "
                "move the points, or train for longer"
            )
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> "Recipe":
        """Read a recipe from `path`, with `overrides` such as `"train.epochs=3"` on top.

        Raises UserError for anything wrong in the file, in a file it extends, or in an override.
        """
        from fastres.reading import load

        return load(cls, Path(path), overrides or [])

    def to_toml(self) -> str:
        """The whole recipe as TOML. Keys without a value are left out: TOML has no null."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def hash(self) -> str:
        """Twelve hexadecimal digits that change with any choice that changes the numbers of a run."""
        import json

        values = self.model_dump(exclude={"record": True, "data": {"root"}, "train": {"checkpoint_seconds"}})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, from which editors complete keys and show their docstrings."""
    tables = Recipe.model_json_schema()
    for table in (*tables["properties"].values(), tables["$defs"]["Muon"]["properties"]["auxiliary"]):
        # A file that extends another may leave the kind (`name`) to it; then several kinds fit, which `oneOf` forbids.
        if "oneOf" in table:
            table["anyOf"] = table.pop("oneOf")
    extends = {"type": "string", "description": "Path of the recipe to start from, relative to this file."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **tables,
        "title": "fastres recipe",
        "properties": {"extends": extends, **tables["properties"]},
    }


if __name__ == "__main__":
    import json

    print(json.dumps(schema(), indent=2))
