"""The device of a run."""

import torch

from fastres.errors import UserError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises UserError for `cuda` without one and for unknown names."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"there is no device '{name}': choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch finds no CUDA device here; `fastres doctor` says more")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
