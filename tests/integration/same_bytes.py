"""The same bytes before and after a change: two checkouts train, test and compare the same things, then are compared.

    python same_bytes.py run --python PYTHON --recipes DIR --work FOLDER [--images ARCHIVE]
    python same_bytes.py interrupt --python PYTHON --recipes DIR --work FOLDER
    python same_bytes.py resume --python PYTHON --work FOLDER --interrupted RUN
    python same_bytes.py compare BEFORE AFTER

`run` does everything with the fastres of the interpreter PYTHON, in the new folder FOLDER, and writes what came out
into FOLDER/figures.json; where it was stopped, the same command goes on. ARCHIVE is CIFAR-10 as JPEG files, for
report_best; both checkouts need the same path, which is part of that run's recipe_hash. `interrupt` sends Ctrl-C to a
run and leaves it in FOLDER/interrupted. `resume` completes a copy of it in a FOLDER that `run` has filled, where the
same run without an interruption is. `compare` prints a line an item and fails on any difference, also where a resumed
run did not end as the uninterrupted one.

Each FOLDER has its own data and its own compiled code, so that nothing of one checkout is used by the other. Bits
depend on the machine, the version of torch and the number of threads, which is 2 here.
"""

import argparse
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # on a busy machine, spinning costs most of the time
FOLDERS = {"FASTRES_DATA": "data", "XDG_CACHE_HOME": "cache", "TORCHINDUCTOR_CACHE_DIR": "cache/inductor"}
FOLDERS |= {"NUMBA_CACHE_DIR": "cache/numba"}
LEFT_OUT = (
    "FASTRES_",
    "NUMBA_",
    "OMP_",
    "PYTHON",
    "TORCH",
    "TRITON_",
    "XDG_",
)  # of the environment, as they may differ
DROPPED = {
    **dict.fromkeys(("seconds", "cold_seconds", "warm_seconds", "mean_seconds", "sd_seconds"), "a time"),
    **dict.fromkeys(("images_per_second", "mean_images_per_second", "sd_images_per_second"), "a rate"),
    "input_stall": "a share of the time",
    "pareto_front": "follows from times and rates, as do the pictures pareto*.png",
    "peak_memory_bytes": "the memory of the process, which the system has a part in",
    "version": "of a file's form, which files had not before they had models",
    "recipe_hash": "beside rounds alone: the path of the last round's labels is part of it",
}
"""Keys of JSON that are not compared, whatever object they stand in, and why."""

# Not the tests' 4 channels: older checkouts give oneDNN the strided 1×1 convolution of fewer than 16, which overwrites
# memory (fastres/layers/convolution.py).
SMALL = """
data = { train_images = 320, test_images = 200, split = "none" }
model = { blocks = [1, 1], channels = [16, 32], strides = [2, 2] }
optimizer = { lr = 0.05 }
train = { epochs = 2, batch_size = 32, compile = false, precision = "fp32" }
record = { report = false }
"""
OWN = {
    "teacher": SMALL.replace("[16, 32]", "[32, 64]"),
    "distill": SMALL + 'method = { name = "distill", teacher = "teacher.toml" }',
    "pseudo_label": f"""{SMALL}
        method = {{ name = "pseudo_label", unlabelled = "shapes10", threshold = 0.12, balance = false, rounds = 2 }}""",
    "dino": f"""{SMALL}
        augment = {{ translate = 0, random_resized_crop = {{ scale = [0.3, 1.0] }} }}
        method = {{ name = "dino", hidden = 16, bottleneck = 8, prototypes = 12, local_views = 3 }}""",
    "sweep": f"""{SMALL}
        [sweep.grid]
        "train.seed" = [0, 1]
        [[sweep.points]]
        name = "sgd"
        [[sweep.points]]
        name = "adamw"
        set = {{ "optimizer.name" = "adamw", "optimizer.lr" = 0.003, "train.precision" = "bf16" }}""",
}
"""Recipes of the tests' size, by name."""
# The report's split trains on 80% of the images, 2,000 here. bf16 crawls on a CPU without AVX-512; the sweep has it.
REPORT_BEST = ("train.epochs=1", "data.train_images=2500", "data.test_images=500", "train.precision=fp32")
# Averages and the best checkpoint have to survive an interruption too.
STRAIGHT = ("train.epochs=4", "data.train_images=3000", "train.ema=0.99", "train.best=val_loss", "record.report=false")


