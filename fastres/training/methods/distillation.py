"""Knowledge distillation: a student learns what a teacher says of the images that it sees."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fastres.data import Dataset
from fastres.errors import UserError
from fastres.evaluation.trained import TrainedModel
from fastres.recipe import DistillConfig
from fastres.runs import checkpoint
from fastres.training.data import DataModule


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


class Distillation:
    """The teacher, and the loss with it: (1 − w)·loss + w·T²·KL(softmax(teacher / T) ‖ softmax(student / T)), the mean
    over the batch (Hinton, Vinyals and Dean 2015, section 2).

    T² keeps the size of the gradients, which shrink as 1/T². The teacher stays in evaluation mode and gets the same
    augmented, mixed batch, brought to the mean and spread of colours that it was trained with. `run` is its run, where
    `options` do not name one. Raises UserError where it has other classes or another image size.
    """

    def __init__(
        self, options: DistillConfig, data_module: DataModule, device: torch.device, run: Path | None = None
    ) -> None:
        run = run or Path(str(options.teacher))
        teacher = TrainedModel.load(run, device.type)
        check_fits(str(run), teacher.classes, teacher.image_size, data_module.dataset)
        self.options, self.network = options, teacher.network.to(device).requires_grad_(False)
        self.about = f"{options.temperature} {options.weight} {teacher.recipe.model!r}"
        self.fingerprint = hashlib.sha256((run / checkpoint.FINAL).read_bytes()).hexdigest()[:16]
        # The teacher's image is (pixel − mean′)/std′ = scale·(student's image) + shift.
        own, theirs = data_module.augment, teacher.augment
        scale, shift = own.std / theirs.std, (own.mean - theirs.mean) / theirs.std
        self._same = torch.equal(own.mean, theirs.mean) and torch.equal(own.std, theirs.std)
        self._scale, self._shift = (each.float().view(1, -1, 1, 1).to(device) for each in (scale, shift))

    def __call__(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The loss of the student's fp32 `logits` [B, classes] on `images` [B, 3, H, W], of which the labels' part is
        `loss`."""
        temperature, weight = self.options.temperature, self.options.weight
        with torch.no_grad():
            seen = images if self._same else (images * self._scale + self._shift).to(images.dtype)
            told = self.network(seen).float()
        soft = F.kl_div(
            F.log_softmax(logits / temperature, 1),
            F.log_softmax(told / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - weight) * loss + weight * temperature**2 * soft
