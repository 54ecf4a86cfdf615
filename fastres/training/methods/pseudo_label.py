"""Self-training: a trained network labels images, and training starts again with these too.

A round is an ordinary run in `rounds/<number>` of the run directory, round 0 with the labelled images alone; what a
round adds to the next one's training set lies in `rounds/<number>.safetensors`. Finished rounds are picked up, so that
an interrupted run goes on where it was.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.data import Dataset, open_dataset
from fastres.data.store.extra import read_labels, unlabelled_part, write
from fastres.errors import UserError
from fastres.evaluation.trained import TrainedModel
from fastres.recipe import ExtraConfig, PseudoLabelConfig, Recipe, SupervisedConfig, TransferConfig
from fastres.runs import checkpoint
from fastres.runs.schema import SUMMARY, Round, Summary
from fastres.training.methods.base import Job, Method, Trainer
from fastres.utils.files import write_bytes

COPIED = (checkpoint.FINAL, "environment.json", "report.html")
"""Files of the last round's run that are copied to the whole run."""


class PseudoLabel(Method[PseudoLabelConfig]):
    """The method: several runs, each of which learns from labels alone."""

    def runs(self, recipe: Recipe, trainer: Trainer, *, begun: bool) -> Job:
        if recipe.data.extra is not None:
            raise UserError("method.name = 'pseudo_label' chooses data.extra itself: leave it out")
        data = recipe.data
        dataset = open_dataset(self.config.unlabelled, image_size=data.image_size, root=data.root, quiet=trainer.quiet)
        unlabelled_part(dataset)
        return Rounds(recipe, self.config, dataset, trainer)


@dataclass(frozen=True)
class Rounds:
    """The rounds of `recipe`, and the images that they label."""

    recipe: Recipe
    config: PseudoLabelConfig
    unlabelled: Dataset
    trainer: Trainer

    def execute(self, run: Path) -> Summary:
        """All rounds that are missing in the folder `run`, then summary.json, with what each measured; returns it."""
        try:
            return self._execute(run)
        except UserError:
            if not (run / "rounds").exists():  # the first round could not even begin: leave nothing behind
                shutil.rmtree(run)
            raise

    def _execute(self, run: Path) -> Summary:
        rounds, stopped, say = [], "completed", self.trainer.say
        for number in range(self.config.rounds + 1):
            say(f"round {number} of {self.config.rounds}")
            folder = run / "rounds" / str(number)
            summary = self.trainer.inside(self.of_round(number, run), folder, run)
            rounds.append(Round.of(summary, round=number, added=_count(run, number)))
            if number < self.config.rounds and not _labels(run, number + 1).is_file():
                labelled = self._label(run, number)
                say(f"{len(labelled):,} of {len(unlabelled_part(self.unlabelled).images):,} images are labelled")
                if not len(labelled):
                    stopped = f"no image had a class of {self.config.threshold:.0%} after round {number}"
                    say(f"{stopped}: lower method.threshold")
                    break
        for name in COPIED:
            if (folder / name).is_file():
                write_bytes(run / name, (folder / name).read_bytes())
        seconds = sum(one.seconds or 0.0 for one in rounds)
        summary = summary.updated(name=run.name, stopped=stopped, rounds=tuple(rounds), seconds=seconds)
        summary.write(run / SUMMARY)  # last: its presence says that the run is complete
        return summary

    def of_round(self, number: int, run: Path) -> Recipe:
        """The recipe of a round: an ordinary run, from the second on with extra images."""
        recipe = self.recipe.model_copy(update={"method": SupervisedConfig()})
        if not number:
            return recipe
        labels = str(_labels(run, number).absolute())
        extra = ExtraConfig(source=self.config.unlabelled, labels=labels, soft=self.config.soft)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"extra": extra})})
        if self.config.restart:
            return recipe
        weights = str((run / "rounds" / str(number - 1)).absolute())
        return recipe.model_copy(update={"transfer": TransferConfig(weights=weights)})

    def _label(self, run: Path, number: int) -> NDArray[np.int64]:
        """Let the network of round `number` label images for the next one; returns which it chose."""
        model = TrainedModel.load(run / "rounds" / str(number), self.trainer.device)
        probabilities = model.logits(unlabelled_part(self.unlabelled).images).softmax(1)
        rows = choose(probabilities, self.config.threshold, self.config.balance)
        if len(rows):
            write(_labels(run, number + 1), rows, probabilities[torch.from_numpy(rows)])
        return rows


def _labels(run: Path, number: int) -> Path:
    """The additional training images of round `number`."""
    return run / "rounds" / f"{number}.safetensors"


def _count(run: Path, number: int) -> int:
    return len(read_labels(_labels(run, number))[0]) if number else 0


def choose(probabilities: Tensor, threshold: float, balance: bool) -> NDArray[np.int64]:
    """Images to label: rows of `probabilities`, fp32 [N, classes], int64, ascending.

    Those whose most probable class has at least `threshold`; with `balance`, of each class that is predicted for any of
    them the surest, as many as the rarest such class has.
    """
    confidence, predicted = probabilities.max(1)
    sure = confidence >= threshold
    if balance and sure.any():
        counts = torch.bincount(predicted[sure], minlength=probabilities.shape[1])
        each = int(counts[counts > 0].min())
        order = confidence.argsort(descending=True, stable=True)
        order = order[sure[order]]
        taken = [order[predicted[order] == label][:each] for label in range(probabilities.shape[1])]
        return torch.cat(taken).sort().values.numpy()
    return sure.nonzero().squeeze(1).numpy()
