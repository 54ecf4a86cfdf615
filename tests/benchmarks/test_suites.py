"""The pytest suites of benchmarks/: what is wrong is refused and not reported; what is reported was measured."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks import conftest
from benchmarks.harness.versus import Same, Side
from benchmarks.rivals import plain
from benchmarks.suites import (
    bench_accuracy,
    bench_augment,
    bench_checkpoint,
    bench_epoch,
    bench_evaluation,
    bench_loaders,
    bench_start,
    bench_step,
    epoch_variants,
)
from fastres.augment import Augment
from fastres.bench.timing import Ratio
from fastres.data import Dataset, open_dataset
from fastres.data.loaders import ResidentLoader
from fastres.evaluation.evaluator import Evaluator
from fastres.runs import checkpoint
from fastres.training.step import Step

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PLANTED = """
import pytest
from benchmarks.harness.versus import Side
from benchmarks.harness.sameness import near

def side(value, times=1):
    return Side(lambda: sum(range(20_000 * times)), outcome=lambda: {"sum": value})

@pytest.mark.parametrize(("ours", "rival"), [(1.0, 1.0), (1.0, 1.1), (0.9, 1.0), (float("nan"), 1.0)])
def test_planted(ours, rival, versus):
    versus(side(ours), side(rival, 4), same=near(sum=1e-3), rounds=9, against="four times the additions", bytes=1)

def test_too_slow(versus):
    versus(side(1.0, 4), side(1.0), same=near(sum=0), rounds=5, against="a quarter", at_least=1)

@pytest.mark.full
def test_full(versus):
    raise AssertionError
