"""What a training changes of its process comes back."""

import os
import threading
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from fastres.engine.compile import Compiled
from fastres.engine.process import left_as_found
from fastres.errors import UserError


@pytest.fixture(autouse=True)
def nobody_watches_bars() -> None:
    """Tests that have compiled leave tqdm's thread behind."""
    if tqdm.monitor is not None:
        tqdm.monitor.exit()
        tqdm.monitor = None


def test_the_process_is_left_as_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    threads, variables = threading.enumerate(), dict(os.environ)
    generator, benchmark = torch.get_rng_state(), torch.backends.cudnn.benchmark
    with pytest.raises(ZeroDivisionError), left_as_found("cpu"):
        torch.manual_seed(7)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = not benchmark
        os.environ |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TORCHINDUCTOR_CACHE_DIR": "/nowhere"}
        tqdm(total=1, disable=True)  # as TorchInductor does while it compiles
        assert len(threading.enumerate()) == len(threads) + 1
        raise ZeroDivisionError
    assert threading.enumerate() == threads and dict(os.environ) == variables
    assert torch.equal(torch.get_rng_state(), generator) and torch.backends.cudnn.benchmark == benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_thread_of_somebody_elses_bars_stays() -> None:
    with Path(os.devnull).open("w") as nowhere, tqdm(total=1, file=nowhere) as bar:
        with left_as_found("cpu"):
            tqdm(total=1, disable=True)
        assert tqdm.monitor is not None and tqdm.monitor.is_alive() and bar.total == 1
    tqdm.monitor.exit()
    tqdm.monitor = None


def test_compiling_changes_no_limit_of_the_process() -> None:
    before = torch._dynamo.config.recompile_limit
    compiled = Compiled(lambda x: x + 1, enabled=True)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(compiled, "_plain", lambda: lambda x: x + torch._dynamo.config.recompile_limit)
        assert compiled(torch.zeros(1)).item() == 64 > before, "a process may train many networks"
    assert torch._dynamo.config.recompile_limit == before


def test_a_device_that_there_is_none_of_is_a_line() -> None:
    with pytest.raises(UserError, match="there is no device 'tpu': choose auto, cpu or cuda"), left_as_found("tpu"):
        pass
