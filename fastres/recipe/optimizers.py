"""The optimizers: SGD, Adam, AdamW and Muon."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from fastres.recipe.fields import NotNegative, Rate, Share, Table
from fastres.recipe.kinds import Kinds
from fastres.recipe.networks import SpeednetRates

OPTIMIZERS = Kinds(default="sgd")


class OptimizerConfig(Table):
    """Any optimizer."""

    if TYPE_CHECKING:
        name: str
        lr: float
        weight_decay: float


class _Rates(Table):
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


class ElementwiseConfig(SpeednetRates, _Rates, OptimizerConfig):
    """An optimizer that updates each value of a parameter by itself, so that it is for all of them."""


@OPTIMIZERS.register
class SgdConfig(ElementwiseConfig):
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


class _Adam(ElementwiseConfig):
    lr: Rate = 1e-3
    """Learning rate at the schedule's factor 1."""
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay of the two running moments."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""


@OPTIMIZERS.register
class AdamConfig(_Adam):
    """Adam (Kingma and Ba 2015)."""

    name: Literal["adam"] = "adam"
    """The kind of optimizer."""
    weight_decay: NotNegative = 0.0
    """Added to the gradient, times the weight."""


@OPTIMIZERS.register
class AdamWConfig(_Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    """The kind of optimizer."""
    weight_decay: NotNegative = 0.01
    """Share of the weight, times the learning rate, that each step takes away."""
    decouple_decay: bool = False
    """Divide `weight_decay` by the parameter's learning rate: at the schedule's factor 1, each step takes away that
    share of a weight, whatever the rate (Loshchilov and Hutter 2019, algorithm 2, where only the schedule scales the
    decay)."""


@OPTIMIZERS.register
class MuonConfig(OptimizerConfig):
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
    auxiliary: Annotated[ElementwiseConfig, OPTIMIZERS] = SgdConfig()
    """Optimizer of biases, BN and classifier, with a learning rate of its own under the same schedule; `sgd` unless its
    `name` says otherwise."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self