"""


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in the root of the repository."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}  # a worker's
    environment["OMP_NUM_THREADS"] = "1"
    environment.pop("FASTRES_TEST_DATA", None)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)


def test_what_differs_is_refused_before_it_is_timed(tmp_path: Path) -> None:
    """With pytest-benchmark itself, on a suite that is wrong on purpose."""
    suite, target = tmp_path / "bench_planted.py", tmp_path / "results.json"
    suite.write_text(PLANTED)
    done = run_pytest(
        "--benchmark-only",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "conftest",
        "-p",
        "benchmarks.conftest",
        f"--save-results={target}",
        f"--benchmark-json={tmp_path / 'benchmark.json'}",
        str(suite),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 failed, 1 passed, 1 skipped" in done.stdout
    assert "sum: ours and the rival's are 0.091 apart, and at most 0.001 is allowed" in done.stdout
    assert "ask with --full" in done.stdout
    # A rival that is too slow is a failure with a record; a wrong one has none.
    figures = json.loads(target.read_text())["figures"]
    assert set(figures) == {"planted[1.0-1.0]", "too_slow"}
    assert "times as fast as a quarter: less than 1" in done.stdout
    right = figures["planted[1.0-1.0]"]
    # Four times the additions; a factor of 2 either way leaves room for a machine that others use as well.
    assert 2 < right["ratio"] < 8
    low, high = right["ratio_quartiles"]
    assert low <= right["ratio"] <= high
    assert (right["against"], right["bytes"]) == ("four times the additions", 1)
    (info,) = [
        each["extra_info"]
        for each in json.loads((tmp_path / "benchmark.json").read_text())["benchmarks"]
        if each["name"] == "test_planted[1.0-1.0]"
    ]
    assert info["ratio"] == right["ratio"]
    assert info["versions"]["torch"] == torch.__version__


def test_the_root_runs_the_benchmarks_on_demand(tmp_path: Path) -> None:
    """All that is new, from `pytest --benchmark-only` in the root to the tables, the JSON and the figure."""
    target = tmp_path / "results.json"
    wanted = "test_epoch or torch or evaluation or checkpoint or accuracy or (against_the_reports and 20)"
    done = run_pytest("--benchmark-only", "--dry", "-k", wanted, f"--save-results={target}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not one of the ten minutes' subset: ask with --full" in done.stdout
    figures = json.loads(target.read_text())["figures"]
    assert {entry["suite"] for entry in figures.values()} == {
        *("bench_epoch", "bench_evaluation", "bench_checkpoint", "bench_accuracy", "bench_step", "bench_loaders")
    }
    assert all(entry["dry"] for entry in figures.values())
    for name, entry in figures.items():
        assert entry["ratio"] > 0 and entry["peak_bytes"] is not None, name
    for entry in (each for each in figures.values() if each["suite"] == "bench_epoch"):
        # The parts are shares of one time: they add up but for rounding in fp64.
        assert sum(entry["parts"].values()) == pytest.approx(entry["epoch_seconds"])
        # Each of them has been found; a tiny network's optimizer takes 1% of a step.
        assert all(entry["parts"][part] > 0 for part in ("augmentation", "forward", "backward", "optimizer"))
        assert entry["epoch_seconds"] == pytest.approx(entry["epoch_images"] / entry["images_per_second"])
        assert 0 < entry["share_of_ceiling"] < 1
    with Image.open(tmp_path / "results-epoch.png") as picture:
        assert picture.width == 1120
    table = done.stdout[done.stdout.index("--- epoch") : done.stdout.index("-- benchmark:")]
    assert "plain PyTorch" in table and "host" not in table


def test_without_the_option_the_root_runs_the_tests() -> None:
    done = run_pytest("--collect-only", "-q", "--ignore-glob=tests/[!e]*", "--ignore-glob=tests/e[!n]*")
    assert "tests/engine/test_memory.py" in done.stdout
    assert "bench_" not in done.stdout


# ------------------------------------------------------------------------------------------- plants in every suite


class Agreed(Exception):
    """Both sides computed the same."""


class Compared:
    """Stands where `Versus` would: compares the outcomes, and times nothing."""

    dry, full = True, False

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.request = request

    def __call__(self, ours: Any, rival: Any, *, same: Same, **_: Any) -> Ratio:
        sides = [side if isinstance(side, Side) else Side(side) for side in (ours, rival)]
        same(*((side.outcome or side.run)() for side in sides))
        raise Agreed


@pytest.fixture(scope="module")
def shapes(data_root: Path) -> Dataset:
    return open_dataset("shapes10", root=data_root, quiet=True)


def suites(versus: Any, dataset: Dataset, root: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """A case of each suite."""
    small = torch.from_numpy(dataset.train.images[:600].copy())  # type: ignore[union-attr]
    return {
        "step": lambda: bench_step.test_step_against_the_reports(20, versus, True),
        "convolutions": lambda: bench_step.test_step_against_its_convolutions(versus, True),
        "save": lambda: bench_checkpoint.test_save("durable", versus, folder, True),
        "restore": lambda: bench_checkpoint.test_restore(versus, folder, True),
        "network": lambda: bench_checkpoint.test_load_network(versus, folder, True),
        "store": lambda: bench_checkpoint.test_open_store(versus, root),
        "evaluation": lambda: bench_evaluation.test_evaluation("translate", "shapes10", root, versus, True),
        "accuracy": lambda: bench_accuracy.test_time_to_accuracy(root, versus, True),
        "epoch": lambda: bench_epoch.test_epoch(epoch_variants.Variant(), "shapes10", root, versus, True),
        "factor": lambda: bench_epoch.test_factor(
            epoch_variants.Variant(augmentation="CutMix"), "shapes10", root, versus, True
        ),
        "stock": lambda: bench_epoch.test_factor(epoch_variants.Variant(fused=False), "shapes10", root, versus, True),
        "loader": lambda: bench_loaders.test_decoded("resident", dataset, versus),
        "augment": lambda: bench_augment.test_augment("simple", small, versus),
        "augment report": lambda: bench_augment.test_augment("report_mixed", small, versus),
        "mixing": lambda: bench_augment.test_augment("simple_mixed", small, versus),
        "start": lambda: bench_start.test_import(versus),
    }


def test_no_benchmark_demands_seconds() -> None:
    """A machine that is busy, or another one, takes longer: what is demanded is a ratio of two that took turns."""
    left = [
        f"{path.name}:{node.lineno}: {ast.unparse(compared)}"
        for path in (ROOT / "benchmarks").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
        for compared in ast.walk(node.test)
        if isinstance(compared, ast.Compare) and "seconds" in ast.unparse(compared)
    ]
    assert not left


def test_other_work_of_the_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reporter:
        lines: ClassVar[list[str]] = []

        def section(self, title: str) -> None:
            self.lines.append(title)

        def write_line(self, line: str) -> None:
            self.lines.append(line)

    monkeypatch.setattr(conftest, "FIGURES", {"a": {"suite": "bench_x", "value": 1.0}})
    for busy, expected in ((None, []), ("this machine is busy", ["this machine is busy"])):
        Reporter.lines.clear()
        monkeypatch.setattr(conftest, "BUSY", busy)
        conftest.pytest_terminal_summary(Reporter())
        assert Reporter.lines[1 : 1 + len(expected)] == expected and len(Reporter.lines) > 2
        assert ("this machine is busy" in Reporter.lines) == bool(busy)


Change = Callable[[Any], Any]
"""Makes of a function or a value a wrong one."""


def larger(function: Any) -> Any:
    """Its result a tenth larger: what is found need not be more."""
    return lambda *arguments, **options: function(*arguments, **options) * 1.1


def quicker(kind: Any) -> Any:
    """An optimizer with a rate that is a tenth too high."""
    return lambda parameters, lr, **options: kind(parameters, lr=1.1 * lr, **options)


def one_off(load: Any) -> Any:
    """A checkpoint in which one number is another."""

    def wrong(*arguments: Any, **options: Any) -> Any:
        state = load(*arguments, **options)
        state["network"]["fc.bias"][3] += 2**-20
        return state

    return wrong


def other_bias(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights of which one is another."""
    return {**weights, "fc.bias": weights["fc.bias"] + 2**-20}


