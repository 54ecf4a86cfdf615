"""Networks, built from a recipe's `model` table.

To add a family: write its table in recipe/networks.py, and in a module of this package a `Network` that is registered
for it. All modules of the package are imported, so that there is no list of them.
"""

import importlib
import pkgutil

from fastres.errors import UserError
from fastres.models.network import FAMILIES, Network
from fastres.models.resnet import BasicBlock, ResNet
from fastres.models.speednet import Speednet
from fastres.models.summary import Layer, count_parameters, layers
from fastres.recipe.networks import NetworkConfig

__all__ = ["BasicBlock", "Layer", "Network", "ResNet", "Speednet", "build", "count_parameters", "layers"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

_NOT_ARGUMENTS = {"name", "preset", "max_parameters"}
"""Keys of the table that are not the network's: every other one is an argument of its class."""


def build(model: NetworkConfig, classes: int, image_size: int) -> Network:
    """The network that `model` describes, in fp32 on the CPU, with weights drawn from torch's global generator.

    Raises UserError where the options do not fit the image or exceed `model.max_parameters`, LookupError where no
    family is registered for the table.
    """
    family = FAMILIES[type(model)]
    network = family(**model.model_dump(exclude=_NOT_ARGUMENTS), classes=classes, image_size=image_size)
    parameters = count_parameters(network)
    if model.max_parameters is not None and parameters > model.max_parameters:
        raise UserError(
            f"the model has {parameters:,} trainable parameters, over model.max_parameters = {model.max_parameters:,}: "
            "take fewer blocks, groups or channels, or raise the limit"
        )
    return network
