"""The regression gate: its rule on made-up noise, its baseline, its processes; with -m slow, planted slowdowns."""

import json
import math
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gate import baselines, gate, power
from benchmarks.suites.bench_step import paper_configuration
from fastres.recipe import Recipe

# A network that takes a few milliseconds a step, without compilation.
TINY = [*gate.SETTINGS, "model.channels=[8,8,16,32]", "train.compile=false", "train.precision=fp32"]


def fours(slowdown: float, spread: float, seed: int) -> Callable[[], float]:
    """Ratios of a tree that is slower by the share `slowdown`: log-normal noise, and now and then a turn that takes
    thrice as long on one side or the other."""
    chance = random.Random(seed)

    def four() -> float:
        noise = math.exp(chance.gauss(0, spread))
        disturbed = chance.choice((1.5, 1 / 1.5)) if chance.random() < 0.1 else 1.0
        return (1 + slowdown) * noise * disturbed

    return four


@pytest.mark.parametrize(
    ("slowdown", "spread", "slower", "least"),
    [(0.0, 0.03, False, 198), (0.10, 0.03, True, 198), (0.0, 0.10, False, 190), (0.20, 0.10, True, 190)],
)
def test_the_rule_on_noise(slowdown: float, spread: float, slower: bool, least: int) -> None:
    rule = gate.Rule()
    said = [gate.decide(fours(slowdown, spread, seed), rule)[1] for seed in range(200)]
    # At the limit itself each verdict errs in 1%; these lie one or more spreads of a median of 60 from it.
    assert said.count(slower) >= least


def test_a_verdict_errs_as_rarely_as_it_says() -> None:
    """At exactly the limit: the only place where both verdicts are wrong, and where they are likeliest."""
    rule = gate.Rule()
    ends = [gate.decide(fours(rule.limit - 1, 0.05, seed), rule) for seed in range(2000)]
    for verdict in (True, False):
        wrong = sum(decided and slower is verdict for _, slower, decided in ends)
        # 20 are expected at most; a binomial count has an SD of 4.4 there.
        assert wrong <= 20 + 3 * 4.4


@given(st.lists(st.floats(0.5, 2, exclude_min=True), min_size=1, max_size=60))
def test_the_interval_holds_the_median(ratios: list[float]) -> None:
    low, high = gate.interval(ratios)
    assert low <= statistics.median(ratios) <= high
    assert {low, high} <= {*ratios}


def test_probabilities_by_hand() -> None:
    assert gate.at_least(10, 10) == 1 / 1024
    assert gate.at_least(2, 3) == 0.5
    assert gate.at_least(0, 7) == 1
    # Of ten values the second and the ninth miss the median with probability 2 · (1 + 10) / 1024 = 2.1%; the third and
    # the eighth with 2 · (1 + 10 + 45) / 1024 = 10.9%.
    assert gate.interval([float(value) for value in range(10)]) == (1.0, 8.0)
    # All ten above: 1/1024 ≤ 0.01 / 6. Nine of ten: 11/1024 is more.
    assert gate.verdict([1.06] * 10, gate.Rule()) is True
    assert gate.verdict([1.04] * 10, gate.Rule()) is False
    assert gate.verdict([1.06] * 9 + [1.0], gate.Rule()) is None


def test_the_baseline(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "fastres").mkdir()
    (tmp_path / "fastres" / "kernels").symlink_to("../kernels")
    (tmp_path / "kernels" / "a.py").write_text("1")
    commits = []
    for text in ("1", "2"):
        (tmp_path / "fastres" / "b.py").write_text(text)
        git("add", ".")
        git("commit", "--quiet", "--message", text)
        commits.append(git("rev-parse", "HEAD"))
    assert gate.baseline_of(None, tmp_path) == commits[0], "nothing has changed since the last commit"
    (tmp_path / "other.txt").write_text("not the package")
    assert gate.baseline_of(None, tmp_path) == commits[0]
    (tmp_path / "fastres" / "b.py").write_text("3")
    assert gate.baseline_of(None, tmp_path) == commits[1]
    assert gate.baseline_of("HEAD~1", tmp_path) == commits[0]
    place = gate.check_out(commits[0], tmp_path / "out", tmp_path)
    assert (place / "fastres" / "b.py").read_text() == "1"
    assert (place / "fastres" / "kernels" / "a.py").read_text() == "1"
    with pytest.raises(gate.GateError, match="nowhere"):
        gate.baseline_of("nowhere", tmp_path)
    with pytest.raises(gate.GateError, match="not a git repository"):
        gate.baseline_of(None, Path("/"))