def compared(path: Path) -> bytes:
    """The bytes of a file; of safetensors all but the metadata, which hold the file's own CRC-32 since there is one."""
    content = path.read_bytes()
    if path.suffix != ".safetensors":
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    header = {name: facts for name, facts in json.loads(content[8:end]).items() if name != "__metadata__"}
    return json.dumps(header, sort_keys=True).encode() + content[end:]


class Checkout:
    """The fastres of one interpreter, at work in one folder, and what came out of it."""

    def __init__(self, python: Path, work: Path, images: Path | None) -> None:
        self.python, self.work = python.absolute(), work.resolve()  # a virtual environment's python is a link
        self.names = {str(self.work): "FOLDER"} | ({str(images.absolute()): "ARCHIVE"} if images else {})
        self.work.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(LEFT_OUT)}
        self.environment = kept | THREADS | {key: str(self.work / name) for key, name in FOLDERS.items()}
        self.figures: dict[str, dict[str, Any]] = {"about": {}, "files": {}, "json": {}, "dropped": {}}
        if (self.work / "figures.json").is_file():
            self.figures = json.loads((self.work / "figures.json").read_text())

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [str(self.python), "-m", "fastres", *map(str, arguments)]
        print(f"{time.strftime('%H:%M:%S')} fastres {' '.join(command[3:])}", file=sys.stderr, flush=True)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell makes what it starts in the background ignore SIGINT; a run shall not.
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(command, cwd=self.work, env=self.environment, preexec_fn=heard, **pipes)

    def ask(self, item: str, *arguments: object, out: str | None = None) -> None:
        """Run a command with --json, and keep what it says as `item`, with the files in `out`, its new folder."""
        if item in self.figures["json"]:
            return
        if out is not None:
            shutil.rmtree(self.work / out, ignore_errors=True)
            arguments += ("--out", out)
        process = self.start(*arguments, "--json")
        said, err = process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"exit code {process.returncode}:\n{err}")
        self.figures["json"][item] = self.clean(json.loads(said))
        if out is not None:
            self.keep(out)
        self.write()

    def train(self, name: str, recipe: Path | str, *settings: str) -> None:
        options = [f"--set={setting}" for setting in settings]
        self.ask(f"train {name}", "train", recipe, *options, "--device", "cpu", "--quiet", out=f"runs/{name}")

    def keep(self, folder: str) -> None:
        """Take in the weights, labels and pictures below `folder`, and the rows of every metrics.jsonl."""
        for path in sorted((self.work / folder).rglob("*")):
            name = str(path.relative_to(self.work))
            if path.suffix in (".safetensors", ".png") and not path.name.startswith("pareto"):
                self.figures["files"][name] = hashlib.sha256(compared(path)).hexdigest()
            elif path.name == "metrics.jsonl":
                self.figures["json"][name] = self.clean([json.loads(line) for line in path.read_text().splitlines()])
            elif path.name == "environment.json":
                facts = json.loads(path.read_text())
                self.figures["about"] = {key: facts[key] for key in ("commit", "dirty", "python", "torch", "threads")}

    def clean(self, value: Any) -> Any:
        """`value` without the keys that are not compared, and without paths of this machine."""
        if isinstance(value, dict):
            dropped = [key for key in value if key in DROPPED and (key != "recipe_hash" or "rounds" in value)]
            self.figures["dropped"] |= {key: DROPPED[key] for key in dropped}
            return {key: self.clean(part) for key, part in value.items() if key not in dropped}
        if isinstance(value, list):
            return [self.clean(part) for part in value]
        for path, name in self.names.items() if isinstance(value, str) else ():
            value = value.replace(path, name)
        return value

    def write(self) -> None:
        (self.work / "figures.json").write_text(json.dumps(self.figures, indent=1, ensure_ascii=False) + "\n")


