"""What a network is taught by besides labels, and what it starts from."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from fastres.recipe.fields import Positive, Rate, Share, Table


class Supervised(Table):
    """Labels alone."""

    name: Literal["supervised"] = "supervised"
    """The method."""


Teacher = Annotated[
    Annotated[str, Tag("<path>")] | Annotated[dict[str, Any], Tag("<recipe>")],
    Discriminator(lambda value: "<recipe>" if isinstance(value, dict) else "<path>"),
]


class Distill(Table):
    """A teacher's predictions beside the labels (Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural
    Network", section 2)."""

    name: Literal["distill"] = "distill"
    """The method."""
    teacher: Teacher
    """Folder of a finished run, whose kept network teaches, on the same augmented and mixed images. Or a recipe, as the
    path of a `.toml` file or as a table, which is then trained first, in `teacher/` of the run directory: with its own
    [data] if it has that table, else with the student's, and split by its own seed."""
    temperature: Rate = 4.0
    """T, by which the logits of both are divided: above 1, the teacher's small probabilities count too."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of the teacher's part of the loss, T²·KL(teacher ‖ student); the labels have the rest."""


class PseudoLabel(Table):
    """Self-training: a network labels images, and is trained again on these too (Lee 2013, "Pseudo-Label"; rounds as in
    Xie et al. 2020, "Self-training with Noisy Student", section 2). With `train.ema` the average labels them.

    The report took all predictions, of one round: `threshold = 0`, `balance = false`.
    """

    name: Literal["pseudo_label"] = "pseudo_label"
    """The method."""
    unlabelled: str
    """Source of the images, like `data.source`: those without labels, else its training images, whose labels are not
    looked at."""
    rounds: Positive = 1
    """How often images are labelled and the network is trained again, as long as the first time."""
    threshold: Share = 0.95
    """Least probability of the predicted class; 0 takes every image."""
    balance: bool = True
    """Take as many of each class, the surest ones: as many as there are of the rarest of those that were predicted."""
    soft: bool = False
    """Train on the predicted probabilities instead of the most probable class."""
    restart: bool = True
    """Train from newly drawn weights in each round; else from those of the round before."""


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
