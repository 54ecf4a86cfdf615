"""The inputs with which PyTorch tests its own nn.BatchNorm2d, given to the three layers with every activation, eager
and compiled: values, gradients and statistics, in any memory format, and the errors of its error inputs."""

import copy
import itertools
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing._internal.common_modules import module_db

from fastres.kernels import ACTIVATIONS
from fastres.layers import BatchNormAct2d, BatchNormAddAct2d, DualBatchNormAddAct2d

# Its import forbids all later tests of the process to set cuDNN's flags.
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

BATCH_NORM = next(info for info in module_db if info.module_cls is nn.BatchNorm2d)
KINDS: dict[str, Any] = {"plain": BatchNormAct2d, "add": BatchNormAddAct2d, "dual": DualBatchNormAddAct2d}
DTYPES = (torch.float32, torch.float64)


class Case(NamedTuple):
    kind: str
    activation: str
    dtype: torch.dtype
    training: bool
    compiled: bool
    index: int
    """Of PyTorch's list of inputs, or of error inputs."""

    def __str__(self) -> str:
        mode = ("training" if self.training else "evaluation", "compiled" if self.compiled else "eager")
        return "-".join((self.kind, self.activation, str(self.dtype)[6:], *mode, str(self.index)))


def inputs(case: Case, errors: bool = False) -> list[Any]:
    make = BATCH_NORM.module_error_inputs_func if errors else BATCH_NORM.module_inputs_func
    torch.manual_seed(0)
    return make(BATCH_NORM, device="cpu", dtype=case.dtype, requires_grad=not errors, training=case.training)


def cases(errors: bool = False) -> list[Case]:
    modes = (True,) if errors else (True, False)  # in evaluation PyTorch takes an eps of 0
    options = itertools.product(KINDS, ACTIVATIONS, DTYPES, modes, (False, True))
    return [Case(*option, i) for option in options for i in range(len(inputs(Case(*option, 0), errors)))]


ALL, ERRORS = cases(), cases(errors=True)


def built(case: Case, given: Any) -> nn.Module:
    arguments = given.constructor_input
    return KINDS[case.kind](
        *arguments.args, **arguments.kwargs, activation=case.activation, dtype=case.dtype
    ).train(case.training)  # fmt: skip


def expected(layer: nn.Module, case: Case, x: Tensor, z: Tensor) -> Tensor:
    """By nn.BatchNorm2d, with the parameters and statistics of a copy of `layer`."""
    norms = [layer.main, layer.skip] if isinstance(layer, DualBatchNormAddAct2d) else [layer]
    y = nn.BatchNorm2d.forward(norms[0], x)  # type: ignore[arg-type]
    if case.kind != "plain":
        y = y + (norms[1](z) if case.kind == "dual" else z)  # type: ignore[operator]
    return y if case.activation == "none" else getattr(F, case.activation)(y)


def check(case: Case) -> None:
    given = inputs(case)[case.index]
    layer = built(case, given)
    (x,) = given.forward_input.args
    z = torch.randn_like(x).requires_grad_()
    twin, again = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    # Compiled, the same sums in another order: of at most 72 numbers below 10, over a deviation of about 5.
    tolerance = 0.0 if not case.compiled else 1e-4 if case.dtype == torch.float32 else 1e-11
    for module in (layer, again):
        function: Any = torch.compile(module, backend="aot_eager") if case.compiled else module
        reference = copy.deepcopy(twin)
        for laid_out in (
            lambda t: t,
            lambda t: t.contiguous(memory_format=torch.channels_last),
            lambda t: t.repeat_interleave(2, 3)[..., ::2],
        ):
            operands = [laid_out(x)] if case.kind == "plain" else [laid_out(x), laid_out(z)]
            y, wanted = function(*operands), expected(reference, case, laid_out(x), laid_out(z))
            leaves = (x,) if case.kind == "plain" else (x, z)
            gradient = torch.randn_like(wanted)
            mine = torch.autograd.grad(y, [*leaves, *module.parameters()], gradient)
            other = torch.autograd.grad(wanted, [*leaves, *reference.parameters()], gradient)
            state, theirs = module.state_dict(), reference.state_dict()
            assert list(state) == list(theirs)
            for one, two in zip((y, *mine, *state.values()), (wanted, *other, *theirs.values()), strict=True):
                torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)
            if case.compiled:
                return  # one compilation a case


def check_error(case: Case) -> None:
    given = inputs(case, errors=True)[case.index]
    layer = built(case, given.module_error_input)
    (x,) = given.module_error_input.forward_input.args
    function: Any = torch.compile(layer, backend="aot_eager") if case.compiled else layer
    with pytest.raises(given.error_type, match=given.error_regex):
        function(*([x] if case.kind == "plain" else [x, x]))


def test_all_of_them_are_here() -> None:
    assert len(ALL) + len(ERRORS) >= 754
    assert {case.index for case in ALL} == set(range(7))


@pytest.mark.parametrize("case", ALL[::53], ids=str)  # 53 has no factor of the lists' lengths: of each something
def test_a_sample(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", ERRORS[::13], ids=str)
def test_a_sample_of_errors(case: Case) -> None:
    check_error(case)


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_input(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("case", ERRORS, ids=str)
def test_every_error(case: Case) -> None:
    check_error(case)
