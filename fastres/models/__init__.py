"""Networks, built from a recipe's `model` table.

To add a family: write its table in recipe/networks.py, and in a module of this package a `Network` that is registered
for it. All modules of the package are imported, so that there is no list of them.
"""

import functools
import importlib
import json
import pkgutil

import torch

from fastres.errors import UserError
from fastres.models.network import FAMILIES, Network
from fastres.models.resnet import BasicBlock, ResNet
from fastres.models.speednet import Speednet
from fastres.models.summary import Layer, count_parameters, layers
from fastres.recipe.networks import NetworkConfig

__all__ = ["BasicBlock", "Layer", "Network", "ResNet", "Speednet", "build", "count_parameters", "layers"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

MOST_PARAMETERS = 10**9
"""4 GB of weights, and as much again for each of gradients, momentum and averages."""
_NOT_ARGUMENTS = {"name", "preset", "max_parameters"}
"""Keys of the table that are not the network's: every other one is an argument of its class."""


def build(model: NetworkConfig, classes: int, image_size: int) -> Network:
    """The network that `model` describes, in fp32 on the CPU, with weights drawn from torch's global generator.

    Raises UserError where the options do not fit the image, exceed `model.max_parameters`, or make more than
    `MOST_PARAMETERS`; LookupError where no family is registered for the table.
    """
    options = model.model_dump(exclude=_NOT_ARGUMENTS)
    total = _parameters(type(model), json.dumps(options), classes, image_size)
    if total > MOST_PARAMETERS:
        raise UserError(
            f"the model has {total:,} parameters, and fastres builds at most {MOST_PARAMETERS:,}: "
            "take fewer blocks, groups or channels"
        )
    network = FAMILIES[type(model)](**options, classes=classes, image_size=image_size)
    parameters = count_parameters(network)
    if model.max_parameters is not None and parameters > model.max_parameters:
        raise UserError(
            f"the model has {parameters:,} trainable parameters, over model.max_parameters = {model.max_parameters:,}: "
            "take fewer blocks, groups or channels, or raise the limit"
        )
    return network


@functools.lru_cache(maxsize=16)
def _parameters(kind: type[NetworkConfig], options: str, classes: int, image_size: int) -> int:
    """How many there are, trained or not, without drawing them: terabytes would leave no memory. 15 ms, once."""
    with torch.device("meta"):
        network = FAMILIES[kind](**json.loads(options), classes=classes, image_size=image_size)
    return sum(parameter.numel() for parameter in network.parameters())
