"""Checkpoints: an atomic save, an exact restore, nothing executable inside."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastres.errors import UserError
from fastres.utils.files import write_bytes

LAST, BEST, FINAL = "checkpoints/last.pt", "checkpoints/best.safetensors", "checkpoints/final.safetensors"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) so that `path` holds the old or the new checkpoint, never half of one.

    Serialised in memory first: torch.save to a file on a full disk ends in an error of its own that hides the disk's.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU. Raises UserError where the file is damaged or holds anything but data."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError("a checkpoint is a dictionary")
        return state
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the folder of a run that has saved a checkpoint") from None
    except Exception as error:
        raise UserError(f"{path} is not a checkpoint of fastres, or damaged: delete it and train again") from error


def save_weights(path: Path, network: nn.Module, about: dict[str, Any]) -> None:
    """Write the weights of `network` as safetensors, with `about` (JSON) as metadata."""
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(path, to_bytes(tensors, metadata={"fastres": json.dumps(about)}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote: a state_dict and `about`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names: list[str] = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["fastres"])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the folder of a finished run") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a network of fastres, or damaged: train again") from error
