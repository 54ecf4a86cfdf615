"""What every entry point of the augmentation demands of its arguments, in training, evaluation and mixing alike.

Raises ValueError, IndexError for rows that are not there. On a GPU dtypes, shapes and devices are looked at and values
are not, for which the host would have to wait; nor are they while torch.compile traces: its code looks when it runs.
"""

import operator
from typing import Any

import torch
from torch import Tensor

LIMIT = 2**32
"""Seeds, indices, epochs and steps are words of a Philox counter."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of the batches that come out."""
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def whole_number(name: str, value: Any) -> int:
    """`value`, which may be a tensor of one integer, as an int from 0 to 2³² - 1."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = -1
    if not 0 <= number < LIMIT:
        raise ValueError(f"{name} must be a whole number from 0 to 2³² - 1, not {_described(value)}")
    return number


def check_counter(name: str, value: Any, device: torch.device) -> Any:
    """An epoch or step as code on `device` takes it: a number, or on a GPU a tensor of one integer there."""
    if device.type == "cpu" or not isinstance(value, Tensor):
        return whole_number(name, value)
    if value.dtype not in _INTEGERS or value.numel() != 1 or value.device != device:
        raise ValueError(f"{name} must be a whole number or a tensor of one on {device}, not {_described(value)}")
    return value


def check_batch(images: Any, rows: Any = None, **parts: Any) -> None:
    """Look at uint8 [M, H, W, 3], `rows`, integers [B] (None: all M), and `parts`: indices and labels, integers [B]."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [M, H, W, 3], 0 to 255, not {_described(images)}")
    if images.device.type not in ("cpu", "cuda"):
        raise ValueError(f"images must be on a CPU or a CUDA device, not on {images.device}")
    if rows is not None:
        _check_vector("rows", rows, None, images.device)
        if not _within(rows, len(images)):
            raise IndexError(f"rows must be within the {len(images)} images")  # compiled code would read elsewhere
    for name, values in parts.items():
        _check_vector(name, values, len(images if rows is None else rows), images.device)
    if "indices" in parts:
        check_indices(parts["indices"])


def check_indices(indices: Tensor) -> None:
    """Look at dataset indices, whole numbers from 0 to 2³² - 1."""
    if not _within(indices, LIMIT):
        raise ValueError("indices must be positions in a data set, from 0 to 2³² - 1")


def check_mixable(batch: Any, labels: Any) -> None:
    """Look at a float batch [B, C, H, W] and its labels, integers [B]."""
    if not isinstance(batch, Tensor) or batch.dtype not in DTYPES or batch.dim() != 4:
        raise ValueError(f"batch must be float32, float16 or bfloat16 [B, C, H, W], not {_described(batch)}")
    _check_vector("labels", labels, len(batch), batch.device)


def _check_vector(name: str, values: Any, count: int | None, device: torch.device) -> None:
    if not isinstance(values, Tensor) or values.dtype not in _INTEGERS or values.dim() != 1:
        raise ValueError(f"{name} must be a tensor of integers [B], not {_described(values)}")
    if values.device != device:
        raise ValueError(f"{name} are on {values.device}, the images on {device}: bring them together")
    if count is not None and len(values) != count:
        raise ValueError(f"{len(values)} {name} for {count} images")


def _within(values: Tensor, limit: int) -> bool:
    """Whether all are from 0 to below `limit`, as far as that can be known here and now."""
    if values.is_cuda or torch.compiler.is_compiling() or not len(values):
        return True
    least, most = values.aminmax()
    return int(least) >= 0 and int(most) < limit


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        text = f"{value.dtype} {list(value.shape)}"
        return text if value.numel() != 1 or value.is_cuda else f"{text} of {value.item()}"
    return f"{value!r:.40}" if isinstance(value, (int, float, str)) else type(value).__name__
