"""The roofline: attainable rates, points that cannot be, the parts of a step, the figure."""

import itertools
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastres.bench import norms, roofline, roofline_page
from fastres.bench.ceilings import last_level_cache, memory_rates
from fastres.bench.roofline import TINY, above, attainable, better, measure_step, point
from fastres.bench.schema import Kind, Machine, MatrixRate, Point, Roofline
from fastres.bench.step_parts import Part, StepParts
from fastres.bench.timing import DRY, Timing
from fastres.errors import UserError
from fastres.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TABLES: dict[str, Any] = {
    "data": {"source": "shapes10"},
    "model": {"blocks": [1, 1], "channels": [4, 8], "strides": [2, 2]},
    "train": {"batch_size": 8, "compile": False, "precision": "fp32"},
}


def recipe(**tables: Any) -> Recipe:
    return Recipe.model_validate(TABLES | tables)


def part(operations: int, moved: int, kind: Kind = "convolutions") -> Part:
    return Part("a part", kind, operations, moved, "fp32", lambda: lambda: None)


def placed(operations: int, moved: int, seconds: float) -> Point:
    """A point on a machine of 10 bytes and 100 operations a second."""
    return point(part(operations, moved), Timing([seconds] * 3, "wall"), 10.0, 100.0)


def product(rate: float) -> MatrixRate:
    about: dict[str, Any] = {"what": "matrix product", "precision": "fp32", "side": 2048, "microseconds": 1.0}
    return MatrixRate(**about, quartiles_microseconds=[1.0, 1.0], operations_per_second=rate, method="wall")


# ---------------------------------------------------------------------------------------------------- the model


def test_the_roof_by_hand() -> None:
    # Below 10 operations a byte the memory decides.
    assert [attainable(intensity, 10, 100) for intensity in (0.5, 9, 10, 50)] == [5, 90, 100, 100]


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.floats(1e3, 1e12), st.floats(1e3, 1e12), st.floats(1e-9, 1e3))
def test_a_point_lies_above_its_roof_when_it_beats_either_ceiling(
    operations: int, moved: int, memory: float, products: float, seconds: float
) -> None:
    found = point(part(operations, moved), Timing([seconds] * 3, "wall"), memory, products)
    # The definition without intensities: no faster than its bytes through the memory, nor than its operations.
    least = max(moved / memory, operations / products)
    # A few roundings of 1e-16 each.
    assert found["share"] == pytest.approx(least / seconds, rel=1e-12)
    assert bool(above([found])) == (found["share"] > roofline.ROOM)


def test_points_that_cannot_be_are_named() -> None:
    slow, tight, counted_twice = placed(100, 10, 2.0), placed(100, 10, 0.95), placed(200, 10, 1.0)
    assert (slow["roof"], slow["operations_per_second"], slow["share"]) == (100.0, 50.0, 0.5)
    assert above([slow, tight]) == [], "5% is what ceilings drift by"
    assert above([slow.updated(name="slow"), counted_twice.updated(name="twice")]) == ["twice"]
    bytes_twice = placed(10, 20, 1.0)  # 10 operations and 20 bytes in a second, of 10 bytes that can be
    assert bytes_twice["share"] == 2.0 and above([bytes_twice])


# ---------------------------------------------------------------------------------------------------- measuring


def test_memory_is_measured_by_what_crosses_the_bus() -> None:
    rates = memory_rates(2**12, CPU, DRY)
    assert set(rates) == {"copy", "update", "read"} and all(rate > 0 for rate in rates.values())
    assert last_level_cache() >= 2**17


