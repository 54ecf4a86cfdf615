"""Augmentation of single images, and mixing of those of a batch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fastres.recipe.fields import Alpha, Chance, Colour, Interval, Jitter, NotNegative, Table


class RandomResizedCropConfig(Table):
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


class ColorJitterConfig(Table):
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


class ErasingConfig(Table):
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


class AugmentConfig(Table):
    """Operations on a training image before the network sees it, in this order; mixing has a table of its own."""

    random_resized_crop: RandomResizedCropConfig | None = None
    """Crop at random and resize; by default not. `translate` still follows: set it to 0 where it should not."""
    translate: Annotated[int, Field(ge=0, le=64)] = 4
    """Largest shift in pixels along each axis, drawn uniformly: padding and a random crop."""
    padding: Literal["zero", "reflect", "constant"] = "reflect"
    """Fill of the edge that a shift uncovers. `zero` is black, before normalisation; `constant` is `fill`."""
    fill: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)] | None = None
    """Colour of `padding = "constant"`: red, green and blue, 0 to 255."""
    flip: Literal["none", "random", "alternating"] = "random"
    """Mirror left and right: with probability one half, or so at the first epoch and then in every second one (Jordan
    2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.6)."""
    color_jitter: ColorJitterConfig | None = None
    """Change brightness, contrast, saturation and hue; by default not."""
    autocontrast: Chance = 0.0
    """Probability of stretching each channel to the full range (torchvision's RandomAutocontrast)."""
    grayscale: Chance = 0.0
    """Probability of taking the colour away (torchvision's RandomGrayscale)."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of a square of mean colour around a random pixel (DeVries and Taylor 2017); 0: none."""
    erasing: ErasingConfig | None = None
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


class MixConfig(Table):
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
