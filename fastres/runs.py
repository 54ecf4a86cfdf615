"""Run directories: making one, and reading the network that one kept."""

import datetime
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastres import checkpoint
from fastres.augment import Augment
from fastres.engine.device import choose_device
from fastres.engine.precision import DTYPES
from fastres.errors import UserError, disk_errors_are_the_users
from fastres.models import build
from fastres.recipe import Recipe
from fastres.utils.files import write_text

if TYPE_CHECKING:
    from fastres.evaluate import Evaluator

PLAN = "sweep.toml"
"""The recipe of a sweep, in the folder of its runs; its presence says that a folder is one of ours."""


def create(out: str | Path | None, name: str, recipe: Recipe) -> Path:
    """A new run directory that holds the resolved recipe: `out`, or runs/<name>-<time>.

    Raises UserError where something is in the way or nothing can be written; no folder is left behind then.
    """
    run = new_folder(out, name)
    try:
        write_text(run / "recipe.toml", recipe.to_toml())
    except UserError:
        run.rmdir()
        raise
    return run


def check_free(out: str | Path | None) -> None:
    """Raise UserError where `out` holds something already: before any work, not after it."""
    if out is None or not Path(out).exists() or (Path(out).is_dir() and not any(Path(out).iterdir())):
        return
    resume = f", or go on with --resume {out}" if (Path(out) / "recipe.toml").is_file() else ""
    raise UserError(f"{out} exists and is not an empty folder: give another --out{resume}")


def new_folder(out: str | Path | None, name: str) -> Path:
    """`out`, or runs/<name>-<time>, empty. Raises UserError where something is in the way or cannot be written."""
    check_free(out)
    stem = Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    candidates = [Path(out)] if out is not None else [stem, *(Path(f"{stem}-{number}") for number in range(2, 100))]
    for run in candidates:
        with disk_errors_are_the_users(run), suppress(FileExistsError):
            run.mkdir(parents=True, exist_ok=out is not None)
            return run
    raise UserError(f"{stem} exists already, and so do its next names: give --out")


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Keep other processes from training `run` meanwhile; the claim ends with the process, however that ends.

    Clears away the temporary files of a killed process. Raises UserError where another process has the claim.
    """
    with disk_errors_are_the_users(run):
        file = (run / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training {run}: wait for it, or stop it first") from None
        for leftover in run.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield


def read_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run. Raises UserError where `run` is none."""
    if not (run / "recipe.toml").is_file():
        raise UserError(f"{run} is not a run directory: it has no recipe.toml; give a folder that `fastres train` made")
    return Recipe.load(run / "recipe.toml")


@dataclass(frozen=True)
class Kept:
    """The network that a finished run kept, ready for images."""

    recipe: Recipe
    network: nn.Module
    classes: tuple[str, ...]
    image_size: int
    augment: Augment
    device: torch.device

    @classmethod
    def load(cls, run: Path, device: str = "auto") -> "Kept":
        """Read checkpoints/final.safetensors. Raises UserError where the run has none yet."""
        recipe, where = read_recipe(run), choose_device(device)
        path = run / checkpoint.FINAL
        if not path.is_file():
            raise UserError(f"{run} is not finished: complete it with `fastres train --resume {run}`")
        weights, about = checkpoint.load_weights(path)
        try:
            network = build(recipe.model, len(about["classes"]), about["image_size"])
            network.load_state_dict(weights)
        except (RuntimeError, KeyError, TypeError) as error:
            raise UserError(f"{path} does not fit {run}/recipe.toml: one of them was changed") from error
        if recipe.train.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        augment = Augment(
            recipe.augment,
            about["mean"],
            about["std"],
            dtype=DTYPES[recipe.train.precision],
            channels_last=recipe.train.channels_last,
        )
        return cls(recipe, network.to(where).eval(), tuple(about["classes"]), about["image_size"], augment, where)

    def logits(self, images: Any) -> Tensor:
        """float32 [N, classes] for images uint8 [N, H, W, 3], an array or EncodedImages, compiled and with test-time
        augmentation as in training, so that the same bits come out."""
        from fastres.evaluate import everything

        options = self.recipe.eval
        return self._evaluator.logits(everything(images, options.batch_size, self.device), options)

    @cached_property
    def _evaluator(self) -> "Evaluator":
        """One for all calls: it compiles the network once."""
        from fastres.evaluate import Evaluator

        return Evaluator(
            self.network, self.augment, self.recipe.train.precision, self.device, compile=self.recipe.train.compile
        )
