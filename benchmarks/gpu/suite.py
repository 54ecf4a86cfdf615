"""All measurements that need a GPU, in one command that ends in time:

    python benchmarks/gpu_suite.py --minutes 8 --json out.json --data cifar10.tar.xz

Without --data and without $FASTRES_TEST_DATA, the sections that train take shapes10. `routing` writes `routing.json`
beside the JSON: copied to kernels/batch_norm/, it is what the kernels choose by. Needs torch, triton and numpy, and no
installation of fastres; it runs from a checkout, and a section that needs more is skipped, with the reason on record.
Sections run in the order of this file, each for as long as its share of the time allows; the JSON is whole after every
case. `--device cpu` runs the same code on tiny shapes to see that it runs: its figures say nothing about a GPU and are
marked as such. Exit status: 0; 1 when a section failed; 2 for a mistake in the call.

To add a section, write a function that takes a Suite and puts its figures on record, and decorate it with `section`.
"""

import argparse
import faulthandler
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.sections import SECTIONS, Failed, Skipped, Suite, requires, run, section
from benchmarks.gpu.table import table
from benchmarks.kernels import cases as kernel_cases
from benchmarks.kernels import checks, routing, timings
from fastres.bench import ceilings
from fastres.bench.norms import Case
from fastres.bench.timing import DRY, GPU
from fastres.engine.cuda_graph import side_stream
from fastres.errors import UserError

ROOT = Path(__file__).parents[2]
DATA = "FASTRES_TEST_DATA"
"""Environment variable with the path of images to train on."""
_HANG_SECONDS = 45.0
"""A section that runs so far beyond the time given hangs, in a kernel perhaps: the process ends with its stack."""


@section("machine", seconds=5)
def machine(suite: Suite) -> None:
    """GPU, driver, versions."""
    suite.record(ceilings.machine(suite.device))


@section("ceilings", seconds=15)
def measure_ceilings(suite: Suite) -> None:
    """Copy rates at the sizes of the kernels' tensors and at 1 GiB, an empty kernel's cost, matrix products."""
    effort = DRY if suite.dry else GPU
    sizes = sorted({case.tensor_bytes for case in cases_of(suite)} | ({2**16} if suite.dry else {ceilings.LARGE_BYTES}))
    for size in suite.while_time(sizes):
        for state in timings.CACHES:
            with side_stream(suite.device):
                rate, timing = ceilings.copy_rate(size, suite.device, cold=state == "cold", effort=effort)
            figures = {"what": "copy", "bytes": size, "cache": state, "bytes_per_second": rate}
            suite.record(figures | timing.facts())
    with side_stream(suite.device):
        timing = ceilings.empty_kernel(suite.device, effort)
    suite.record({"what": "empty kernel", **timing.facts()})
    for precision in suite.while_time(list(ceilings.PRECISIONS)):
        with side_stream(suite.device):
            suite.record(ceilings.matrix_rate(precision, suite.device, effort=effort))


@section("correctness", seconds=20, share=0.3)
def correctness(suite: Suite) -> None:
    """Every form, activation and type against float64, bitwise repeat, capture and replay."""
    cases = list(checks.cases())
    failures = 0
    if suite.dry:
        cases = [case for case in cases if case.batch < 20][::7]
    for case in suite.while_time(cases):
        found = checks.check(case, suite.device)
        suite.record(found)
        if not found["passed"]:
            failures += 1
            suite.say(f"    {case.name} FAILED: {found['failures'] or 'bits differ'}")
    if failures:
        raise Failed(f"{failures} cases beyond their limit")


@section("routing", seconds=60, share=0.35)
def measure_routing(suite: Suite) -> None:
    """Every form and tile at the report network's shapes; the kernels section then runs on the fastest."""
    suite.needs_kernels()
    routes = list(routing.routes())
    if suite.dry:
        routes = [routing.Route(case, "backward") for case in cases_of(suite)[:3]]
    entries = []
    for route in suite.while_time(routes):
        found = routing.time_route(route, suite.device, DRY if suite.dry else routing.EFFORT)
        suite.record(found)
        entries.append(found["entry"])
    if entries and suite.json is not None:
        device_name = "dry run" if suite.dry else torch.cuda.get_device_name()
        routing.write_table(suite.json.with_name("routing.json"), device_name, entries=entries)


@section("kernels", seconds=30, share=0.8)
def kernels(suite: Suite) -> None:
    """Ours against eager, cuDNN and Inductor at the report network's shapes."""
    wrong: list[str] = []
    for case in suite.while_time(cases_of(suite)):
        suite.say(f"    {case.name}")
        for found in timings.time_case(case, suite.device, dry=suite.dry):
            suite.record(found)
            if "ours" in found["missing"]:
                wrong.append(f"{case.name} {found['pass']}: {found['missing']['ours']}")
    if wrong:
        raise Failed("; ".join(wrong))


