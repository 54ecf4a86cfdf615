"""The ground under the benchmarks: timing, counted bytes, and the GPU suite's dry run. No figure of a GPU."""

import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import sections as suites
from benchmarks.gpu import suite as gpu_suite
from benchmarks.kernels import cases as kernel_cases
from benchmarks.kernels import checks
from benchmarks.kernels import timings as kernel_timings
from benchmarks.suites.bench_kernels import figures
from fastres.bench.norms import PASSES
from fastres.bench.timing import DRY, Effort, compare, measure, sets_for_cold_cache

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SUITE = ROOT / "benchmarks" / "gpu_suite.py"
SHORT = Effort(rounds=9, target_seconds=2e-3, settle_seconds=0.0)


def work(count: int) -> int:
    return sum(range(count))


@pytest.mark.serial
def test_a_known_ratio_is_measured() -> None:
    calls = {"one": [lambda: work(20_000)], "four": [lambda: work(80_000)], "sets": [lambda: work(20_000)] * 5}
    timings = measure(calls, CPU, SHORT)
    ratio = compare(timings["one"].samples, timings["four"].samples)
    # Four times the additions; a factor of 2 either way leaves room for a machine that others use as well.
    assert 2 < ratio.median < 8
    assert ratio.low <= ratio.median <= ratio.high
    # Seconds are those of one call, however many sets of buffers there are. The same room.
    assert 0.5 < timings["sets"].seconds / timings["one"].seconds < 2
    assert timings["one"].method == "wall"
    low, high = timings["one"].quartiles
    assert 0 < low <= timings["one"].seconds <= high


def test_rounds_alternate() -> None:
    order: list[str] = []
    measure({name: [lambda name=name: order.append(name)] for name in "abc"}, CPU, DRY)
    assert "".join(order[-9:]) == "abc" + "cba" + "abc"


def test_results_of_one_round_through_the_sets_are_alive_together() -> None:
    class Result:
        pass

    alive: weakref.WeakSet[Result] = weakref.WeakSet()
    most = {"one": 0, "three": 0}

    def produce(name: str) -> Result:
        result = Result()
        alive.add(result)
        most[name] = max(most[name], len(alive))
        return result

    measure({"one": [lambda: produce("one")], "three": [lambda: produce("three")] * 3}, CPU, DRY)
    assert most == {"one": 1, "three": 3}


def test_compare_pairs_rounds() -> None:
    ratio = compare([1.0, 2.0, 4.0], [2.0, 6.0, 4.0])  # pairs 2, 3, 1
    assert (ratio.low, ratio.median, ratio.high) == (1.0, 2.0, 3.0)
    assert (ratio.seconds, ratio.rival_seconds) == (2.0, 4.0)


def test_sets_for_a_cold_cache() -> None:
    assert sets_for_cold_cache(10, 100) == 30
    assert sets_for_cold_cache(7, 100) == 43  # 300 / 7 = 42.9
    assert sets_for_cold_cache(1000, 100) == 1
    assert sets_for_cold_cache(1, 10**9) == 512


@pytest.mark.parametrize(
    ("join", "floor", "two_kernels"),
    # Tensors of 512·64·32·32 elements of 2 bytes, forward, backward, evaluation; the mask has 1/16 of their bytes.
    [
        ("none", (2, 3, 2), (3, 5, 2)),
        ("add", (3 + 1 / 16, 4 + 1 / 16, 3), (4 + 1 / 16, 6 + 1 / 16, 3)),
        ("dual", (3, 5, 3), (5, 8, 3)),
    ],
)
def test_bytes_by_hand(join: str, floor: tuple[float, ...], two_kernels: tuple[float, ...]) -> None:
    case = kernel_cases.Case(join, "relu", 512, 64, 32, 32)
    tensor = 67_108_864
    assert case.tensor_bytes == tensor
    for count, expected in ((case.floor_bytes, floor), (case.two_kernel_bytes, two_kernels)):
        forward, backward, evaluation = (round(tensors * tensor) for tensors in expected)
        assert [count(which) for which in PASSES] == [forward, backward, forward + backward, evaluation]