def test_the_better_of_two_measurements_of_a_ceiling_counts() -> None:
    assert better({"copy": 2.0, "read": 5.0}, {"copy": 3.0, "read": 4.0}, float) == {"copy": 3.0, "read": 5.0}
    rate = attrgetter("operations_per_second")
    assert better({"fp32": product(2e9)}, {"fp32": product(1e9)}, rate) == {"fp32": product(2e9)}


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"mix": {"cutmix_alpha": 1.0}, "optimizer": {"name": "muon"}},
        {"model": {"name": "speednet", "widths": [8, 8]}, "optimizer": {"name": "adamw"}},
    ],
    ids=["resnet", "mixing, muon", "speednet"],
)
def test_every_part_of_a_step_is_measured(tables: dict[str, Any]) -> None:
    chosen = recipe(**tables)
    facts = measure_step(chosen, CPU, TINY)
    points = {each["name"]: each for each in facts["points"]}
    kinds = [each["kind"] for each in facts["points"]]
    assert list(dict.fromkeys(kinds)) == [
        "augmentation",
        "convolutions",
        "BN and activation",
        "optimizer",
        "whole step",
    ]
    for each in facts["points"]:
        assert each["operations_per_second"] == pytest.approx(each["operations"] / each["seconds"])
        assert each["intensity"] == pytest.approx(each["operations"] / each["bytes"])
    # The step does what its parts do, and more BNs than are shown.
    parts = sum(each["operations"] for each in facts["points"][:-1])
    assert points["whole step"]["operations"] >= parts
    assert set(facts["products"]) == {"fp32", "bf16"}


def test_a_steps_sum_by_hand() -> None:
    found = StepParts(recipe(), 10, 32, CPU, 16).all()
    of = {each.name: each for each in found}
    images = 8 * 3 * 32 * 32
    assert (of["augmentation"].operations, of["augmentation"].bytes) == (2 * images, images * (1 + 4))
    # Shown are the stem's BN and the first of each block: left are the last two of each (dual), and the classifier.
    dual = [8 * 4 * 16 * 16, 8 * 8 * 8 * 8]
    operations = sum(14 * values + 19 * values for values in dual) + 6 * 8 * 10 * 8
    assert of["whole step"].operations == sum(each.operations for each in found[:-1]) + operations
    # Of two BNs in one pass: x, z read, y written; dy, x, z read, dx, dz written; 4 bytes each.
    assert of["whole step"].bytes == sum(each.bytes for each in found[:-1]) + 4 * sum(8 * values for values in dual)


def test_parts_compute_on_buffers_of_their_own() -> None:
    for each in StepParts(recipe(), 10, 32, CPU, 16).all():
        first, second = each.make(), each.make()
        assert first is not second
        first()
        second()


@pytest.mark.slow
def test_a_compiled_norm_is_the_norm() -> None:
    """On a CPU, what a compiled step does of BN is compiled here as well; a backward can be repeated on one forward."""
    compiled = roofline._forward(recipe(train={"batch_size": 8, "compile": True}), CPU)
    case = norms.Case("none", "relu", 4, 8, 6, 6, torch.float32)
    results = []
    for forward in (norms.ours, compiled):
        problem = norms.problem(case, CPU)
        backward = norms.call("backward", forward, problem)
        first, again = backward(), backward()
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))  # type: ignore[call-overload]
        results.append([norms.call("forward", forward, problem)(), *first])  # type: ignore[misc]
    for one, other in zip(*results, strict=True):
        # fp32 sums of up to 144 values of size 1, in another order: some 1e-6 of values up to 10.
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------- what is shown