@section("products", seconds=15, share=0.3)
def products(suite: Suite) -> None:
    """Muon's products: symmetric ones against whole ones, and from which size on they are taken."""
    requires("pydantic")
    suite.needs_kernels()
    from benchmarks.kernels import muon_products

    figures = []
    for case in suite.while_time(muon_products.DRY_CASES if suite.dry else muon_products.CASES):
        figures.append(muon_products.time_case(case, suite.device, dry=suite.dry))
        suite.record(figures[-1])
    if figures and suite.json is not None:
        device_name = "dry run" if suite.dry else torch.cuda.get_device_name()
        rows = muon_products.least_rows(figures)
        routing.write_table(suite.json.with_name("routing.json"), device_name, symmetric_rows=rows)
    if wrong := [each["case"] for each in figures if not each["passed"]]:
        raise Failed(f"less exact than twice the error of whole products: {', '.join(wrong)}")


@section("augment", seconds=30, share=0.5)
def augmentation(suite: Suite) -> None:
    """Augmentation: every bit against the reference, then time against torchvision and the copy rate."""
    requires("pydantic")  # a recipe's tables are its models
    suite.needs_kernels()
    from benchmarks.kernels import augment_cases

    cases = list(augment_cases.cases())
    shown = list({(case.policy, case.mixes): case for case in cases}.values())
    wrong: list[str] = []
    for case in suite.while_time(shown[-1:] if suite.dry else shown):
        found = augment_cases.check(case, suite.device, count=2 if suite.dry else 64)
        suite.record(found)
        if not found["passed"]:
            wrong.append(f"{case.name}: {found['differing_values']} values differ, repeats {found['repeats']}")
    for case in suite.while_time(cases[:1] if suite.dry else cases):
        suite.say(f"    {case.name}")
        found = augment_cases.time_case(case, suite.device, dry=suite.dry)
        suite.record(found)
        wrong += [f"{case.name}: {found['missing']['ours']}"] if "ours" in found["missing"] else []
    if wrong:
        raise Failed("; ".join(wrong))


@section("step", seconds=60, share=0.7)
def steps(suite: Suite) -> None:
    """Training steps: ours against eager, max-autotune and whole-step CUDA graphs in plain PyTorch."""
    requires("pydantic")
    from benchmarks.gpu import step_timings

    wrong: dict[str, str] = {}
    cases = step_timings.DRY_CASES if suite.dry else step_timings.CASES
    for case in suite.while_time(step_timings.in_groups(cases)):
        suite.say(f"    {case.name}")
        # A rival that compiles for minutes leaves half of the time to those that follow.
        with side_stream(suite.device):
            found = step_timings.time_steps(case, suite.device, dry=suite.dry, limit=suite.left() / 2)
        suite.record(found)
        step_timings.forget(suite.device)
        if "ours" in found["missing"]:
            wrong[found["case"]] = found["missing"]["ours"]
    if wrong:
        raise Failed("; ".join(f"{case}: {reason}" for case, reason in wrong.items()))


@section("speedrun", seconds=40, share=0.5)
def speedrun(suite: Suite) -> None:
    """The recipe for 94%: accuracy and seconds of as many runs as fit."""
    requires("pydantic", "matplotlib")
    from benchmarks.gpu import speedruns

    for found in speedruns.run(suite.source, suite.root, suite.device, suite.left, dry=suite.dry):
        suite.say(f"    {found['what']}")
        suite.record(found)
        suite.save()


@section("epoch", seconds=40, share=0.6)
def epoch(suite: Suite) -> None:
    """Whole epochs: images a second, gaps between kernels, synchronisations; the report's run, projected."""
    requires("pydantic")
    from benchmarks.gpu import epochs

    for name in suite.while_time(epochs.NAMES):
        suite.say(f"    {name}")
        with side_stream(suite.device):
            suite.record(epochs.measure(name, suite.source, suite.root, suite.device, dry=suite.dry))


@section("report_best", seconds=70)
def report_best(suite: Suite) -> None:
    """The report's whole run: wall time from the start of its process to the end."""
    requires("pydantic", "rich", "matplotlib", "safetensors")
    from benchmarks.gpu import paper_run

    known = [each for each in suite.figures_of("epoch") if "projected_run_seconds" in each]
    if known and not suite.dry and known[0]["projected_run_seconds"] > suite.left():
        projected = known[0]["projected_run_seconds"]
        raise Skipped(f"projected to take {projected:.0f} s, {suite.left():.0f} s were left: give more --minutes")
    found = paper_run.run(suite.source, suite.root, suite.device.type, suite.left() - 2, dry=suite.dry)
    suite.record(found)


