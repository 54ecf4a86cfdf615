"""The GPU suite's sections that train: their arithmetic, their rivals and their dry runs. No figure of a GPU."""

import json
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import epochs, paper_run, speedruns, step_timings, table
from benchmarks.gpu import sections as suites
from benchmarks.gpu import suite as gpu_suite
from benchmarks.rivals.steps import DRY_RIVALS, RIVALS, PlainResNet, Rival, Work
from fastres.bench import ceilings, training
from fastres.bench.timing import DRY
from fastres.data import open_dataset
from fastres.models import build, count_parameters, layers

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with shapes10 prepared."""
    root = tmp_path_factory.mktemp("stores")
    open_dataset("shapes10", root=root, quiet=True)
    return str(root)


def dry_suite(stores: str) -> suites.Suite:
    suite = suites.Suite(CPU, 8.0)
    suite._stores = SimpleNamespace(name=stores, cleanup=lambda: None)  # type: ignore[assignment]
    return suite


def figures_of(suite: suites.Suite, name: str) -> list[dict[str, Any]]:
    """Run one section; what it found."""
    assert suites.run(suite, [name]) == 0, suite.report["sections"][name]
    assert suite.report["sections"][name]["status"] == "done", suite.report["sections"][name]
    found = suite.figures_of(name)
    assert all(each["dry"] for each in found)
    json.dumps(found)
    return found


# ------------------------------------------------------------------------------------------------------------ ceilings


@pytest.mark.parametrize("precision", [*ceilings.PRECISIONS, "fp32"])
def test_a_matrix_rate_counts_both_operations(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    found = ceilings.matrix_rate(precision, CPU, effort=DRY)
    assert found["operations_per_second"] == pytest.approx(2 * found["side"] ** 3 / (found["microseconds"] / 1e6))
    assert torch.get_float32_matmul_precision() == before


# ---------------------------------------------------------------------------------------------------------------- step


@pytest.mark.parametrize("case", step_timings.CASES, ids=lambda case: case.label)
def test_rivals_train_the_same_network(case: step_timings.StepCase) -> None:
    model = case.recipe(dry=False).model
    mine, plain = build(model, 10, 32), PlainResNet(model.blocks, model.channels)
    assert count_parameters(mine) == count_parameters(plain)
    # In the order of parameters; where a skip's convolution stands among them is each network's own affair.
    work = [sorted((layer.output, layer.multiply_adds) for layer in layers(each, 32)) for each in (mine, plain)]
    assert work[0] == work[1]
    assert step_timings.IMAGES % case.batch == 0
    assert step_timings.IMAGES // case.batch % case.steps == 0, "an epoch is a whole number of calls"


def test_rivals_flip_and_shift() -> None:
    pixels = torch.randint(0, 256, (3, 6, 6, 3), dtype=torch.uint8)
    work = Work(torch.nn.Identity(), pixels, torch.arange(3), torch.float32)
    rows = torch.tensor([2, 0, 1, 1])
    torch.manual_seed(1)
    batch = work.augmented(rows)
    assert batch.shape == (4, 3, 6, 6)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(1)
    down, right = torch.randint(-4, 5, (4, 1)), torch.randint(-4, 5, (4, 1))
    flips = torch.rand(4, 1) < 0.5
    assert flips.any() and not flips.all()
    for index, row in enumerate(rows.tolist()):
        for y in range(6):
            for x in range(6):
                from_y = min(max(y + int(down[index]), 0), 5)
                from_x = min(max((5 - x if flips[index] else x) + int(right[index]), 0), 5)
                expected = (pixels[row, from_y, from_x].float() - 127.5) / 63.75
                assert torch.equal(batch[index, :, y, x], expected)


def test_rivals_do_the_same_steps() -> None:
    pixels, labels = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8), torch.arange(40) % 10
    sums: dict[str, torch.Tensor] = {}
    for name, make in DRY_RIVALS.items():
        torch.manual_seed(0)
        network = PlainResNet([1, 1], [16, 16])
        before = network.fc.weight.detach().clone()
        rival = make(network, pixels, labels, 16, torch.float32, 3)
        if name == "graphed":  # it has drawn its first rows to know where they lie
            rival.order, rival.at = (), 0
        torch.manual_seed(2)
        rival()
        assert (network.fc.weight - before).abs().max() > 0
        assert rival.at == 1, "two batches of 16 in 40 images, then a new permutation"
        sums[name] = rival.sums
    assert sums["eager"][0] > 0
    assert torch.equal(sums["eager"], sums["graphed"])
    # Compiled on its own, the same operators in the same order: the tolerance is for the order in a sum.
    torch.testing.assert_close(sums["max-autotune"], sums["eager"], rtol=1e-4, atol=0)


def test_calls_of_several_steps_are_exact_in_sum() -> None:
    launches = iter([training.Launch(12, 240)] * 10)
    steps = training.Steps(launches, 20)
    done = []
    for _ in range(5):
        steps()
        done.append(steps.steps_ahead)
    assert done == [4, 8, 0, 4, 8]


def test_step_section(stores: str) -> None:
    suite = dry_suite(stores)
    found = figures_of(suite, "step")
    assert [each["case"] for each in found] == [case.label for case in step_timings.DRY_CASES] * 2
    assert [each["rivals"] for each in found[1:3]] == [["eager", "graphed"], ["max-autotune"]]
    for each in found:
        assert each["missing"] == {}
        assert list(each["variants"]) == ["ours", *each["rivals"]]
        for name, variant in each["variants"].items():
            seconds = variant["microseconds"] / 1e6
            assert variant["images_per_second"] == pytest.approx(each["batch"] / seconds)
            # Forward and two gradients, a multiplication and an addition each.
            rate = 3 * 2 * each["multiply_adds"] * each["batch"] / seconds
            assert variant["operations_per_second"] == pytest.approx(rate)
            share = rate / each["matrix_product"]["operations_per_second"]
            assert variant["share_of_matrix_rate"] == pytest.approx(share)
            assert ("ours_is_times_as_fast" in variant) == (name != "ours")
    assert found[0]["matrix_product"]["precision"] == "bf16"
    text = table.table(suite.report)
    assert "times graphed" in text and "goal: 290 µs, 1.4 times max-autotune" in text


def test_what_fails_is_missing_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> Rival:
        raise torch.OutOfMemoryError("out of memory, as it must")

    monkeypatch.setitem(DRY_RIVALS, "graphed", fails)
    monkeypatch.setitem(DRY_RIVALS, "max-autotune", fails)
    two, one = (replace(step_timings.DRY_CASES[1], rivals=group) for group in step_timings.GROUPS)
    found = [step_timings.time_steps(each, CPU, dry=True) for each in (two, one)]
    assert list(found[0]["variants"]) == ["ours", "eager"]
    assert found[0]["missing"] == {"graphed": "OutOfMemoryError: out of memory, as it must"}
    assert list(found[1]["missing"]) == ["max-autotune"]
    line = table.table({"dry": True, "sections": {"step": {"status": "done", "figures": found}}})
    assert "graphed missing" in line and "times eager" in line
    # Ours may fail as well; the rivals' figures stand.
    monkeypatch.setattr(step_timings, "Ours", fails)
    alone = step_timings.time_steps(two, CPU, dry=True)
    assert list(alone["variants"]) == ["eager"]
    assert set(alone["missing"]) == {"ours", "graphed"}


@pytest.mark.serial
def test_a_limit_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="not ready after 0 s"), step_timings.within(0.05):
        while time.monotonic() - began < 10:
            sum(range(1000))
    with step_timings.within(0.05):
        pass
    with step_timings.within(float("inf")):
        pass
    time.sleep(0.1)  # nothing comes afterwards


# --------------------------------------------------------------------------------------------------------------- epoch


def test_covered_time() -> None:
    assert epochs.covered([]) == 0
    assert epochs.covered([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5


def test_epoch_section(stores: str) -> None:
    suite = dry_suite(stores)
    report, speed = figures_of(suite, "epoch")
    assert [report["recipe"], speed["recipe"]] == list(epochs.NAMES)
    assert report["images"] == 80, "of 100 images, 20% are left out by the report's split"
    assert speed["images"] == 100, "a speed run trains on all"
    for each in (report, speed):
        assert each["source"] == "shapes10" and each["loader"] == "resident"
        assert each["synchronisations"] is None, "nothing to wait for on a CPU"
        assert 0 <= each["gap_share"] < 1
        assert each["profiled_steps"] == each["steps"]
        assert each["images_per_second"] == pytest.approx(each["images"] / each["seconds"])
    projected = report["milliseconds_per_step"] / 1e3 * 200_000 + 1_010_000 / report["evaluated_images_per_second"]
    assert report["projected_run_seconds"] == pytest.approx(projected)
    assert "projected_run_seconds" not in speed
    text = table.table(suite.report)
    assert "projection of the report's whole run" in text and "epoch speed/94 on shapes10" in text


# --------------------------------------------------------------------------------------------------- the report's run


def test_report_best_section(stores: str) -> None:
    suite = dry_suite(stores)
    (found,) = figures_of(suite, "report_best")
    assert found["finished"] and found["epochs_done"] == 1
    assert found["wall_seconds"] > found["seconds"] > 0, "a process is more than its run"
    assert "report_best on shapes10: " in table.table(suite.report)


@pytest.mark.serial
def test_a_run_that_does_not_fit_is_ended(stores: str) -> None:
    began = time.monotonic()
    found = paper_run.run("shapes10", stores, "cpu", 1.0, dry=True)
    assert time.monotonic() - began < 30, "one second, and what a busy machine takes to end a process"
    assert not found["finished"] and found["epochs_done"] == 0
    text = table.table({"dry": True, "sections": {"report_best": {"status": "done", "figures": [found]}}})
    assert "0 of 1 epochs" in text


def test_a_run_that_fails_says_why(stores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_run, "_PROGRAM", "raise SystemExit('as it must')")
    with pytest.raises(suites.Failed, match="status 1: as it must"):
        paper_run.run("shapes10", stores, "cpu", 60.0, dry=True)
    monkeypatch.setattr(paper_run, "_PROGRAM", "import nowhere_to_be_found")
    with pytest.raises(suites.Skipped, match="needs nowhere_to_be_found"):
        paper_run.run("shapes10", stores, "cpu", 60.0, dry=True)


# ------------------------------------------------------------------------------------------------------------ speedrun


def test_speedrun_section(stores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def speedrun(recipe: Any, count: int, *, target: float, out: Path, device: str, quiet: bool) -> Any:
        calls.append(count)
        assert recipe.data.split == "none" and target == 0.94 and device == "cpu" and not out.exists()
        spread = None if count == 1 else 0.001
        summary = {
            "mean_accuracy": 0.9401,
            "sd_accuracy": spread,
            "interval_low": spread and 0.9395,
            "interval_high": spread and 0.9407,
            "mean_seconds": 2.5,
            "cold_seconds": 30.0,
        }
        return SimpleNamespace(facts=defaultdict(lambda: None, summary))

    monkeypatch.setitem(sys.modules, "fastres.experiments.speedrun.run", SimpleNamespace(speedrun=speedrun))  # type: ignore[arg-type]
    suite = dry_suite(stores)
    one, several = figures_of(suite, "speedrun")
    assert calls == [1, 2]
    assert (one["runs"], several["runs"]) == (1, 2)
    assert one["goal"] is None, "there is none on shapes10"
    text = table.table(suite.report)
    assert "speedrun on shapes10, n = 2: 94.01%, SD 0.10%, 95% interval 93.95% to 94.07%; 2.500 s a run" in text


def test_speedruns_that_are_not_there(stores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastres.experiments.speedrun.run", None)  # type: ignore[arg-type]
    suite = dry_suite(stores)
    assert suites.run(suite, ["speedrun"]) == 0
    assert suite.report["sections"]["speedrun"]["status"] == "skipped"


def test_runs_that_fit() -> None:
    # 90 of 100 s; 30 of the first call's 32.5 come again; 60 hold 24 runs of 2.5.
    assert speedruns.runs_that_fit(100.0, 32.5, 2.5) == 24
    assert speedruns.runs_that_fit(10.0, 32.5, 2.5) == 0
    assert speedruns.runs_that_fit(1e9, 32.5, 2.5) == speedruns.MOST_RUNS


# ------------------------------------------------------------------------------------------------------------ the rest


def test_images_are_named_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_suite.main(["--device", "cpu", "--data", "/nowhere/images.tar"])
    assert "no file or folder /nowhere/images.tar: give --data" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "status"), [("rich.console", "skipped"), ("fastres.nothing", "error")])
def test_a_package_that_is_not_installed(module: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "SECTIONS", {})

    @suites.section("imports", seconds=1)
    def imports(suite: suites.Suite) -> None:
        """Misses something: a package of others', or a part of this one."""
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    suite = suites.Suite(CPU, 1.0)
    assert suites.run(suite, ["imports"]) == (status == "error")
    entry = suite.report["sections"]["imports"]
    assert entry["status"] == status and module in entry["reason"]


def test_dry_rivals_stand_for_all() -> None:
    assert list(DRY_RIVALS) == list(RIVALS) == [name for group in step_timings.GROUPS for name in group]
