"""Knowledge distillation: a student learns what a teacher says of the images that it sees."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.data import Dataset
from fastres.errors import UserError
from fastres.evaluation.trained import TrainedModel
from fastres.recipe import DistillConfig, Recipe, SupervisedConfig
from fastres.recipe.teacher import FOLDER as TEACHER
from fastres.recipe.teacher import is_recipe, read_teacher
from fastres.runs import checkpoint
from fastres.runs.schema import Summary
from fastres.training.data import DataModule
from fastres.training.methods.base import Job, Method, Trainer


def check_fits(teacher: str, classes: tuple[str, ...], image_size: int, dataset: Dataset) -> None:
    """Raise UserError where a teacher of these classes and images knows nothing of those in `dataset`."""
    if classes != dataset.classes:
        raise UserError(
            f"method.teacher = '{teacher}' knows other classes ({', '.join(classes[:3])}, …) than "
            f"{dataset.source} has ({', '.join(dataset.classes[:3])}, …): give a teacher of these images"
        )
    if image_size != dataset.image_size:
        raise UserError(
            f"method.teacher = '{teacher}' knows images of {image_size} pixels, and {dataset.source} "
            f"has {dataset.image_size}: give a teacher of these images"
        )


class Distillation(Method[DistillConfig]):
    """The loss with a teacher: (1 − w)·loss + w·T²·KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the
    batch (Hinton, Vinyals and Dean 2015, section 2).

    T² keeps the size of the gradients, which shrink as 1/T². The teacher stays in evaluation mode and gets the same
    augmented, mixed batch, brought to the mean and spread of colours that it was trained with. `teacher` is its run,
    where the config does not name one.
    """

    teacher: nn.Module

    def __init__(self, config: DistillConfig, teacher: Path | None = None) -> None:
        super().__init__(config)
        self._run = teacher

    def runs(self, recipe: Recipe, trainer: Trainer, *, begun: bool) -> Job:
        """One run, or first the teacher's where a recipe describes the teacher."""
        if not is_recipe(self.config.teacher):
            return trainer.single(recipe)
        teacher = read_teacher(self.config.teacher, recipe.data)
        if not begun:  # what is wrong with the student would else come out after hours of teaching
            taught = trainer.dataset_of(teacher)
            alone = trainer.dataset_of(recipe.model_copy(update={"method": SupervisedConfig()}))
            check_fits(taught.source, taught.classes, taught.image_size, alone)
        return _TeacherFirst(recipe, self.config, teacher, trainer)

    def prepare(self, data_module: DataModule, device: torch.device) -> None:
        run = self._run or Path(str(self.config.teacher))
        teacher = TrainedModel.load(run, device.type)
        check_fits(str(run), teacher.classes, teacher.image_size, data_module.dataset)
        self.teacher = teacher.module.to(device).requires_grad_(False)
        self.graph_key = f"{self.config.temperature} {self.config.weight} {teacher.recipe.model!r}"
        self.fingerprint = hashlib.sha256((run / checkpoint.FINAL).read_bytes()).hexdigest()[:16]
        # The teacher's image is (pixel − mean′)/std′ = scale·(student's image) + shift.
        own, theirs = data_module.augment, teacher.augment
        scale, shift = own.std / theirs.std, (own.mean - theirs.mean) / theirs.std
        self._same = torch.equal(own.mean, theirs.mean) and torch.equal(own.std, theirs.std)
        self._scale, self._shift = (each.float().view(1, -1, 1, 1).to(device) for each in (scale, shift))

    def loss(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        temperature, weight = self.config.temperature, self.config.weight
        with torch.no_grad():
            seen = images if self._same else (images * self._scale + self._shift).to(images.dtype)
            told = self.teacher(seen).float()
        student, teacher = F.log_softmax(logits / temperature, 1), F.log_softmax(told / temperature, 1)
        soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - weight) * loss + weight * temperature**2 * soft


@dataclass(frozen=True)
class _TeacherFirst:
    """The teacher's run inside of the student's run directory, then the student's."""

    recipe: Recipe
    config: DistillConfig
    teacher: Recipe
    trainer: Trainer

    def execute(self, run: Path) -> Summary:
        folder = run / TEACHER
        self.trainer.say(f"the teacher, in {folder}")
        self.trainer.inside(self.teacher, folder, run)
        self.trainer.say("the student")
        return self.trainer.single(self.recipe, Distillation(self.config, folder)).execute(run)
