"""How the runs of a recipe start: the process, and the network with its first weights."""

import os

import torch

from fastres.data import Dataset
from fastres.memory import keep_freed_memory
from fastres.models import Network, build
from fastres.recipe import Recipe


def prepare_process(recipe: Recipe, device: torch.device) -> None:
    """Settings of the whole process, before anything is computed."""
    if device.type == "cpu":
        keep_freed_memory()
    if recipe.train.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats bits only with its own buffers
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def draw(recipe: Recipe, dataset: Dataset, seed: int) -> Network:
    """The network with weights drawn by `seed`, on the CPU; `initialise` has yet to see images. Sets torch's global
    generator. Raises UserError as `models.build` does."""
    torch.manual_seed(seed)
    return build(recipe.model, len(dataset.classes), dataset.image_size)


def place(network: Network, recipe: Recipe, device: torch.device) -> Network:
    """The network on `device`, in the memory layout of training."""
    if recipe.train.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.to(device)
