"""Figures of a whole run."""

import torch

from fastres.runs.schema import Epoch


def input_stall(rows: list[Epoch]) -> float | None:
    """Share of the time of all training steps in which the device waited for data, from the rows of metrics.jsonl."""
    measured = [
        (row.input_stall * row.seconds, row.seconds) for row in rows if row.input_stall is not None and row.seconds
    ]
    return sum(waited for waited, _ in measured) / sum(seconds for _, seconds in measured) if measured else None


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held, in bytes: of the GPU on CUDA, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