def run(checkout: Checkout, recipes: Path, images: Path | None) -> None:
    for name, text in OWN.items():
        (checkout.work / f"{name}.toml").write_text(text)
    for name in ("quickstart", "report_best", "methods/dino", "report/architectures"):
        checkout.ask(f"show {name}", "show", recipes / f"{name}.toml")
    quickstart = recipes / "quickstart.toml"
    checkout.train("quickstart", quickstart, "train.epochs=2")
    checkout.train("quickstart-eager", quickstart, "train.epochs=2", "train.compile=false", "record.report=false")
    checkout.train("straight", quickstart, *STRAIGHT)
    for name in ("distill", "pseudo_label", "dino"):
        checkout.train(name, f"{name}.toml")
    if images is not None:
        checkout.train(
            "report_best",
            recipes / "report_best.toml",
            f"data.source={images.absolute()}",
            "record.report=false",
            *REPORT_BEST,
        )
    for name in ("quickstart", "pseudo_label", "dino", *["report_best"][: images is not None]):
        checkout.ask(f"eval {name}", "eval", f"runs/{name}", "--device", "cpu")
    shifted = ("--shift-kinds", "gaussian_noise,fog,jpeg_compression", "--shift-severities", "3")
    checkout.ask("eval distill shifted", "eval", "runs/distill", *shifted, "--device", "cpu")
    checkout.ask("sweep", "sweep", "sweep.toml", "--device", "cpu", out="sweep")
    checkout.ask("compare", "compare", "runs", "sweep", out="compare")


def interrupt(checkout: Checkout, recipes: Path) -> None:
    """Ctrl-C in the third of four epochs."""
    options = [f"--set={setting}" for setting in STRAIGHT]
    process = checkout.start("train", recipes / "quickstart.toml", *options, "--out", "interrupted", "--device", "cpu")
    metrics = checkout.work / "interrupted" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") == 2):
        time.sleep(0.05)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    if process.returncode != 130:
        raise SystemExit(f"exit code {process.returncode} instead of 130:\n{err}")
    print(err.splitlines()[-1])


def resume(checkout: Checkout, interrupted: Path) -> None:
    shutil.copytree(interrupted, checkout.work / "resumed")
    checkout.ask("train resumed", "train", "--resume", "resumed", "--device", "cpu", "--quiet")
    checkout.keep("resumed")
    checkout.write()


def digest(value: Any) -> str:
    """The first digits of a file's SHA-256, or of that of JSON."""
    if value is None:
        return "missing"
    return (
        value if isinstance(value, str) else hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    )[:16]


def compare(before: Path, after: Path) -> int:
    """Print a line an item; returns how many differ. A diff of the two figures.json says in what."""
    sides = {"before": before, "after": after}
    found = {side: json.loads((folder / "figures.json").read_text()) for side, folder in sides.items()}
    one, two = found.values()
    different = 0

    def line(item: str, first: Any, second: Any) -> None:
        nonlocal different
        if first == second and first is not None:
            print(f"same       {digest(first)}  {item}")
        else:
            different += 1
            print(f"DIFFERENT  {digest(first)}  {item}, after: {digest(second)}")

    for side, figures in found.items():
        print(f"{side}: {', '.join(f'{key} {value}' for key, value in figures['about'].items())}")
    for kind, title in (("files", "Bytes of files"), ("json", "JSON, as far as it is compared")):
        print(f"\n{title}: the first digits of SHA-256\n")
        for item in one[kind] | two[kind]:
            line(item, one[kind].get(item), two[kind].get(item))
    print("\nThe run that was interrupted and resumed, against the uninterrupted one\n")
    for side, figures in found.items():
        both = figures["files"] | figures["json"]
        for name in ("checkpoints/final.safetensors", "metrics.jsonl"):
            line(f"{side}, {name}", both.get(f"runs/straight/{name}"), both.get(f"resumed/{name}"))
    print("\nKeys of JSON that are not compared (paths are, with FOLDER and ARCHIVE in place of what differs)\n")
    for key, reason in sorted((one["dropped"] | two["dropped"]).items()):
        print(f"{key}: {reason}")
    print(f"\n{different} differ" if different else "\nall the same")
    return different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "interrupt", "resume", "compare"])
    parser.add_argument("folders", nargs="*", type=Path, metavar="BEFORE AFTER")
    for option in ("python", "recipes", "work", "images", "interrupted"):
        parser.add_argument(f"--{option}", type=Path)
    given = parser.parse_args()
    if given.command == "compare":
        sys.exit(compare(*given.folders) > 0)
    checkout = Checkout(given.python, given.work, given.images)
    if given.command == "run":
        run(checkout, given.recipes.absolute(), given.images)
    elif given.command == "interrupt":
        interrupt(checkout, given.recipes.absolute())
    else:
        resume(checkout, given.interrupted)


if __name__ == "__main__":
    main()
