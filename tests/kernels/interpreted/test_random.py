"""Random shapes, layouts and options, in every form and tile that routing offers."""

import torch
from covering import ONE_IN
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from norm_cases import ACTIVATIONS, DTYPES, SECONDS, Case, Inputs, by_function, check, compare, draw
from torch import Tensor

from fastres.kernels.batch_norm.routing import Problem, candidates, split

LAYOUTS = ("channels-last", "NCHW", "sliced")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    small = st.integers(1, 9)
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(small), draw(small))
    return Case(
        second=draw(st.sampled_from(SECONDS)),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        dtype=draw(st.sampled_from(DTYPES)),
        training=shape[0] * shape[2] * shape[3] > 1 and draw(st.booleans()),
        fork=draw(st.booleans()),
        shape=shape,
    )


@settings(max_examples=max(1, 100 // ONE_IN), derandomize=True, deadline=None)
@given(
    case=cases(),
    multiprocessors=st.integers(1, 40),
    choice=st.integers(0, 11),
    seed=st.integers(0, 1000),
)
def test_random_plans(case: Case, multiprocessors: int, choice: int, seed: int) -> None:
    """With real tiles and any number of multiprocessors."""
    problem = Problem("backward", case.second, case.dtype.itemsize, case.rows, case.shape[1], multiprocessors)
    offered = candidates(problem)
    plan = split(offered[choice % len(offered)], problem)
    assume(plan is not None)
    check(case, draw(case, seed), plan)


@settings(max_examples=max(1, 60 // ONE_IN), derandomize=True, deadline=None)
@given(case=cases(), layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 4), seed=st.integers(0, 1000))
def test_random_layouts(case: Case, layouts: tuple[str, ...], seed: int) -> None:
    """Through the public function, each tensor with a layout of its own."""
    inputs = draw(case, seed)
    images = [inputs.x, inputs.second, inputs.dy, inputs.dy2]
    x, second, dy, dy2 = (t if t is None else lay(t, layout) for t, layout in zip(images, layouts, strict=True))
    assert x is not None and dy is not None
    changed = Inputs(x, second, inputs.x_norm, inputs.z_norm, dy, dy2)
    compare(case, inputs, by_function(case, changed))


def lay(x: Tensor, layout: str) -> Tensor:
    """The same values in other memory."""
    if layout == "NCHW":
        return x.contiguous()
    if layout == "sliced":
        large = torch.full([size + 1 for size in x.shape], float("nan"), dtype=x.dtype, device=x.device)
        return large[1:, 1:, 1:, 1:].copy_(x)
    return x
