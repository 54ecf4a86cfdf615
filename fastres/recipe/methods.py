"""Training methods besides labels alone, and starting weights."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag

from fastres.recipe.augmentation import RandomResizedCropConfig
from fastres.recipe.fields import NotNegative, Positive, Rate, Share, Table
from fastres.recipe.kinds import Kinds

METHODS = Kinds(default="supervised")


class MethodConfig(Table):
    """What whoever plans trainings may ask of a method; by default what holds of labels alone."""

    name: str
    """The method."""
    learns_features: ClassVar[bool] = False
    """Whether the classifier comes after the training, and until then its accuracy is beside the point."""
    adds_to_steps: ClassVar[bool] = False
    """Whether a step is more than the network's own forward, loss and backward."""
    labels_images: ClassVar[bool] = False
    """Whether images of a source without labels, `unlabelled`, are labelled and trained on."""

    @property
    def setting(self) -> str:
        """The method as a recipe names it, for messages."""
        return f"method.name = '{self.name}'"

    @property
    def several_runs(self) -> str | None:
        """Where a training is several runs inside of one run directory: what it trains besides, and how to do without,
        for an error."""
        return None

    def images(self, labelled: int, unlabelled: int) -> int:
        """Images of an epoch of each run, added up, at most; `unlabelled` are those that may be labelled."""
        return labelled

    def with_unlabelled(self, source: str) -> Self:
        """The method with other images to label, where it labels any."""
        return self


@METHODS.register
class SupervisedConfig(MethodConfig):
    """Labels alone."""

    name: Literal["supervised"] = "supervised"
    """The method."""


Teacher = Annotated[
    Annotated[str, Tag("<path>")] | Annotated[dict[str, Any], Tag("<recipe>")],
    Discriminator(lambda value: "<recipe>" if isinstance(value, dict) else "<path>"),
]


@METHODS.register
class DistillConfig(MethodConfig):
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
    adds_to_steps = True

    @property
    def several_runs(self) -> str | None:
        is_recipe = isinstance(self.teacher, dict) or self.teacher.endswith(".toml")
        return "a teacher's recipe is trained before: train it first, and name its folder" if is_recipe else None


@METHODS.register
class PseudoLabelConfig(MethodConfig):
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
    labels_images = True

    @property
    def several_runs(self) -> str:
        return f"{self.setting} trains in rounds: leave it out"

    def images(self, labelled: int, unlabelled: int) -> int:
        return labelled + self.rounds * (labelled + unlabelled)

    def with_unlabelled(self, source: str) -> Self:
        return self.model_copy(update={"unlabelled": source})


class SelfSupervisedConfig(MethodConfig):
    """Options of all methods that learn features without labels.

    The classifier learns beside, from labels, on features through which no gradient returns, so that the accuracy of
    each epoch says how good they are. At the end a logistic regression on them takes its place (a linear probe), and
    summary.json has its accuracy on the test images and that of nearest neighbours.
    """

    learns_features = True
    adds_to_steps = True
    neighbours: Positive = 20
    """Training images that vote on a test image's class (Wu et al. 2018, "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination", section 3.4)."""


@METHODS.register
class DinoConfig(SelfSupervisedConfig):
    """Self-distillation without labels (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision
    Transformers", section 3). The `augment` table makes the two global views. The teacher is an average of the student
    in evaluation mode, BN statistics too (Cai et al. 2021, "Exponential Moving Average Normalization"), and is what is
    kept."""

    name: Literal["dino"] = "dino"
    """The method."""
    local_views: Annotated[int, Field(ge=0)] = 6
    """Small views, which only the student sees."""
    local_crop: RandomResizedCropConfig = RandomResizedCropConfig(scale=[0.1, 0.4])
    """Their crop, in place of `augment.random_resized_crop`."""
    local_size: Positive = 16
    """Their size in pixels, which divides that of the images: they cost as much less."""
    hidden: Positive = 512
    """Width of the projection head's two hidden layers."""
    bottleneck: Positive = 256
    """Numbers that are compared with the prototypes."""
    prototypes: Annotated[int, Field(ge=2)] = 1024
    """Outputs, over which student and teacher are compared."""
    student_temperature: Rate = 0.1
    """By which the student's outputs are divided."""
    teacher_temperature: Rate = 0.04
    """By which the teacher's are: below the student's, which sharpens them."""
    centre_momentum: Share = 0.9
    """Momentum of the running mean of the teacher's outputs, which is subtracted from them."""
    teacher_momentum: Share = 0.996
    """Momentum of the teacher's weights in the first step; it grows to 1 at the last like a cosine."""


@METHODS.register
class EmpSslConfig(SelfSupervisedConfig):
    """Many patches of each image, which agree while all of them spread (Tong et al. 2023, "EMP-SSL: Towards
    Self-Supervised Learning in One Training Epoch", section 3). The `augment` table makes the patches."""

    name: Literal["emp_ssl"] = "emp_ssl"
    """The method."""
    patches: Annotated[int, Field(ge=2)] = 20
    """Patches of each image."""
    patch_size: Positive = 32
    """Their size in pixels as the network sees it, which divides that of the images."""
    hidden: Positive = 4096
    """Width of the projection's hidden layer."""
    dimension: Positive = 1024
    """Width of the projection."""
    invariance: NotNegative = 200.0
    """λ, the weight of the cosine similarity of patches and their image's mean."""
    distortion: Rate = 0.2
    """ε² of the total coding rate: the squared error up to which projections are told apart."""


class TransferConfig(Table):
    """Starting from weights that were trained before."""

    weights: str
    """A run's folder, or a file: `.safetensors`, or `.pt` or `.pth` with a `state_dict`, under the names of fastres,
    which are torchvision's. A classifier for another number of classes is left out."""
    freeze: list[str] = []
    """Parameters that keep their weights, by patterns of their names such as `layer1.*`; a BN that is frozen as a whole
    keeps its statistics too."""
    lr_factors: dict[str, Rate] = {}
    """Factors on the learning rate of parameters, by patterns of their names; of several that fit, the first one."""
