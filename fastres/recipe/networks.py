"""The networks: ResNets and speednet."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fastres.recipe.fields import Channels, NotNegative, Positive, Rate, Share, Side, Table
from fastres.recipe.kinds import Kinds

NETWORKS = Kinds(default="resnet")
STAGES = 16
"""Most stages or groups: each halves the map, which has 1024 pixels at most."""
BLOCKS = 1000
"""Most blocks in all; He et al. (2016) trained 600, and to build 1000 takes seconds."""

PRESETS: dict[str, dict[str, Any]] = {
    "resnet18": {"blocks": [2, 2, 2, 2]},
    "resnet34": {"blocks": [3, 4, 6, 3]},
    "resnet18-imagenet": {"blocks": [2, 2, 2, 2], "stem": "imagenet"},
    "resnet34-imagenet": {"blocks": [3, 4, 6, 3], "stem": "imagenet"},
}


class _ConvNetConfig(Table):
    activation: Literal["relu", "silu", "gelu"] = "relu"
    """Activation after each BN; `gelu` is the exact form, with erf."""
    bn_scale: bool = True
    """Whether BN weights train; if not, they stay at 1."""
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a batch's statistics in the running ones, as torch counts it: one minus TensorFlow's."""
    bn_eps: Rate = 1e-5
    """Added to the variance in BN."""
    dirac_init: bool = False
    """Start convolutions inside the network as the identity: the first filters pass the input channels on, the others
    are drawn (Zagoruyko and Komodakis 2017, "DiracNets")."""


class NetworkConfig(Table):
    """Any network."""

    if TYPE_CHECKING:
        name: str
    dropout: Share = 0.0
    """Probability of dropping a feature before the classifier."""
    logit_scale: Rate = 1.0
    """Logits are multiplied by it: below 1 a network is less sure of itself early on (hlb-CIFAR10)."""
    max_parameters: Positive | None = None
    """More trainable parameters than this are an error; 5_000_000 in the report's challenge."""


@NETWORKS.register
class ModelConfig(NetworkConfig, _ConvNetConfig):
    """A residual network of basic blocks (He et al. 2016, section 3.3), one list entry a stage."""

    name: Literal["resnet"] = "resnet"
    """The family of networks: residual networks with the parameter names of torchvision."""
    preset: Literal["resnet18", "resnet34", "resnet18-imagenet", "resnet34-imagenet"] | None = None
    """Starting values of the keys below; a key that is given wins."""
    blocks: Annotated[list[Positive], Field(min_length=1, max_length=STAGES)] = [2, 2, 2, 2]
    """Residual blocks in each stage."""
    channels: Annotated[list[Channels], Field(min_length=1)] = [64, 128, 256, 512]
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
            stages = min(len(values["blocks"]), STAGES)
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
        if sum(self.blocks) > BLOCKS:
            raise ValueError(f"blocks has {sum(self.blocks):,} in all: a network of more than {BLOCKS:,} is not built")
        wrong = [key for key in ("channels", "strides", "kernels", "skip_kernels") if len(getattr(self, key)) != stages]
        if wrong:
            raise ValueError(f"blocks has {stages} entries, one a stage: {', '.join(wrong)} must have as many")
        for key in ("kernels", "skip_kernels"):
            if any(side % 2 == 0 for side in getattr(self, key)):
                raise ValueError(f"{key} must be odd, so that a convolution keeps the map's size")
        if self.zero_init_residual and not self.bn_scale:
            raise ValueError("zero_init_residual starts BN weights at 0, where bn_scale = false keeps them: choose one")
        return self


@NETWORKS.register
class SpeednetConfig(NetworkConfig, _ConvNetConfig):
    """A plain, wide network for few epochs: airbench's (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU",
    section 3): a frozen layer that whitens 2×2 patches, then groups that convolve, halve the map and convolve again."""

    name: Literal["speednet"] = "speednet"
    """The family of networks: plain ones for few epochs."""
    widths: Annotated[list[Channels], Field(min_length=1, max_length=STAGES)] = [64, 256, 256]
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
    """Activation after each BN and the whitening; `gelu` is the exact form, with erf."""
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


class SpeednetRates(Table):
    """Keys for speednet in the table of any optimizer."""

    whiten_bias_lr_factor: Rate = 1.0
    """Factor of the learning rate for the bias of speednet's whitening layer."""
    whiten_bias_epochs: NotNegative = 0.0
    """Epochs, fractions allowed, over which the rate of that bias falls linearly to 0, in place of the schedule; 0: it
    follows the schedule. 3 in airbench."""
