"""The network that a run directory keeps."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor, nn

from fastres.augment import Augment
from fastres.engine.device import choose_device
from fastres.engine.precision import DTYPES
from fastres.engine.process import left_as_found
from fastres.errors import UserError
from fastres.evaluation.evaluator import Evaluator, everything
from fastres.models import build
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.runs.directory import read_recipe


@dataclass(frozen=True)
class TrainedModel:
    """The network that a finished run kept, ready for images."""

    recipe: Recipe
    network: nn.Module
    classes: tuple[str, ...]
    image_size: int
    augment: Augment
    device: torch.device

    @classmethod
    def load(cls, run: Path, device: str = "auto") -> "TrainedModel":
        """Read checkpoints/final.safetensors. Raises UserError where the run has none yet."""
        recipe, where = read_recipe(run), choose_device(device)
        path = run / checkpoint.FINAL
        if not path.is_file():
            raise UserError(f"{run} is not finished: complete it with `fastres train --resume {quote(str(run))}`")
        weights, about = checkpoint.load_weights(path)
        try:
            with torch.random.fork_rng([], device_type="cuda"):  # the weights that are drawn are nobody's
                network = build(recipe.model, len(about.classes), about.image_size)
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"{path} does not fit {run}/recipe.toml: one of them was changed") from error
        if recipe.train.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dtype, channels_last = DTYPES[recipe.train.precision], recipe.train.channels_last
        augment = Augment(recipe.augment, about.mean, about.std, dtype=dtype, channels_last=channels_last)
        return cls(recipe, network.to(where).eval(), tuple(about.classes), about.image_size, augment, where)

    def logits(self, images: Any) -> Tensor:
        """float32 [N, classes] for images uint8 [N, H, W, 3], an array or EncodedImages, compiled and with test-time
        augmentation as in training, so that the same bits come out."""
        options = self.recipe.eval
        with left_as_found(self.device.type):
            return self._evaluator.logits(everything(images, options.batch_size, self.device), options)

    @cached_property
    def _evaluator(self) -> Evaluator:
        """One for all calls: it compiles the network once."""
        return Evaluator(self.network, self.augment, self.recipe.train, self.device)
