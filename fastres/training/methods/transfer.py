"""Transfer learning: weights from elsewhere, some of them frozen or trained at rates of their own."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn

from fastres.errors import UserError
from fastres.models import Network
from fastres.recipe import TransferConfig
from fastres.runs import checkpoint
from fastres.utils.tensor_files import Damaged, read_foreign, read_tensors

SUFFIXES = (".safetensors", ".pt", ".pth")


def start_from(network: Network, options: TransferConfig) -> None:
    """Give `network` the weights that `options.weights` names, and freeze what `options.freeze` does.

    The classifier keeps its drawn weights where it has another number of classes. Raises UserError where anything else
    is missing, unknown or of another shape, and for patterns that no parameter fits.
    """
    weights, path = read_weights(options.weights), options.weights
    own = network.state_dict()
    head = [name for name in own if name.startswith(f"{network.head}.")]
    if any(name not in weights or weights[name].shape != own[name].shape for name in head):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{network.head}.")}
    # Checkpoints from before torch 0.4.1 have no such counters; they matter only without a momentum.
    optional = {*head, *(name for name in own if name.endswith("num_batches_tracked"))}
    for name, tensor in own.items():
        if name not in weights:
            if name not in optional:
                raise UserError(f"{path} has no {name}: give the [model] table the shape of the network that it is of")
        elif weights[name].shape != tensor.shape:
            shapes = f"{list(weights[name].shape)} there, {list(tensor.shape)} here"
            raise UserError(f"{path} does not fit the [model] table: {name} is {shapes}")
    if unknown := sorted(weights.keys() - own.keys()):
        raise UserError(f"{path} does not fit the [model] table, which makes no {unknown[0]}")
    network.load_state_dict(weights, strict=False)
    for parameter in (parameter for _, parameter in matching(network, options.freeze, "transfer.freeze")):
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("transfer.freeze leaves nothing to train: narrow its patterns")


def rate_factors(network: nn.Module, options: TransferConfig | None) -> dict[nn.Parameter, float]:
    """The factors on the learning rate that are not 1. Raises UserError for a pattern that no parameter fits."""
    factors: dict[nn.Parameter, float] = {}
    for pattern, factor in ({} if options is None else options.lr_factors).items():
        for _, parameter in matching(network, [pattern], "transfer.lr_factors"):
            factors.setdefault(parameter, factor)
    return factors


def frozen_norms(network: nn.Module) -> list[nn.Module]:
    """The BNs none of whose parameters is trained, though they have some: their statistics stay as well.

    A BN without a trained scale (`model.bn_scale = false`) still has its bias.
    """
    norms = [(module, [*module.parameters()]) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return [norm for norm, owned in norms if owned and not any(parameter.requires_grad for parameter in owned)]


def matching(network: nn.Module, patterns: list[str], key: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that fit any of `patterns`. Raises UserError, naming `key`, for one that fits none."""
    named = dict(network.named_parameters())
    for pattern in patterns:
        fitting = [name for name in named if fnmatchcase(name, pattern)]
        if not fitting:
            raise UserError(f"{key}: no parameter fits '{pattern}'; they have names like {', '.join(list(named)[:3])}")
        yield from ((name, named[name]) for name in fitting)


def read_weights(source: str) -> dict[str, Tensor]:
    """The `state_dict` of a run's kept network or of a file, on the CPU. Raises UserError where there is none."""
    path = Path(source)
    if path.is_dir():
        path = path / checkpoint.FINAL
    if not path.is_file():
        raise UserError(f"transfer.weights: {path} does not exist; give the folder of a finished run, or a file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"transfer.weights: {path} is none of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            tensors, about, summed = read_tensors(path)
            if about is not None and not summed:
                checkpoint.say_unchecked(path)
            return tensors
        content = read_foreign(path)
        while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):  # a checkpoint around it
            content = content["state_dict"]
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise TypeError("not a state_dict")
        return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    except Exception as error:  # whatever a file that is none of these makes its reader raise
        detail = f" ({error})" if isinstance(error, Damaged) else ""
        raise UserError(f"transfer.weights: {path} holds no state_dict, or is damaged{detail}") from error
