"""What a training changes of the process that it runs in, and puts back."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastres.engine.device import choose_device
from fastres.utils.variables import kept_variables

_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_CACHE_DIR", "WANDB_ERROR_REPORTING")


@contextmanager
def left_as_found(device: str) -> Iterator[None]:
    """Give back when the block ends, so that the caller's own work goes on as if there had been none: torch's
    generators, on `device` too, whether torch is held to deterministic algorithms, the environment variables that were
    set for libraries, and a thread of tqdm's that TorchInductor starts. Raises UserError for a device there is none of.

    Memory is kept: see `keep_freed_memory`.
    """
    cuda = torch.cuda.is_initialized() or choose_device(device).type == "cuda"
    strict, benchmark = _strictness(), torch.backends.cudnn.benchmark
    monitor = _tqdm_monitor()
    devices = range(torch.cuda.device_count()) if cuda else []
    with kept_variables(*_VARIABLES), torch.random.fork_rng(devices, device_type="cuda"):
        try:
            yield
        finally:
            if _strictness() != strict:  # setting it imports TorchInductor
                torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
            if torch.backends.cudnn.benchmark != benchmark:  # torch.testing's utilities forbid setting it
                torch.backends.cudnn.benchmark = benchmark
            started = _tqdm_monitor()
            if started is not None and started is not monitor and not started.get_instances():
                started.exit()
                started.tqdm_cls.monitor = monitor


def _strictness() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _tqdm_monitor() -> Any:
    """The thread that watches tqdm's bars, if anything here has drawn one."""
    bars = sys.modules.get("tqdm.std")
    return None if bars is None else bars.tqdm.monitor