def test_a_mask_is_half_as_much_of_fp32() -> None:
    case = kernel_cases.Case("add", "relu", 2, 8, 4, 4, torch.float32)
    assert case.floor_bytes("forward") == 3 * 1024 + 256 // 8


def test_cases_are_the_report_networks() -> None:
    cases = list(kernel_cases.cases())
    assert len(set(cases)) == 4 * 4 * 4
    assert {(case.channels, case.height) for case in cases} == {(64, 32), (128, 16), (256, 8), (512, 4)}
    assert [case.batch for case in cases[:32]] == [512] * 16 + [20] * 16, "the most telling first"


@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize("join", ["none", "add", "dual"])
def test_every_variant_computes_the_same(join: str, retained: bool) -> None:
    case = kernel_cases.Case(join, "relu", 3, 13, 5, 4)
    found, missing = kernel_cases.variants(case, CPU, dry=True, retained=retained)
    assert list(found) == ["ours", "eager", "inductor", "inductor-cooperative"]
    assert list(missing) == ["cudnn"]
    for variant in found.values():
        assert checks.check(case, CPU, forward=variant.forward)["passed"]


def test_a_wrong_kernel_is_found() -> None:
    case = kernel_cases.Case("add", "relu", 3, 13, 5, 4)

    def off(problem: kernel_cases.Problem, training: bool) -> torch.Tensor:
        return kernel_cases.eager(problem, training) * 1.02  # bf16 rounds to 1 part in 256

    def undefined(problem: kernel_cases.Problem, training: bool) -> torch.Tensor:
        return kernel_cases.eager(problem, training) * float("nan")

    for forward in (off, undefined):
        found = checks.check(case, CPU, forward=forward)
        assert not found["passed"]
        assert {"training y", "eval y", "training x", "training other"} <= set(found["failures"])
    calls = iter(range(100))

    def unsteady(problem: kernel_cases.Problem, training: bool) -> torch.Tensor:
        # One unit of bf16 in one element: within any limit, but other bits.
        shift = torch.zeros_like(problem.x)
        shift[0, 0, 0, 0] = 2.0**-6 * next(calls)
        return kernel_cases.eager(problem, training) + shift

    assert not checks.check(case, CPU, forward=unsteady)["repeats"]


def test_records_of_a_case() -> None:
    case = kernel_cases.Case("add", "relu", 3, 16, 4, 4)
    records = list(kernel_timings.time_case(case, CPU, dry=True))
    assert [(each["pass"], each["cache"]) for each in records] == [
        (which, state) for which in PASSES for state in ("cold", "hot")
    ]
    for record in records:
        assert record["path"] == "torch"
        assert record["floor_bytes"] == case.floor_bytes(record["pass"])
        mine = record["variants"]["ours"]
        # The same numbers in other units: equal but for rounding in fp64.
        assert mine["floor_bytes_per_second"] * mine["microseconds"] == pytest.approx(1e6 * record["floor_bytes"])
        assert mine["share_of_copy"] * record["copy_bytes_per_second"] == pytest.approx(mine["floor_bytes_per_second"])
        assert all(each["ours_is_times_as_fast"] > 0 for name, each in record["variants"].items() if name != "ours")
        flat = figures(record)
        assert flat[f"{record['cache']}_ms"] == pytest.approx(mine["microseconds"] / 1e3)
        assert f"{record['cache']}_times_as_fast_as_inductor" in flat
    text = kernel_timings.table(records)
    assert len(text.splitlines()) == 3, "a heading, cold and hot"
    many = [{**record, "case": f"{index} {record['case']}"} for index in range(200) for record in records]
    assert len(kernel_timings.table(many, 5000)) < 5100, "what a terminal keeps is short"
    assert "more lines" in kernel_timings.table(many, 5000)


