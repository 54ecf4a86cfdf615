"""Self-training: a trained network labels images, and training starts again with these too.

A round is an ordinary run in `rounds/<number>` of the run directory, round 0 with the labelled images alone; what a
round adds to the next one's training set lies in `rounds/<number>.safetensors`. Finished rounds are picked up, so that
an interrupted run goes on where it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.data import Dataset, open_dataset
from fastres.data.store.extra import unlabelled_part, write
from fastres.errors import Interrupted, UserError
from fastres.evaluation.trained import TrainedModel
from fastres.recipe import ExtraConfig, PseudoLabelConfig, Recipe, SupervisedConfig, TransferConfig
from fastres.runs import checkpoint
from fastres.utils.files import write_bytes, write_json

Train = Callable[[Recipe, Path], dict[str, Any]]
"""Trains a recipe in a folder, or completes what an earlier process began there; returns its summary."""
COPIED = (checkpoint.FINAL, "environment.json", "report.html")
"""Files of the last round's run that are copied to the whole run."""


@dataclass(frozen=True)
class Rounds:
    """The rounds of `recipe`, and the images that they label."""

    recipe: Recipe
    options: PseudoLabelConfig
    unlabelled: Dataset

    @classmethod
    def open(cls, recipe: Recipe, *, quiet: bool = False) -> "Rounds":
        """Raises UserError where there are no images to label."""
        assert isinstance(recipe.method, PseudoLabelConfig)
        if recipe.data.extra is not None:
            raise UserError("method.name = 'pseudo_label' chooses data.extra itself: leave it out")
        source, data = recipe.method.unlabelled, recipe.data
        dataset = open_dataset(source, image_size=data.image_size, root=data.root, quiet=quiet)
        unlabelled_part(dataset)
        return cls(recipe, recipe.method, dataset)

    def execute(self, run: Path, train: Train, say: Callable[[str], None], device: str) -> dict[str, Any]:
        """All rounds that are missing in the folder `run`, then summary.json, in which `rounds` has what each of them
        measured; returns it."""
        rows, stopped = [], "completed"
        for number in range(self.options.rounds + 1):
            say(f"round {number} of {self.options.rounds}")
            folder = run / "rounds" / str(number)
            try:
                summary = train(self.of_round(number, run), folder)
            except Interrupted as error:  # it names the round's folder, which nobody has to know
                raise Interrupted(str(error).replace(str(folder), str(run))) from error
            measured = {name: summary[name] for name in ("test_accuracy", "test_loss", "seconds")}
            rows.append({"round": number, "added": _count(run, number), **measured})
            if number < self.options.rounds and not _labels(run, number + 1).is_file():
                labelled = self._label(run, number, device)
                say(f"{len(labelled):,} of {len(unlabelled_part(self.unlabelled).images):,} images are labelled")
                if not len(labelled):
                    stopped = f"no image had a class of {self.options.threshold:.0%} after round {number}"
                    say(f"{stopped}: lower method.threshold")
                    break
        for name in COPIED:
            if (folder / name).is_file():
                write_bytes(run / name, (folder / name).read_bytes())
        seconds = sum(row["seconds"] for row in rows)
        summary = {**summary, "name": run.name, "stopped": stopped, "rounds": rows, "seconds": seconds}
        write_json(run / "summary.json", summary)  # last: its presence says that the run is complete
        return summary

    def of_round(self, number: int, run: Path) -> Recipe:
        """The recipe of a round: an ordinary run, from the second on with extra images."""
        changes: dict[str, Any] = {"method": SupervisedConfig()}
        if number:
            labels = str(_labels(run, number).absolute())
            extra = ExtraConfig(source=self.options.unlabelled, labels=labels, soft=self.options.soft)
            changes["data"] = self.recipe.data.model_copy(update={"extra": extra})
            if not self.options.restart:
                changes["transfer"] = TransferConfig(weights=str((run / "rounds" / str(number - 1)).absolute()))
        return self.recipe.model_copy(update=changes)

    def _label(self, run: Path, number: int, device: str) -> NDArray[np.int64]:
        """Let the network of round `number` label images for the next one; returns which it chose."""
        model = TrainedModel.load(run / "rounds" / str(number), device)
        probabilities = model.logits(unlabelled_part(self.unlabelled).images).softmax(1)
        rows = choose(probabilities, self.options.threshold, self.options.balance)
        if len(rows):
            write(_labels(run, number + 1), rows, probabilities[torch.from_numpy(rows)])
        return rows


def _labels(run: Path, number: int) -> Path:
    """The additional training images of round `number`."""
    return run / "rounds" / f"{number}.safetensors"


def _count(run: Path, number: int) -> int:
    """Number of these images."""
    from safetensors import safe_open

    if number == 0:
        return 0
    with safe_open(_labels(run, number), framework="pt") as file:
        return len(file.get_tensor("rows"))


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
