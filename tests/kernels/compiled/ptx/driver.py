"""Triton's CUDA driver without a device: kernels are compiled as on a GPU, and what would be launched is handed over.

`emulated` makes it Triton's driver for a while. Its devices have numbers that no real one has, so that kernels that
were built for a real GPU in the same process stay apart from these.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver as runtime

NUMBERS = 1000
"""The device of compute capability 9.0 has the number 1090."""


@dataclass(frozen=True)
class Launch:
    """A kernel and its arguments, as they would go to a GPU."""

    kernel: str
    ptx: str
    grid: tuple[int, int, int]
    shared: int
    """Bytes of shared memory a block."""
    cooperative: bool
    arguments: dict[str, Any]
    """What was no constant, in the order of the kernel's parameters: tensors, int, float."""


class _Utils:
    """What Triton asks a driver while it loads a kernel; the figures are an H200's."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448, "multiprocessor_count": 132, "max_num_regs": 65_536, "warpSize": 32}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[None, bytes, int, int, int]:
        """Module, function, registers, spills, most threads of a block."""
        return None, kernel, 0, 0, 1024

    def unload_module(self, module: None) -> None:
        """Nothing was loaded."""


class _Driver:
    """The part of Triton's driver interface that compiling and launching use."""

    utils = _Utils()

    def __init__(self, capability: int, receive: Callable[[Launch], None]) -> None:
        self.capability, self.receive = capability, receive

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What a kernel is launched by from now on, under whichever driver is active then."""
        names, types = source.fn.arg_names, source.signature

        def launch(x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
            # packed metadata, launch metadata and two hooks stand before the arguments
            values = dict(zip(names, rest[4:], strict=True))
            arguments = {name: values[name] for name in names if types[name] != "constexpr"}
            active = runtime.active
            compiled = source.fn.device_caches[active.get_current_device()][0].values()
            text = next(kernel.asm["ptx"] for kernel in compiled if kernel.metadata.hash == metadata.hash)
            cooperative = bool(metadata.launch_cooperative_grid)
            active.receive(Launch(metadata.name, text, (x, y, z), metadata.shared, cooperative, arguments))

        return launch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return NUMBERS + self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


@contextmanager
def emulated(receive: Callable[[Launch], None], capability: int = 90) -> Iterator[None]:
    """Compile for a GPU of a compute capability, 90 for 9.0, and call `receive` in place of each launch."""
    before = runtime._active
    runtime.set_active(_Driver(capability, receive))
    try:
        yield
    finally:
        runtime._active = before
