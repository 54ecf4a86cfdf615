"""Time that the device waits for each loader, while the report's network trains on what it delivers.

One compiled step serves all loaders, in the loop of `fastres train`; each goes through one epoch to warm up and one
that counts, at batch 512 with the report's augmentation. A recipe's tables need pydantic.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fastres.augment import Augment
from fastres.bench.timing import wait
from fastres.data import open_dataset
from fastres.data.loaders import choose, make_loader
from fastres.engine.cuda_graph import side_stream
from fastres.engine.precision import DTYPES
from fastres.recipe import Recipe
from fastres.training import session
from fastres.training.epoch import Runner
from fastres.training.metrics import EpochMetrics, StallMeter
from fastres.training.step import Step

RECIPE = Path(__file__).parents[2] / "recipes" / "report_best.toml"
_DRY = ["model.channels=[16,16,16,16]", "train.batch_size=16", "train.compile=false", "train.precision=fp32"]


def stalls(device: torch.device, source: str, root: str, *, dry: bool = False) -> Iterator[dict[str, Any]]:
    """For each loader a record for JSON: images a second, the share of the time that the device waited, or why not.

    Images are those of `source`, prepared in the folder `root`. Raises UserError where they cannot be read."""
    recipe = Recipe.load(RECIPE, _DRY if dry else ["train.batch_size=512"])
    dataset = open_dataset(source, root=root, quiet=True)
    assert dataset.train is not None
    rows = np.arange(64 if dry else len(dataset.train.images))
    network = session.draw(recipe, len(dataset.classes), dataset.image_size, seed=0)
    batch = recipe.train.batch_size
    step = Step(session.move_network(network, recipe, device), recipe, len(rows) // batch, device)
    augment = Augment(recipe.augment, dataset.mean, dataset.std, dtype=DTYPES[recipe.train.precision])
    for kind in choose.KINDS:
        if not choose.installed(kind):
            yield {"loader": kind, "missing": f"not installed: pip install 'fastres[{kind}]'"}
            continue
        meter = StallMeter(device)
        how: Any = {"seed": 0, "drop_last": True, "device": device}
        loading = make_loader(dataset, loader=kind, batch_size=batch, subset=rows, **how)
        with loading as loader, side_stream(device):
            data_module: Any = SimpleNamespace(train=loader, augment=augment, augment_batch=augment.augment)
            runner = Runner(step, data_module, EpochMetrics(device), meter)
            _epoch(runner, meter, 0)
            seconds, waited = _epoch(runner, meter, 1)
            images = len(loader) * batch
        yield {
            "loader": kind,
            "source": dataset.name,
            "images_per_second": images / seconds,
            "input_stall": waited / seconds,
            "captured": runner.captured,
        }


def _epoch(runner: Runner, meter: StallMeter, epoch: int) -> tuple[float, float]:
    """Seconds of an epoch, and those of them in which the device waited."""
    device = runner.step.device
    wait(device)
    began = time.perf_counter()
    for _ in runner.epoch(epoch, 0, len(runner.data_module.train)):
        pass
    wait(device)
    return time.perf_counter() - began, meter.read()