@pytest.mark.slow
def test_both_processes(tmp_path: Path) -> None:
    """Every part is timed on both sides, each by its own fastres."""
    recipe = Recipe.load(gate.RECIPE, TINY)
    with gate.opened(gate.ROOT, recipe, checkout=power.plant(tmp_path), rule=gate.Rule(looks=(2,))) as sides:
        for part in gate.PARTS:
            finding = sides.compare(part)
            assert finding.fours == 2 and not finding.decided, "two fours decide nothing"
            assert finding.seconds > 0 and finding.baseline_seconds > 0 and finding.images > 0
        assert gate.against_rival(sides.sides[1], paper_configuration(recipe, 20).run, fours=1) > 0


@pytest.mark.parametrize(("idle", "free"), [(2.0, 2), (1.6, 2), (1.4, 1), (0.2, 1), (None, 3)])
def test_threads_find_a_core_each(idle: float | None, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three threads, by how long the cores were idle in a second."""
    monkeypatch.setattr(gate.torch, "get_num_threads", lambda: 3)
    seen = iter([None, None] if idle is None else [100.0, 100.0 + idle])
    clock = iter([5.0, 6.0])
    monkeypatch.setattr(gate, "_idle_seconds", lambda: next(seen))
    monkeypatch.setattr(gate.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(gate.time, "perf_counter", lambda: next(clock))
    assert gate.free_cores() == free


def test_the_committed_log_of_verdicts() -> None:
    """Slower by 10% alone on the machine and by 20% beside another process is found, and nothing where nothing is."""
    report = json.loads((gate.ROOT / "benchmarks" / "results" / "gate-power.json").read_text())
    assert [(case["machine"], case["planted"]) for case in report["cases"]] == list(power.CASES)
    for case in report["cases"]:
        right = [run["slower"] == (case["planted"] > 0) for run in case["runs"]]
        assert len(right) == 20 and sum(right) == case["right"] >= 18


@pytest.mark.serial
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc/stat")
def test_the_cores_idle_time_is_read() -> None:
    began, before = time.perf_counter(), gate._idle_seconds()
    time.sleep(0.3)
    after = gate._idle_seconds()
    assert before is not None and after is not None
    # The kernel counts in ticks of 10 ms, of each core and state.
    most = (time.perf_counter() - began + 0.02) * len(os.sched_getaffinity(0))
    assert 0 <= after - before <= most


def test_what_counts_as_the_same() -> None:
    right = {part: {"computed": [1.0, 2.0]} for part in gate.PARTS}
    gate.check_same(right, {part: {"computed": [1.005, 1.99]} for part in gate.PARTS})
    for wrong in ([1.0, 2.1], [1.0], [1.0, float("nan")]):
        with pytest.raises(gate.GateError, match=r"loader: the working tree computes .* there is nothing to time"):
            gate.check_same(right, right | {"loader": {"computed": wrong}})


@pytest.mark.slow
def test_sides_that_compute_different_numbers(tmp_path: Path) -> None:
    copy = power.plant(
        tmp_path, "\n_call = Step.__call__\nStep.__call__ = lambda *a, **b: [2 * each for each in _call(*a, **b)]\n"
    )
    recipe = Recipe.load(gate.RECIPE, TINY)
    with (
        pytest.raises(gate.GateError, match=r"epoch: the working tree computes .* there is nothing to time"),
        gate.opened(gate.ROOT, recipe, checkout=copy),
    ):
        pass


@pytest.mark.slow
def test_a_side_that_does_not_start(tmp_path: Path) -> None:
    copy = power.plant(tmp_path, "\nraise RuntimeError('no such part')\n")
    recipe = Recipe.load(gate.RECIPE, TINY)
    with (
        pytest.raises(gate.GateError, match=r"ended: RuntimeError: no such part"),
        gate.opened(gate.ROOT, recipe, checkout=copy),
    ):
        pass


def test_stored_figures(tmp_path: Path) -> None:
    assert baselines.beside("epoch", 100.0, tmp_path) == {}
    path = tmp_path / f"{baselines.machine_class()}.json"
    path.write_text('{"images_per_second": {"epoch": 200.0}}')
    assert baselines.beside("epoch", 100.0, tmp_path) == {"stored_images_per_second": 200.0, "of_the_stored": 0.5}
    assert baselines.beside("step", 100.0, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.15])
def test_a_planted_slowdown(share: float, tmp_path: Path) -> None:
    """The report's step, compiled. benchmarks/gate/power.py does so twenty times, idle and loaded."""
    finding, _ = power.judged(power.plant(tmp_path), share, Recipe.load(gate.RECIPE, gate.SETTINGS), "step")
    assert finding.slower == (share > 0), finding.text
