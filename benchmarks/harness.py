"""What the pytest suites share: figures on record, and a yardstick for the CPU."""

from typing import Any

import pytest
import torch

FIGURES: dict[str, dict[str, Any]] = {}
"""What each benchmark of this session put on record."""


def note(request: pytest.FixtureRequest, benchmark: Any, **figures: Any) -> None:
    """Put figures on record, in pytest-benchmark's own data and in the summary."""
    benchmark.extra_info.update(figures)
    FIGURES.setdefault(request.node.name.removeprefix("test_"), {}).update(figures)


class MatrixProduct:
    """A product of two square bf16 matrices, as a yardstick of what the machine's matrix units deliver."""

    def __init__(self, side: int = 2048) -> None:
        self.left = torch.randn(side, side).bfloat16()
        self.right = torch.randn(side, side).bfloat16()
        self.operations = 2 * side**3

    def __call__(self) -> object:
        return self.left @ self.right
