"""Networks, built from a recipe's `model` table."""

from fastres.errors import UserError
from fastres.models.resnet import BasicBlock, ResNet
from fastres.models.summary import Layer, count_parameters, layers
from fastres.recipe import Model

__all__ = ["BasicBlock", "Layer", "ResNet", "build", "count_parameters", "layers"]


def build(model: Model, classes: int, image_size: int) -> ResNet:
    """The network that `model` describes, in fp32 on the CPU, with weights drawn from torch's global generator.

    Raises UserError where the options do not fit the image or exceed `model.max_parameters`.
    """
    network = ResNet(
        model.blocks,
        model.channels,
        model.strides,
        model.kernels,
        model.skip_kernels,
        classes=classes,
        image_size=image_size,
        stem=model.stem,
        pool=model.pool,
        dropout=model.dropout,
        zero_init_residual=model.zero_init_residual,
    )
    parameters = count_parameters(network)
    if model.max_parameters is not None and parameters > model.max_parameters:
        raise UserError(
            f"the model has {parameters:,} trainable parameters, over model.max_parameters = {model.max_parameters:,}: "
            "take fewer blocks or channels, or raise the limit"
        )
    return network
