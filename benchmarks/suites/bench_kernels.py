"""The fused BatchNorm kernels against eager PyTorch, cuDNN and Inductor, and against the machine's copy rate.

pytest-benchmark's own columns show one call from Python with a synchronisation, host time and all; the figures that
count are in `extra_info` and in the summary: time on the device in turn with the rivals (`fastres/bench/timing.py`).
"""

from typing import Any

import pytest
import torch

from benchmarks.harness.versus import note
from benchmarks.kernels.cases import cases
from benchmarks.kernels.checks import check
from benchmarks.kernels.timings import time_case
from fastres.bench.norms import PASSES, Case, call, ours, problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Inductor's advice about TF32 and the like must not fail a rival.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name.replace(" ", "-"))
def test_kernel(case: Case, which: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
    device = torch.device("cuda")
    checked = check(case, device)
    assert checked["passed"], checked
    one = call(which, ours, problem(case, device))

    def complete() -> None:
        one()
        torch.cuda.synchronize()

    benchmark.pedantic(complete, rounds=20, iterations=1, warmup_rounds=3)
    for record in time_case(case, device, passes=[which]):
        note(request, benchmark, **figures(record))
        assert record["path"] == "triton", "ours fell back to PyTorch's operators"


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """The figures of a record of `time_case` under flat names that begin with the state of the cache."""
    mine, state = record["variants"]["ours"], record["cache"]
    flat = {
        "ms": mine["microseconds"] / 1e3,
        "algorithmic_gb_per_s": mine["floor_bytes_per_second"] / 1e9,
        "percent_of_copy": 100 * mine["share_of_copy"],
        "peak_bytes": mine["peak_bytes"],
    }
    for name, rival in record["variants"].items():
        if name != "ours":
            flat[f"times_as_fast_as_{name}"] = rival["ours_is_times_as_fast"]
            flat[f"peak_bytes_{name}"] = rival["peak_bytes"]
    flat |= {f"missing_{name}": reason for name, reason in record["missing"].items()}
    return {f"{state}_{key}": value for key, value in flat.items()}
