"""Every form of the kernels against fp64, over options and shapes; the same bits each time."""

import itertools
from typing import Any

import pytest
import torch
from covering import covering
from norm_cases import ACTIVATIONS, DEVICE, DTYPES, FORMS, SECONDS, Case, assert_same, by_kernels, check, draw, plan_of

from fastres.kernels.batch_norm import launch
from fastres.kernels.batch_norm.routing import MERGE_SPLITS, Plan, Tile

OPTIONS: dict[str, Any] = {
    "form": FORMS,
    "second": SECONDS,
    "activation": tuple(ACTIVATIONS),
    "dtype": DTYPES,
    "training": (True, False),
    "fork": (False, True),
}
SHAPES = (
    (1, 20, 5, 7),  # one image
    (6, 20, 1, 1),  # one value an image and channel
    (2, 3, 1, 1),  # two values a channel, the fewest that have a variance
    (2, 8, 3, 2),  # fewer rows than a tile
    (3, 1, 5, 3),  # one channel
    (2, 3, 7, 9),  # ragged rows
    (4, 8, 4, 8),  # rows in whole tiles
    (2, 64, 3, 5),  # channels in whole tiles
    (2, 65, 2, 5),  # one channel too many
    (1, 130, 3, 3),
)


def cases(strength: int, **options: Any) -> list[Case]:
    return [Case(**choice) for choice in covering(options, strength)]


@pytest.mark.parametrize("case", cases(3, **OPTIONS), ids=str)
def test_options(case: Case) -> None:
    """Any three options in all combinations."""
    check(case)


@pytest.mark.parametrize("case", cases(2, **OPTIONS, shape=SHAPES), ids=str)
def test_shapes(case: Case) -> None:
    """Every shape with every value of every option."""
    check(case)


def test_every_pair_occurs() -> None:
    """What `covering` promises of the shapes' cases."""
    chosen = covering({**OPTIONS, "shape": SHAPES}, 2)
    for first, second in itertools.combinations([*OPTIONS, "shape"], 2):
        pairs = {(case[first], case[second]) for case in chosen}
        values = [SHAPES if name == "shape" else OPTIONS[name] for name in (first, second)]
        assert pairs == set(itertools.product(*values))


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[5], SHAPES[8]], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_full_product(form: str, shape: tuple[int, int, int, int]) -> None:
    """All options in all combinations: one value a map, ragged rows, ragged channels."""
    for values in itertools.product(*(OPTIONS[name] for name in OPTIONS if name != "form")):
        chosen = dict(zip((name for name in OPTIONS if name != "form"), values, strict=True))
        check(Case(form=form, shape=shape, **chosen))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_one_value_a_channel_backward(training: bool) -> None:
    """One row: a variance of 0 where the caller lets it pass, plain scaling in evaluation."""
    case = Case("add", "relu", "two_pass", training=training, shape=(1, 5, 1, 1))
    if not training:
        check(case)
        return
    inputs = draw(Case("add", "relu", "two_pass", training=False, shape=(1, 5, 1, 1)))
    bare = inputs._replace(x_norm=inputs.x_norm._replace(running_mean=None, running_var=None))
    found = by_kernels(case, bare)
    expected = (bare.x_norm.bias[None, :, None, None] + bare.second).relu()  # type: ignore[index,operator]
    assert torch.equal(found["y"], expected)
    assert not found["dx"].any()


@pytest.mark.parametrize(
    "second", [*(pytest.param(each, marks=(pytest.mark.slow, pytest.mark.kernels)) for each in ("none", "add")), "dual"]
)
@pytest.mark.parametrize("form", ["two_pass", "resident"])
def test_more_splits_than_a_merge_takes_at_once(form: str, second: str) -> None:
    """One row a split; two merges for two passes, three for the resident form, the last one ragged."""
    case = Case(second, "relu", shape=(2, 3, 3, 11))
    assert max(MERGE_SPLITS.values()) < case.rows
    check(case, plan=Plan(form, Tile(1, 16, 4), Tile(64, 16, 4), case.rows, 1))


@pytest.mark.parametrize("columns", [32, 64])
def test_wider_tiles(columns: int) -> None:
    for form, second in itertools.product(FORMS, ("add", "dual")):
        case = Case(second, "relu", form, torch.bfloat16, shape=(3, 65, 3, 5))
        check(case, plan=plan_of(form, case.rows, columns))


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("form", FORMS)
def test_repeats_bit_for_bit(form: str, second: str) -> None:
    """Whatever ran in between, and whatever the memory of the results held before."""
    case = Case(second, "relu", form, torch.bfloat16, fork=True, shape=(2, 20, 3, 4))
    inputs = draw(case)
    first = by_kernels(case, inputs)
    other = Case("dual", "silu", form, shape=(1, 18, 3, 3))
    by_kernels(other, draw(other))
    assert_same(first, by_kernels(case, inputs))


@pytest.mark.parametrize("second", SECONDS)
def test_forms_agree_on_what_they_round(second: str) -> None:
    """bf16 outputs of the forms differ by one rounding of bf16, 2⁻⁷ of the largest value, at most."""
    case = Case(second, "relu", dtype=torch.bfloat16)
    inputs = draw(case)
    results = [by_kernels(case, inputs, plan_of(form, case.rows)) for form in FORMS]
    for other in results[1:]:
        for name in ("y", "dx"):
            largest = results[0][name].abs().max().item()
            assert (other[name].float() - results[0][name].float()).abs().max().item() <= 2**-7 * largest


def test_counters_are_left_as_they_were_found() -> None:
    """Else the next launch would wait for ever, or not at all; barriers may end at 0 or with their top bit set."""
    for form in ("two_pass", "resident/5"):
        case = Case("dual", "relu", form)
        by_kernels(case, draw(case))
    rings = {use: ring for (device, use), ring in launch._RINGS.items() if device.type == DEVICE.type}
    assert rings.keys() == {"ticket", "barrier"}
    for use, ring in rings.items():
        assert ring.next > 0
        allowed = {0} if use == "ticket" else {0, -(2**31)}
        assert set(ring.ring.unique().tolist()) <= allowed


def test_counters_go_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launch is handed counters from both ends of the ring, or such as are not aligned to 16 bytes."""
    monkeypatch.setattr(launch.Counters, "SIZE", 16)
    ring = launch.Counters(DEVICE)
    taken = [ring.take(count) for count in (3, 5, 4, 3)]
    assert [len(counters) for counters in taken] == [3, 5, 4, 3]
    assert [counters.storage_offset() for counters in taken] == [0, 4, 12, 0]
    assert all(counters.data_ptr() % 16 == 0 for counters in taken)