def test_dry_run_from_a_bare_checkout(tmp_path: Path) -> None:
    """As on a machine with torch and little else: the packages that fastres needs elsewhere cannot be imported."""
    absent = ["pydantic", "typer", "rich", "tomli_w", "pytest", "pytest_benchmark", "hypothesis", "numba", "matplotlib"]
    target = tmp_path / "out" / "suite.json"
    arguments = [str(SUITE), "--device", "cpu", "--minutes", "10", "--json", str(target)]
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"
        f"sys.argv[:] = {arguments}\n"
        f"runpy.run_path({str(SUITE)!r}, run_name='__main__')\n"
    )
    # -I: neither the current folder nor the user's packages; the suite finds its checkout by itself.
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dry run: no GPU figures\n")
    assert "bn_add_relu 3x16x4x4 bfloat16, cold" in done.stdout
    assert "s left] kernels: " in done.stderr
    report = json.loads(target.read_text())
    assert report["dry"] is True
    assert {name: entry["status"] for name, entry in report["sections"].items()} == {
        **dict.fromkeys(["machine", "ceilings", "correctness", "kernels", "launches"], "done"),
        "routing": "skipped",  # it launches kernels: see the next test
        **dict.fromkeys(["products", "augment"], "skipped"),
        **dict.fromkeys(["step", "speedrun", "epoch", "report_best", "loaders"], "skipped"),
        "pytest": "skipped",
    }
    recorded = [each for entry in report["sections"].values() for each in entry["figures"]]
    assert all(each["dry"] is True for each in recorded)
    assert report["sections"]["pytest"]["reason"] == "needs pytest, which is not installed"
    assert "pydantic" in report["sections"]["augment"]["reason"]
    assert len(report["sections"]["kernels"]["figures"]) == 4 * 4 * 2, "forms, passes, states of the cache"
    assert all(each["passed"] for each in report["sections"]["correctness"]["figures"])
    assert list(target.parent.iterdir()) == [target], "no temporary file stays"


def test_routing_times_what_fits_and_writes_a_table(tmp_path: Path) -> None:
    """In the interpreter, which knows nothing of speed: that it runs, and that the routing reads what it writes."""
    target = tmp_path / "suite.json"
    program = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(SUITE.parents[1])!r})\n"
        "from benchmarks.gpu import suite as gpu_suite\n"
        "from fastres.kernels.batch_norm import routing\n"
        f"status = gpu_suite.main(['--device', 'cpu', '--sections', 'routing', '--json', {str(target)!r}])\n"
        "plan = routing.plan(routing.Problem('backward', 'dual', 2, 48, 16, 132))\n"
        "print(json.dumps([status, plan.form, plan.sums.rows, plan.sums.columns]))\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(target.read_text())["sections"]["routing"]["figures"]
    assert [each["route"].split()[1] for each in figures] == ["bn_relu", "bn_add_relu", "dual_bn_add_relu"]
    for each in figures:
        assert each["failed"] == {}
        assert each["fastest"] == min(each["microseconds"], key=each["microseconds"].get)
        assert each["rule"] in each["microseconds"]
        assert len(each["microseconds"]) > 9, "resident and two-pass tiles of three widths"
    entry = figures[2]["entry"]
    assert (entry["rows"], entry["channels"], entry["second"]) == (48, 16, "dual")
    table = json.loads(target.with_name("routing.json").read_text())
    expected = {"measured_on": "dry run", "symmetric_rows": None, "entries": [each["entry"] for each in figures]}
    assert table == expected
    # What the process chooses afterwards is what it measured.
    assert json.loads(done.stdout.splitlines()[-1]) == [0, entry["form"], *entry["sums"][:2]]