@pytest.fixture(scope="module")
def facts() -> Roofline:
    """Made-up figures of a machine of 20 GB/s and 1 TFLOP/s."""
    memory, products = {"copy": 14e9, "update": 20e9, "read": 19e9}, {"bf16": 1e12, "fp32": 2e11}
    made = [
        ("augmentation", "augmentation", 2e6, 6e6, 0.01, "fp32"),
        ("convolutions 32×32, forward", "convolutions", 4e9, 2e7, 0.01, "bf16"),
        ("convolutions 32×32, backward", "convolutions", 8e9, 4e7, 0.016, "bf16"),
        ("BN, relu 32×32, forward", "BN and activation", 1e7, 6e6, 6e-4, "fp32"),
        ("optimizer", "optimizer", 3e7, 1e8, 2e-3, "fp32"),  # 100 MB in 2 ms are 50 GB/s
        ("whole step", "whole step", 1.2e10, 1e8, 0.04, "bf16"),
    ]
    points = [
        point(
            Part(name, kind, round(operations), round(moved), precision, lambda: lambda: None),  # type: ignore[arg-type]
            Timing([seconds] * 3, "wall"),
            20e9,
            products[precision],
        )
        for name, kind, operations, moved, seconds, precision in made
    ]
    return Roofline(
        recipe="made_up.toml",
        set=[],
        batch_size=20,
        precision="bf16",
        machine=Machine(device="x", cpu_model="a processor", gpu_name=None, threads=2, cache_bytes=1 << 25),
        memory=memory,
        products={name: product(rate) for name, rate in products.items()},
        points=points,
        above=above(points),
    )


def test_the_table_and_the_warning(facts: Roofline, tmp_path: Path) -> None:
    roofline_page.write(tmp_path, facts)
    text = (tmp_path / "roofline.md").read_text()
    assert "made_up.toml, batch 20, bf16, on a processor, 2 threads" in text
    assert "memory: copy 14.0 GB/s, update 20.0 GB/s, read 19.0 GB/s" in text
    # 4 GFLOP in 10 ms are 400 GFLOP/s; 200 operations a byte, so that bf16 products (1 TFLOP/s) are the limit.
    row = (
        "| 2 | convolutions 32×32, forward | 10.0 ms | 4.00 GFLOP | 20.0 MB | 200 | 400 GFLOP/s | 1.00 TFLOP/s (bf16) |"
    )
    assert f"{row} 40% |" in text
    assert "**optimizer lies above its roof, at 250% of it" in text and text.count("lies above its roof") == 1
    assert roofline_page.table(facts).markdown() in text
    assert (tmp_path / "roofline.png").read_bytes() == roofline_page.picture(facts), "the same facts, the same bytes"


def test_the_figure_has_every_point_and_roof(facts: Roofline) -> None:
    axes = roofline_page.figure(facts).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = [line.get_xydata().tolist() for line in axes.get_lines()]
    single = [line[0] for line in lines if len(line) == 1]
    assert single == [[each["intensity"], each["operations_per_second"]] for each in facts["points"]]
    roofs = [line for line in lines if len(line) == 2]
    # The memory's slope ends at the highest ceiling, 1 TFLOP/s at 50 operations a byte.
    assert roofs[0][1] == [50.0, 1e12] and roofs[0][0][1] == pytest.approx(20e9 * roofs[0][0][0])
    assert [line[0] for line in roofs[1:]] == [[50.0, 1e12], [10.0, 2e11]]
    texts = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert {"memory 20.0 GB/s", "bf16 products 1.00 TFLOP/s", "fp32 products 200 GFLOP/s"} <= set(texts)
    assert {"1", "2", "3", "4", "5", "whole step"} <= set(texts)
    labels = [box for text, box in texts.items() if "memory" not in text]  # a slanted text's box is larger than it is
    assert not any(one.overlaps(other) for one, other in itertools.combinations(labels, 2))


# ---------------------------------------------------------------------------------------------------- the command


def test_what_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    def refused(text: str, **options: Any) -> str:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            roofline.roofline(path, out=tmp_path / "out", device="cpu", scale=TINY, **options)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "give a recipe that learns from labels alone" in refused('[method]\nname = "dino"\n')
    assert "train them with `fastres sweep RECIPE`" in refused('[sweep.grid]\n"train.seed" = [0, 1]\n')
    text = '[data]\nsource = "shapes10"\n[model]\nmax_parameters = 10\n'
    assert "max_parameters" in refused(text)
    with pytest.raises(UserError, match="--set changes a recipe"):
        roofline.roofline(None, settings=["train.batch_size=2"], device="cpu", scale=TINY)
