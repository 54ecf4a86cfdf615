"""Where kernels cannot run, nothing of this folder is imported; a sample of the cases, where all of them run elsewhere;
and the PTX machine, where it is chosen."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from covering import ONE_IN
from runs_on import MACHINE, SOMEWHERE

from fastres.kernels.batch_norm import functional


class NotHere(pytest.Module):
    """A file of tests that is skipped as a whole."""

    def collect(self) -> Any:
        pytest.skip("kernels run on a CUDA device or, with TRITON_INTERPRET=1 set, on a CPU", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    return None if SOMEWHERE else NotHere.from_parent(parent, path=module_path)


if MACHINE:
    from ptx.session import running  # FASTRES_PTX_MACHINE is set where PYTHONPATH leads there

    @pytest.fixture(autouse=True)
    def in_the_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Each test's kernels, compiled. Those of symmetric products for compute capability 8.0: for 9.0 the compiler
        takes wgmma, which the machine lacks."""
        monkeypatch.setattr(functional, "_interpreter", lambda: True)
        name = request.path.name
        with running(capability=80 if name == "test_symmetric.py" else 90, exact=name.startswith("test_augment")):
            yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the first case of each test and one in ONE_IN of the others, by their names, so that no option of a product
    is left out for standing in step with the others."""
    seen: set[str] = set()
    left_out = []
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in seen and zlib.crc32(item.nodeid.rpartition("/")[2].encode()) % ONE_IN:
            left_out.append(item)
        seen.add(name)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
