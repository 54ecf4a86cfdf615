"""Start of the runs of a recipe: the process, the network with its first weights, and all that trains and tests it."""

import os
import time
from contextlib import nullcontext
from typing import Any

import torch

from fastres.engine.compile_cache import imports_beside
from fastres.engine.memory import keep_freed_memory
from fastres.errors import UserError
from fastres.evaluation.evaluator import Evaluator
from fastres.models import Layer, Network, build, count_parameters, layers
from fastres.recipe import Recipe
from fastres.training.data import open_data_module
from fastres.training.epoch import Runner
from fastres.training.methods.base import Method
from fastres.training.methods.registry import method_of
from fastres.training.methods.transfer import start_from
from fastres.training.metrics import EpochMetrics, StallMeter
from fastres.training.step import Step


def prepare_process(recipe: Recipe, device: torch.device) -> None:
    """Settings of the whole process, before anything is computed."""
    if device.type == "cpu":
        keep_freed_memory()
    if recipe.train.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats bits only with its own buffers
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def draw(recipe: Recipe, classes: int, image_size: int, seed: int) -> Network:
    """The network with weights drawn by `seed`, on the CPU; `initialise` has yet to see images. Sets torch's global
    generator. Raises UserError as `models.build` does."""
    torch.manual_seed(seed)
    return build(recipe.model, classes, image_size)


def move_network(network: Network, recipe: Recipe, device: torch.device) -> Network:
    """The network on `device`, in the memory layout of training."""
    if recipe.train.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.to(device)


class Session:
    """Data, network and compiled code of a process that trains `recipe`, once or often, by `method` or its own.

    Raises UserError where the recipe, its data or the machine do not allow it.
    """

    def __init__(self, recipe: Recipe, device: torch.device, *, quiet: bool, method: Method[Any] | None = None) -> None:
        prepare_process(recipe, device)
        self.recipe, self.device, self.quiet = recipe, device, quiet
        self.method = method or method_of(recipe.method)
        self.data_module = open_data_module(recipe, device, quiet=quiet, make_views=self.method.views)
        self.opened = time.perf_counter()
        """When the data was open, by that clock."""
        network = self.draw(recipe.train.seed)
        self.layers, self.parameters = layers(network, self.data_module.dataset.image_size), count_parameters(network)
        self.multiply_adds = sum(layer.multiply_adds for layer in self.layers)
        check_statistics(self.layers, recipe, len(self.data_module.train.subset))
        loads = recipe.train.compile and device.type == "cpu" and network.initial_images > 0
        with imports_beside() if loads else nullcontext():
            self.initialise(network)
        self.method.prepare(self.data_module, device)
        trained = move_network(self.method.network(network, self.data_module.dataset.image_size), recipe, device)
        steps, targets = len(self.data_module.train), self.data_module.targets
        self.step = Step(trained, recipe, steps, device, self.method, targets)
        self.epoch_metrics, self.stall = EpochMetrics(device), StallMeter(device)
        self.runner = Runner(self.step, self.data_module, self.epoch_metrics, self.stall)
        self.evaluator = Evaluator(self.step.averaged, self.data_module.augment, recipe.train, device)

    def initialise(self, network: Network) -> None:
        """Turn drawn weights into those of the first step: what is computed from images or comes from elsewhere."""
        network.initialise(self.data_module.sample(network.initial_images))
        if self.recipe.transfer is not None:
            start_from(network, self.recipe.transfer)

    def draw(self, seed: int) -> Network:
        """`draw`, for this data."""
        dataset = self.data_module.dataset
        return draw(self.recipe, len(dataset.classes), dataset.image_size, seed)


def check_statistics(network_layers: list[Layer], recipe: Recipe, images: int) -> None:
    """Raise UserError where a batch would give BN a single value a channel, which has no variance: now, not at the end
    of the first epoch. `images` are those of an epoch."""
    options = recipe.train
    smallest = min((layer.output[-1] for layer in network_layers if layer.kind == "BN"), default=0)
    rest = 0 if options.drop_last else images % options.batch_size
    if smallest == 1 and 1 in (options.batch_size, rest):
        raise UserError(
            f"a batch of one image meets a BN of 1×1 maps, which has no variance ({images} images in batches of "
            f"{options.batch_size}): set train.drop_last = true or another train.batch_size"
        )
