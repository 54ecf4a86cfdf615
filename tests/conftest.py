"""What all tests share."""

import gc
import importlib.util
import io
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from torch import nn

from fastres.layers.convolution import Conv2d
from fastres.runs.environment import environment
from fastres.utils.machine import computes_bf16

# An example takes as long as other processes let it: how long decides nothing.
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")

PARTS = ("kills", "fuzz", "zoo", "kernels")
"""Marks of slow tests, of which `make test-slow PART=…` runs one; `rest` are those without one."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background so, and every process that a test starts and interrupts would
    # inherit it: nobody would hear the Ctrl-C that the test waits for.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_conv_init = nn.Conv2d.__init__


def _safe_conv_init(self: nn.Conv2d, *args: Any, **kwargs: Any) -> None:
    """Refuse what lets oneDNN write beside its buffers in the backward pass (`stride_is_unsafe` says when), which shows
    in another test, as a crash or as a dictionary that has lost a key. Ours keeps away from it."""
    _conv_init(self, *args, **kwargs)
    strided = self.kernel_size == (1, 1) and self.stride != (1, 1) and self.groups == 1
    if strided and self.in_channels < 16 and torch.backends.mkldnn.enabled and not isinstance(self, Conv2d):
        raise AssertionError(f"{self} damages memory on a CPU: give it 16 channels")


nn.Conv2d.__init__ = _safe_conv_init  # type: ignore[method-assign]

FIRST = ("tests/kernels/", "tests/integration/", "tests/layers/", "tests/data/", "tests/fuzz/")
"""Files that take long, which workers begin with: none shall be left with one of them at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every slow test belongs to one part; workers begin with FIRST."""
    for item in items:
        parts = [mark for mark in PARTS if item.get_closest_marker(mark)]
        if len(parts) > 1 or (parts and not item.get_closest_marker("slow")):
            raise pytest.UsageError(f"{item.nodeid} is marked {', '.join(parts)}: one part, and of slow tests alone")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file without the mark that all chosen tests have (`-m "serial and …"`) is not imported: ten seconds less."""
    wanted = str(config.option.markexpr).partition(" ")[0]
    if wanted in (*PARTS, "serial", "slow") and collection_path.suffix == ".py":
        return f"mark.{wanted}" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_finish() -> None:
    """What importing made stays: without looking at it, a collection takes milliseconds instead of half a second, and
    many tests collect to see what they leave behind."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # Triton's bindings complain at the exit of what was not collected


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The property `log` of tests that count something, for the logs that are committed."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    lines = [str(value) for report in calls for name, value in report.user_properties if name == "log"]
    if lines:
        terminalreporter.section("counted")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for stores that lives as long as the tests: shapes10 is drawn once, the user's own are not touched."""
    root = tmp_path_factory.mktemp("data")
    before = os.environ.get("FASTRES_DATA")
    os.environ["FASTRES_DATA"] = str(root)
    yield root
    if before is None:
        del os.environ["FASTRES_DATA"]
    else:
        os.environ["FASTRES_DATA"] = before


@pytest.fixture(autouse=True)
def threads_stay() -> Iterator[None]:
    """A test leaves torch with as many threads as it found: another number gives later tests other bits than the
    processes that they start. FFCV's own import sets it to 1."""
    threads = torch.get_num_threads()
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert left == threads, f"torch is left with {left} threads instead of {threads}"


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    """Dynamo counts a function's compilations over the whole process and refuses the ninth, whichever test it falls
    to: each test starts the count afresh."""
    torch.compiler.reset()


@pytest.fixture(scope="session")
def fast_precision() -> str:
    """bf16, or fp32 where the CPU only emulates bf16, in which a small network takes ten times as long."""
    return "bf16" if computes_bf16(environment().isa) else "fp32"


@pytest.fixture
def needs_ffcv() -> None:
    """Skips where FFCV is not installed; looks without importing it."""
    if importlib.util.find_spec("ffcv") is None:
        pytest.skip("ffcv is not installed: pip install 'fastres[ffcv]'")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for operations: on tiny tensors a second one only waits for the first, for milliseconds where another
    process keeps its core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """CIFAR-10 as JPEG files in a tar, laid out as train/<class>/ and test/<class>/."""
    path = os.environ.get("FASTRES_TEST_DATA")
    if path is None:
        pytest.skip("FASTRES_TEST_DATA is not set to an archive of CIFAR-10 as JPEG files")
    return Path(path)


@pytest.fixture(scope="session")
def photographs(real_images: Path) -> np.ndarray:
    """uint8 [64, 32, 32, 3]: the first training images of CIFAR-10."""
    images = []
    with tarfile.open(real_images, "r:xz") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                content = archive.extractfile(member)
                assert content is not None
                images.append(np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB")))
            if len(images) == 64:
                break
    return np.stack(images)
