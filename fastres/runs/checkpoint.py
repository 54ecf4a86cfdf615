"""Checkpoints: an atomic save, an exact restore, nothing executable inside, and no damage that goes unnoticed."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastres.errors import UserError
from fastres.runs.schema import NetworkFacts
from fastres.utils import tensor_files
from fastres.utils.progress import say

LAST, BEST, FINAL = "checkpoints/last.pt", "checkpoints/best.safetensors", "checkpoints/final.safetensors"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) so that `path` holds the old or the new one, never half of one."""
    tensor_files.write_archive(path, state)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU.

    A file of an older version, which has no CRC-32, is read, and that is said. Raises UserError where the file is
    damaged, holds anything but data, or numbers that are not finite.
    """
    try:
        state, summed = tensor_files.read_archive(path)
        if not isinstance(state, dict):
            raise tensor_files.Damaged("it holds no dictionary")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the folder of a run that has saved a checkpoint") from None
    except Exception as error:
        what = f"{path} is not a checkpoint of fastres, or damaged{_detail(error)}"
        raise UserError(f"{what}: delete it and train again") from error
    if not summed:
        say_unchecked(path, "only its archive's own checksums were compared")
    return state


def save_weights(path: Path, network: nn.Module, about: NetworkFacts) -> None:
    """Write the weights of `network` as safetensors, with `about` as metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    tensor_files.write_tensors(path, tensors, about.to_json())


def load_weights(path: Path) -> tuple[dict[str, Tensor], NetworkFacts]:
    """Read what `save_weights` wrote: a state_dict, whose tensors are views of the file, and `about`.

    A file without a CRC-32 is read, and that is said. Raises UserError where it is damaged, or weights are not finite.
    """
    from safetensors import SafetensorError

    try:
        weights, text, summed = tensor_files.read_tensors(path)
        if text is None:
            raise tensor_files.Damaged("it has no metadata of fastres")
        about = NetworkFacts.parse(text, path, "train again")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the folder of a finished run") from None
    except (SafetensorError, tensor_files.Damaged, OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a network of fastres, or damaged{_detail(error)}: train again") from error
    if not summed:
        say_unchecked(path)
    return weights, about


def _detail(error: Exception) -> str:
    """What our own readers found; other people's errors say nothing to a user."""
    return f" ({error})" if isinstance(error, tensor_files.Damaged) else ""


def say_unchecked(path: Path, what: str = "whether it was changed cannot be told") -> None:
    """Say that a file is read although it has no CRC-32."""
    say(f"{path} is of an older version of fastres and has no CRC-32 of the whole: {what}")