def test_every_loader_feeds_a_network(tmp_path: Path) -> None:
    """On the CPU, with a tiny network: each loader's speed and the share of the time that was waited for it."""
    from fastres.data.loaders import choose

    target = tmp_path / "suite.json"
    command = [sys.executable, SUITE, "--device", "cpu", "--sections", "loaders", "--json", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(target.read_text())["sections"]["loaders"]["figures"]
    assert [each["loader"] for each in figures] == list(choose.KINDS)
    for each in figures:
        if choose.installed(each["loader"]):
            assert each["images_per_second"] > 0
            assert 0 <= each["input_stall"] < 1
            assert f"loader {each['loader']}: " in done.stdout
        else:
            assert "not installed" in each["missing"]


def test_augmentation_is_checked_and_timed(tmp_path: Path) -> None:
    """In the interpreter, with no more packages than the section asks for."""
    target = tmp_path / "suite.json"
    arguments = ["--device", "cpu", "--sections", "augment", "--json", str(target)]
    absent = ["typer", "rich", "tomli_w", "pytest", "numba", "matplotlib"]
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"
        "from benchmarks.gpu import suite as gpu_suite\n"
        f"sys.exit(gpu_suite.main({arguments}))\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    checked, timed = json.loads(target.read_text())["sections"]["augment"]["figures"]
    assert (checked["differing_values"], checked["passed"]) == (0, True)
    assert timed["missing"] == {}
    assert list(timed["variants"]) == ["ours", "torchvision"]
    # 3 bytes are read and written of each of 3·32·32 values of two images, and the time is that of one call.
    mine = timed["variants"]["ours"]
    assert timed["floor_bytes"] == 2 * 3072 * 3
    assert mine["images_per_second"] * mine["microseconds"] == pytest.approx(2e6)
    assert "as the reference" in done.stdout and "of the copy rate" in done.stdout


def test_symmetric_products_are_timed_and_the_table_learns_from_which_size_on(tmp_path: Path) -> None:
    """In the interpreter: that it runs, is as exact as whole products, and changes nothing else of the table."""
    target = tmp_path / "suite.json"
    command = [sys.executable, str(SUITE), "--device", "cpu", "--sections", "products", "--json", str(target)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(target.read_text())["sections"]["products"]["figures"]
    assert figures["passed"] and set(figures["microseconds"]) == {"symmetric", "whole", "orthogonalise"}
    table = json.loads(target.with_name("routing.json").read_text())
    # The interpreter is slower by orders of magnitude.
    assert figures["symmetric_is_times_as_fast"] < 1
    assert table == {"measured_on": "dry run", "symmetric_rows": None, "entries": []}
    assert "products 2x20x50" in done.stdout


def test_the_least_size_that_wins() -> None:
    from benchmarks.kernels.muon_products import least_rows

    def figures(*ratios: float) -> list[dict[str, Any]]:
        return [
            {"rows": rows, "symmetric_is_times_as_fast": ratio}
            for rows, ratio in zip((64, 256, 512), ratios, strict=True)
        ]

    assert least_rows(figures(0.9, 1.1, 1.2)) == 256
    assert least_rows(figures(1.1, 0.9, 1.2)) == 512
    assert least_rows(figures(1.1, 1.1, 1.2)) == 64
    assert least_rows(figures(1.1, 1.1, 0.9)) is None


@pytest.mark.serial
def test_a_killed_run_leaves_whole_json(tmp_path: Path) -> None:
    target = tmp_path / "suite.json"
    command = [sys.executable, str(SUITE), "--device", "cpu", "--json", str(target)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not target.exists() or "kernels" not in json.loads(target.read_text())["sections"]:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
    finally:
        process.kill()
        process.wait()
    sections = json.loads(target.read_text())["sections"]
    assert sections["correctness"]["status"] == "done"
    assert sections["correctness"]["figures"]


def test_a_failing_section_is_recorded_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "SECTIONS", dict(suites.SECTIONS))
    target = tmp_path / "suite.json"

    @suites.section("breaks", seconds=1)
    def breaks(suite: suites.Suite) -> None:
        """Raises."""
        suite.record({"found": float("nan"), "limits": [float("inf"), 1.0]})
        raise ZeroDivisionError("as it must")

    @suites.section("wrong", seconds=1)
    def wrong(suite: suites.Suite) -> None:
        """Finds something."""
        raise suites.Failed("2 of 3")

    @suites.section("after", seconds=1)
    def after(suite: suites.Suite) -> None:
        """Sees what the others left."""
        before = json.loads(target.read_text())["sections"]
        suite.record({"seen": {name: entry["status"] for name, entry in before.items()}})

    suite = suites.Suite(CPU, 1.0, target)
    assert suites.run(suite, ["breaks", "wrong", "after"]) == 1
    sections = json.loads(target.read_text())["sections"]
    assert sections["breaks"]["status"] == "error"
    assert "ZeroDivisionError: as it must" in sections["breaks"]["traceback"]
    assert sections["breaks"]["figures"] == [{"found": "nan", "limits": ["inf", 1.0], "dry": True}]
    assert (sections["wrong"]["status"], sections["wrong"]["reason"]) == ("failed", "2 of 3")
    assert sections["after"]["status"] == "done"
    assert sections["after"]["figures"][0]["seen"] == {"breaks": "error", "wrong": "failed"}
    assert "as it must" in gpu_suite.table(suite.report)


@pytest.mark.serial
def test_what_does_not_fit_into_the_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "SECTIONS", {})
    done: list[int] = []

    @suites.section("half", seconds=1, share=0.5)
    def half(suite: suites.Suite) -> None:
        """Takes cases of 0.1 s as long as half the time lasts."""
        for case in suite.while_time(list(range(100))):
            done.append(case)
            time.sleep(0.1)

    @suites.section("late", seconds=1)
    def late(suite: suites.Suite) -> None:
        """Never runs."""
        raise AssertionError

    began = time.monotonic()
    suite = suites.Suite(CPU, 1.5 / 60, tmp_path / "suite.json")
    assert suites.run(suite, ["half", "late"]) == 0
    # Half of 1.5 s; the room above it is for a machine that others use as well.
    assert time.monotonic() - began < 1.4
    assert 1 <= len(done) <= 7, "0.75 s have room for no more"
    sections = suite.report["sections"]
    assert sections["half"]["status"] == "cut short"
    assert sections["half"]["figures"][-1]["left_out"] == [str(case) for case in range(len(done), 100)]
    assert sections["late"]["status"] == "skipped"
    assert "were left" in sections["late"]["reason"]


def call(*arguments: str, script: Path = SUITE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=60)


def test_list_and_mistakes(tmp_path: Path) -> None:
    listed = call("--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(gpu_suite.SECTIONS)
    wrong = call("--sections", "machine,kernel")
    assert wrong.returncode == 2
    assert "no section 'kernel'" in wrong.stderr
    folder = call("--device", "cpu", "--sections", "machine", "--json", str(tmp_path))
    assert folder.returncode == 2
    assert folder.stderr.splitlines()[-1].endswith("it is a folder: give the name of a file")


def test_a_missing_link_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "benchmarks" / "gpu_suite.py"
    copy.parent.mkdir()
    copy.write_bytes(SUITE.read_bytes())
    done = call("--device", "cpu", script=copy)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "ln -sfn ../kernels fastres/kernels" in done.stderr


def test_files_with_gpu_tests(tmp_path: Path) -> None:
    marker = "pytest." + "mark.gpu"  # apart, or the suite would take this file for one
    (tmp_path / "deep").mkdir()
    (tmp_path / "test_plain.py").write_text("def test() -> None: ...\n")
    for path in (tmp_path / "test_one.py", tmp_path / "deep" / "test_two.py"):
        path.write_text(f"import pytest\n\n@{marker}\ndef test() -> None: ...\n")
    assert [path.name for path in gpu_suite.files_marked_gpu(tmp_path)] == ["test_two.py", "test_one.py"]
