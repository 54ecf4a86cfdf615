"""The network that a run directory keeps: `fastres.load`."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastres.augment import Augment
from fastres.data.loaders.resident import shared
from fastres.data.store.encoded import MAX_FILE, decode, square, to_rgb
from fastres.engine.device import choose_device
from fastres.engine.precision import DTYPES
from fastres.engine.process import left_as_found
from fastres.errors import UserError
from fastres.evaluation.calibration import describe
from fastres.evaluation.evaluator import Evaluator, everything
from fastres.evaluation.predictions import Prediction, Predictions
from fastres.models import build
from fastres.recipe import EvalConfig, Recipe
from fastres.runs import checkpoint
from fastres.runs.directory import read_recipe
from fastres.runs.schema import NetworkFacts
from fastres.utils.paths import expand_home
from fastres.utils.progress import say
from fastres.utils.untrusted import read_regular

if TYPE_CHECKING:
    from PIL import Image

    OneImage = str | Path | Image.Image
    Pixels = Tensor | NDArray[np.uint8]
    Several = list[OneImage | Pixels] | tuple[OneImage | Pixels, ...]

VIEWS = get_args(EvalConfig.model_fields["tta"].annotation)


def load(run: str | Path, *, device: str = "auto") -> "TrainedModel":
    """The network that the finished run `run` kept, on `device`: auto, cpu or cuda.

    Needs the run directory alone, wherever it was copied to, and no data: recipe.toml and
    checkpoints/final.safetensors, which has the names of the classes, the images' preparation and the temperature of
    the probabilities. Reports in a line that there is no temperature. Raises UserError where `run` is no finished run
    or damaged, and for a device that there is not.
    """
    folder = expand_home(run)
    model = TrainedModel.load(folder, device)
    model.say_uncalibrated(folder)
    return model


@dataclass(frozen=True)
class TrainedModel:
    """The network that a finished run kept, ready for images: `model("cat.jpg")` is a `Prediction`."""

    recipe: Recipe
    module: nn.Module
    """The network, in evaluation mode on `device`, with fp32 weights: float32 [N, 3, S, S] of (pixel/255 − mean)/std →
    logits [N, classes]."""
    facts: NetworkFacts
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
        return cls(recipe, network.to(where).eval(), about, augment, where)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of labels."""
        return tuple(self.facts.classes)

    @property
    def image_size(self) -> int:
        """Side in pixels, S, to which images are brought."""
        return self.facts.image_size

    @property
    def temperature(self) -> float | None:
        """Divides logits before softmax; None where probabilities are uncalibrated, for which `facts` has the reason.
        Fitted with the views of `eval.tta`."""
        return None if self.facts.calibration is None else self.facts.calibration.temperature

    @property
    def batch_size(self) -> int:
        """Images of a batch of the test: `eval.batch_size`, or all test images where those are fewer."""
        size = self.recipe.eval.batch_size
        return min(size, self.facts.batch_size or size)

    def say_uncalibrated(self, run: Path) -> None:
        """Report in a line that probabilities are uncalibrated, if they are."""
        if self.temperature is None:
            say(f"{run}: probabilities are {describe(self.facts.calibration)}")

    @overload
    def __call__(self, images: "OneImage", *, views: str | None = None, padded: bool = False) -> Prediction: ...
    @overload
    def __call__(self, images: "Several", *, views: str | None = None, padded: bool = False) -> Predictions: ...
    @overload
    def __call__(self, images: "Pixels", *, views: str | None = None, padded: bool = False) -> Any: ...
    def __call__(
        self, images: "OneImage | Pixels | Several", *, views: str | None = None, padded: bool = False
    ) -> Prediction | Predictions:
        """Classify an image, which gives a `Prediction`, or several, which gives `Predictions`.

        Args:
            images: the path of a JPEG or PNG file, a Pillow image, or uint8 [H, W, 3] or [3, H, W] of any size; or
                several: a list of these, or one array or tensor [N, H, W, 3] or [N, 3, H, W].
            views: test-time augmentation, one of the values of `eval.tta`; by default the one the run was tested with.
            padded: fill up batches to `batch_size` and compile as the test did, for the same bits. Without, batches
                are no larger than that, and run eagerly: no compilation is waited for.

        Every image is prepared as the training images were. Raises UserError for a file that cannot be read or is no
        such image, ValueError for arrays and views of another kind.
        """
        if views is not None and views not in VIEWS:
            raise ValueError(f"views are {views!r}: give one of {', '.join(VIEWS)}")
        options = self.recipe.eval if views is None else self.recipe.eval.model_copy(update={"tta": views})
        pixels = self.prepare(images)
        size = self.batch_size if padded else min(self.batch_size, len(pixels))
        logits = self._logits(pixels, size, options, self._evaluator if padded else self._eager)
        predictions = Predictions(self.classes, logits, self.facts.calibration)
        return predictions[0] if _is_one(images) else predictions

    def prepare(self, images: "OneImage | Pixels | Several") -> Tensor:
        """uint8 [N, S, S, 3] of what a call takes, as a store of training images has it: the largest centred square,
        resized with an antialiased bicubic filter. Of a tensor, on its device; else on the CPU. Raises as a call does.
        """
        if isinstance(images, (Tensor, np.ndarray)):
            return self._prepare_array(images)
        several = images if isinstance(images, (list, tuple)) else (images,)
        return torch.cat([self._none(), *map(self._prepare_one, several)])

    def _none(self) -> Tensor:
        return torch.empty(0, self.image_size, self.image_size, 3, dtype=torch.uint8)

    def _prepare_one(self, image: "OneImage | Pixels") -> Tensor:
        """uint8 [1, S, S, 3]."""
        from PIL import Image

        if isinstance(image, (Tensor, np.ndarray)):
            if image.ndim != 3:
                raise ValueError(f"an image in a list has shape {list(image.shape)}: give [H, W, 3] or [3, H, W]")
            return self._prepare_array(image).cpu()
        if isinstance(image, (str, Path)):
            path = expand_home(image)
            try:
                pixels = decode(read_regular(path, MAX_FILE, "shrink it"), self.image_size)
            except UserError as error:
                raise UserError(str(error) if str(path) in str(error) else f"{path} {error}") from error
        elif isinstance(image, Image.Image):
            pixels = square(to_rgb(image), self.image_size)
        else:
            raise ValueError(f"{type(image).__name__} is no image: give a path, a Pillow image or uint8 pixels")
        return torch.tensor(pixels)[None]

    def _prepare_array(self, images: "Pixels") -> Tensor:
        """uint8 [N, S, S, 3] of an image or a batch."""
        if images.dtype not in (np.uint8, torch.uint8):
            raise ValueError(f"images are {images.dtype}: give uint8, 0 to 255, which are normalised here")
        channels = [axis for axis in (-1, -3) if images.ndim in (3, 4) and images.shape[axis] == 3]
        if not channels or 0 in images.shape[-3:]:
            raise ValueError(f"images have shape {list(images.shape)}: give [N, H, W, 3], [N, 3, H, W] or one of N")
        pixels = shared(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        if channels[0] == -3:
            pixels = pixels.permute(0, 2, 3, 1)
        if not len(pixels):
            return self._none()
        size = self.image_size
        if pixels.shape[1:3] == (size, size):
            return pixels
        from PIL import Image

        resized = [square(Image.fromarray(one), size) for one in pixels.cpu().contiguous().numpy()]
        return torch.from_numpy(np.stack(resized)).to(pixels.device)

    def logits(self, images: Any) -> Tensor:
        """float32 [N, classes] for images uint8 [N, S, S, 3], an array or EncodedImages, compiled and with test-time
        augmentation as in training, so that the same bits come out."""
        # Runs of older versions, which do not say it, were tested in batches of at most all test images.
        size = self.batch_size if self.facts.batch_size else min(self.batch_size, len(images))
        return self._logits(images, size, self.recipe.eval, self._evaluator)

    def predictions(self, images: Any) -> Predictions:
        """`logits` of the same, with the probabilities that follow."""
        return Predictions(self.classes, self.logits(images), self.facts.calibration)

    def _logits(self, images: Any, batch_size: int, options: EvalConfig, evaluator: Evaluator) -> Tensor:
        """float32 [N, classes] on the CPU."""
        if not len(images):
            return torch.empty(0, len(self.classes))
        with left_as_found(self.device.type):
            return evaluator.logits(everything(images, batch_size, self.device), options)

    @cached_property
    def _evaluator(self) -> Evaluator:
        """One for all calls: it compiles the network once."""
        return Evaluator(self.module, self.augment, self.recipe.train, self.device)

    @cached_property
    def _eager(self) -> Evaluator:
        """For batches of any size, each of which would else be compiled and captured."""
        options = self.recipe.train.model_copy(update={"compile": False})
        return Evaluator(self.module, self.augment, options, self.device, capture=False)


def _is_one(images: Any) -> bool:
    """Whether `images`, as a call takes them, are a single one."""
    return images.ndim == 3 if isinstance(images, (Tensor, np.ndarray)) else not isinstance(images, (list, tuple))