def without_momentum(save: Any) -> Any:
    """A checkpoint that lacks something."""
    return lambda path, state: save(path, {**state, "optimizer": {**state["optimizer"], "state": {}}})


def other_classifier(stock: Any) -> Any:
    """A network that differs in one layer."""

    def wrong(*arguments: Any) -> Any:
        network = stock(*arguments)
        network.fc.bias.data[3] += 1
        return network

    return wrong


def with_other_classifier(restart: Any) -> Any:
    """A training that starts from it."""

    def wrong(self: Step, network: Any, seed: int) -> None:
        restart(self, network, seed)
        self.network.fc.bias.data[3] += 1  # type: ignore[union-attr, operator]

    return wrong


def unmixed_with_half_labels(mixup: Any) -> Any:
    """Mixing of labels alone."""
    return lambda num_classes: lambda images, labels: (images, 0.5 * F.one_hot(labels, num_classes))


def first_twice(order: Any) -> Any:
    """Rows, the second of which is the first once more."""

    def wrong(*arguments: Any, **options: Any) -> Any:
        rows = order(*arguments, **options)
        rows[1] = rows[0]
        return rows

    return wrong


def brighter(augment: Any) -> Any:
    """Mixed images of another colour."""

    def wrong(*arguments: Any) -> Any:
        mixed = augment(*arguments)
        return mixed._replace(images=mixed.images + 0.1)

    return wrong


def unmoved(augment: Any) -> Any:
    """Augmentation that does nothing."""
    return lambda self, images, indices, epoch, rows: self.normalize(images, rows)


PLANTS: list[tuple[str, str, Any, str, Change]] = [
    ("step", "ours", Step, "_factor", larger),
    ("step", "rival", torch.optim, "SGD", quicker),
    ("convolutions", "ours", Step, "_factor", larger),
    ("convolutions", "rival", bench_step, "distance", lambda old: lambda *tensors: old(*tensors) + 0.01),
    ("save", "ours", checkpoint, "save", without_momentum),
    ("save", "rival", bench_checkpoint.RIVALS, "durable", lambda old: (without_momentum(old[0]), old[1])),
    ("restore", "ours", checkpoint, "load", one_off),
    ("restore", "rival", torch, "load", one_off),
    ("network", "ours", checkpoint, "load_weights", lambda old: lambda path: (other_bias(old(path)[0]), None)),
    ("network", "rival", bench_checkpoint, "load_file", lambda old: lambda path: other_bias(old(path))),
    ("store", "ours", bench_checkpoint, "open_store", lambda old: lambda *given: replace(old(*given), train=None)),
    ("evaluation", "ours", Evaluator, "logits", larger),
    ("evaluation", "rival", plain, "_with_mirror", lambda old: lambda network, images: network(images)),
    ("accuracy", "ours", Evaluator, "logits", larger),
    ("accuracy", "rival", plain, "stock", other_classifier),
    ("epoch", "ours", Step, "restart", with_other_classifier),
    ("epoch", "rival", plain, "stock", other_classifier),
    ("factor", "ours", Augment, "__call__", brighter),
    ("factor", "rival", Augment, "augment", unmoved),
    ("stock", "ours", plain, "stock", other_classifier),
    ("loader", "ours", ResidentLoader, "epoch_rows", first_twice),
    ("loader", "rival", torch, "randperm", first_twice),
    ("augment", "ours", Augment, "augment", unmoved),
    ("augment", "rival", bench_augment.v2, "RandomCrop", lambda old: lambda size, padding: old(size, padding + 2)),
    ("augment report", "ours", Augment, "augment", unmoved),
    ("augment report", "rival", plain.transforms, "RandomGrayscale", lambda old: lambda p: old(p + 0.2)),
    ("mixing", "rival", bench_augment.v2, "MixUp", unmixed_with_half_labels),
    ("start", "ours", bench_start, "__version__", lambda old: f"{old}+other"),
]


@pytest.mark.parametrize("suite", sorted({plant[0] for plant in PLANTS}))
def test_every_suite_finds_what_is_planted(
    suite: str,
    shapes: Dataset,
    data_root: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is, both sides agree; with a wrong one of either kind they do not."""
    run = suites(Compared(request), shapes, str(data_root), tmp_path)[suite]
    torch.manual_seed(0)
    with pytest.raises(Agreed):
        run()
    for _, _, owner, name, change in (plant for plant in PLANTS if plant[0] == suite):
        with monkeypatch.context() as patch:
            if isinstance(owner, dict):
                patch.setitem(owner, name, change(owner[name]))
            else:
                patch.setattr(owner, name, change(getattr(owner, name)))
            with pytest.raises(AssertionError):
                run()  # raises Agreed where the wrong side is not found