@section("loaders", seconds=60, share=0.5)
def loaders(suite: Suite) -> None:
    """Loaders: how long the device waits for each, while the report's network trains."""
    requires("pydantic")  # a recipe's tables are its models
    from benchmarks.gpu import loader_stalls

    for found in loader_stalls.stalls(suite.device, suite.source, suite.root, dry=suite.dry):
        suite.say(f"    {found['loader']}")
        suite.record(found)
        suite.save()


@section("launches", seconds=20, share=0.5)
def launches(suite: Suite) -> None:
    """Names of the kernels that ours and the rivals launch, by the profiler."""
    shown = [case for case in cases_of(suite) if suite.dry or (case.batch, case.channels) in ((512, 128), (20, 512))]
    for case in suite.while_time(shown[:1] if suite.dry else shown):
        for found in timings.kernels_of_case(case, suite.device, dry=suite.dry):
            suite.record(found)


@section("pytest", seconds=20)
def tests(suite: Suite) -> None:
    """The tests that need a GPU."""
    requires("pytest")
    files = files_marked_gpu(ROOT / "tests")
    if not files:
        raise Skipped("no test is marked gpu")
    # Not the whole folder, and one by one: tests may import packages that a GPU machine lacks.
    failed = []
    for file in suite.while_time(files):
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", str(file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, suite.left()))
        output = done.stdout + done.stderr
        found = re.search(r"ModuleNotFoundError: No module named '([^']+)'", output)
        absent = found[1] if found and done.returncode in (2, 4) else None  # 2, 4: not collected
        record = {"file": file.name, "status": done.returncode, "not_installed": absent, "output": output[-4000:]}
        suite.record(record)
        if absent is None and done.returncode not in (0, 5):  # 5: every test was deselected
            failed.append(f"{file.name}: {' '.join(done.stdout.splitlines()[-1:])}")
    if failed:
        raise Failed("; ".join(failed))


def files_marked_gpu(folder: Path) -> list[Path]:
    """Test files that use the marker `gpu`."""
    return [path for path in sorted(folder.rglob("test_*.py")) if re.search(r"\bmark\.gpu\b", path.read_text())]


def cases_of(suite: Suite) -> list[Case]:
    """The shapes of this run; in a dry run one tiny shape for each form."""
    if not suite.dry:
        return list(kernel_cases.cases())
    shapes = [("none", "relu"), ("add", "relu"), ("dual", "relu"), ("none", "none")]
    return [Case(join, activation, 3, 16, 4, 4) for join, activation in shapes]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure and check fastres on this machine's GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="end within so many minutes (default 8)")
    parser.add_argument("--json", type=Path, help="write everything to this file, anew after every case")
    parser.add_argument("--sections", help=f"comma-separated, of {','.join(SECTIONS)} (default all)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run on tiny shapes")
    parser.add_argument(
        "--data", metavar="PATH", help=f"images to train on: an archive, a folder (default ${DATA}, else shapes10)"
    )
    parser.add_argument("--list", action="store_true", help="list the sections and end")
    options = parser.parse_args(arguments)
    if options.list:
        for name, part in SECTIONS.items():
            print(f"{name:<12} from {part.seconds:3.0f} s  {part.summary}")
        return 0
    names = options.sections.split(",") if options.sections else list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section '{unknown[0]}': choose from {', '.join(SECTIONS)}")
    if options.minutes <= 0:
        parser.error("--minutes must be above 0")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device: use --device cpu for a dry run")
    # A dry run is quick, unless it is told otherwise.
    source = options.data or (os.environ.get(DATA) if options.device == "cuda" else None)
    if source and not Path(source).exists():
        parser.error(f"no file or folder {source}: give --data or ${DATA} a path, or neither for shapes10")
    device = torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")
    if options.device == "cpu":
        torch.set_num_threads(1)  # on tiny tensors, threads that wait for a busy core take milliseconds
    faulthandler.dump_traceback_later(60 * options.minutes + _HANG_SECONDS, exit=True)
    suite = Suite(device, options.minutes, options.json, source or "shapes10")
    try:
        status = run(suite, names)
    except UserError as error:  # the JSON cannot be written
        print(f"gpu_suite: {error}", file=sys.stderr)
        return 2
    finally:
        suite.close()
        faulthandler.cancel_dump_traceback_later()
    print(table(suite.report), flush=True)
    return status
