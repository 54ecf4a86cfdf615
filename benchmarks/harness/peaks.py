"""Peak memory of a piece of work: of the process on a CPU, of torch's allocator on a GPU."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """The most memory that work needs beyond what was held when it began, its results included.

    On a GPU that is what torch's allocator gave out. On a CPU it is the growth of the resident set's high-water mark
    (VmHWM), which is set back at the beginning. Before that, glibc returns to the kernel what is free: memory that is
    freed and used again would otherwise count as held, most of all after `keep_freed_memory`. It counts whole pages,
    all that the process has, libraries and compilers included, and no child processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: int | None = None

    def begin(self) -> None:
        """From now on."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._held = torch.cuda.memory_allocated(self.device)
            return
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        try:
            _CLEAR.write_text("5")
        except OSError:  # no Linux, or a container that forbids it
            self._held = None
        else:
            self._held = _status("VmRSS")

    def end(self) -> int | None:
        """Bytes since `begin`; None where the system does not tell."""
        if self._held is None:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self._held
        return max(0, _status("VmHWM") - self._held)


def _status(key: str) -> int:
    """Bytes that the kernel says of this process."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
