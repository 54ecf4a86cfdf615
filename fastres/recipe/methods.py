"""What a network is taught by besides labels, and what it starts from."""

from typing import Annotated, Literal

from pydantic import Field

from fastres.recipe.fields import Rate, Table


class Supervised(Table):
    """Labels alone."""

    name: Literal["supervised"] = "supervised"
    """The method."""


class Distill(Table):
    """A teacher's predictions beside the labels (Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural
    Network", section 2)."""

    name: Literal["distill"] = "distill"
    """The method."""
    teacher: str
    """Folder of a finished run, whose kept network teaches, on the same augmented and mixed images."""
    temperature: Rate = 4.0
    """T, by which the logits of both are divided: above 1, the teacher's small probabilities count too."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of the teacher's part of the loss, T²·KL(teacher ‖ student); the labels have the rest."""


class Transfer(Table):
    """Starting from weights that were trained before."""

    weights: str
    """A run's folder, or a file: `.safetensors`, or `.pt` or `.pth` with a `state_dict`, under the names of fastres,
    which are torchvision's. A classifier for another number of classes is left out."""
    freeze: list[str] = []
    """Parameters that keep their weights, by patterns of their names such as `layer1.*`; a BN that is frozen as a whole
    keeps its statistics too."""
    lr_factors: dict[str, Rate] = {}
    """Factors on the learning rate of parameters, by patterns of their names; of several that fit, the first one."""
