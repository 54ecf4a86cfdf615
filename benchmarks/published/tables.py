"""The tables of the READMEs and the pictures in results/, each from the committed results."""

from collections.abc import Callable, Iterator

from benchmarks.harness.summary import PARTS, with_parts
from benchmarks.published import ablations
from benchmarks.published.results import Results
from benchmarks.suites import epoch_parts
from fastres.bench import roofline_page
from fastres.experiments.pareto import page
from fastres.report import run_figures
from fastres.report.document import markdown_table
from fastres.report.style import png

PARETO, ROOFLINE = "pareto/pareto.json", "roofline/roofline.json"
"""Output of `fastres bench pareto` and `roofline`, with `--out` here."""
SUITES = "suites-cpu-amd-epyc.json"
"""Output of `pytest --benchmark-only --save-results`."""


def rounded(value: float) -> str:
    """Three significant digits with thousands: 4222033 becomes "4,220,000"."""
    return f"{float(f'{value:.3g}'):,.0f}"


def speed(results: Results) -> str:
    found = results("speed94-cpu-amd-epyc.json")
    last = found["airbench94_muon"]["epochs"][-1]
    header = ["CIFAR-10 (JPEG), two cores of an AMD EPYC, bf16, one run each", "test accuracy, six views", "seconds"]
    public = "the public airbench94_muon, moved to the CPU, by its own clock"
    runs = {public: (last["test_accuracy_with_tta"], last["seconds"])}
    for name in ("94", "95"):
        summary = results(f"speed{name}-cpu-amd-epyc.json")["ours"]["summary"]
        ours = f"`recipes/speed/{name}.toml`, the whole command, compilation included"
        runs[ours] = (summary["test_accuracy"], summary["seconds"])
    lines = [[name, f"{float(share):.2%}", f"{float(seconds):,.0f}"] for name, (share, seconds) in runs.items()]
    return markdown_table(header, lines)


def five_epochs(results: Results) -> str:
    named = {"the report's rate, 0.01, cosine": "lr-0.01", "0.1, one cycle": "lr-0.1-one-cycle"}
    lines = []
    for name, file in named.items():
        run = results(f"report_best-5-epochs/{file}.json")["summary"]
        speed = f"{run['images_per_second']:,.0f}"
        lines.append([name, f"{run['test_accuracy']:.2%}", speed, f"{run['seconds']:,.0f}"])
    header = ["report network, 4.9 million parameters, 5 epochs at batch 128 on CIFAR-10 (JPEG)"]
    return markdown_table([*header, "test accuracy", "images/s", "seconds"], lines)


def step(results: Results) -> str:
    amx = results("step-cpu-amx.json")["figures"]
    units, plain = (
        results(f"step-cpu-{name}.json")["figures"]["step_against_the_matrix_units"] for name in ("amx", "avx512")
    )
    share = "share_of_matrix_product"
    lines = [
        [
            "against the report's configuration (eager, N C H W, fp32), batch 20",
            f"{amx['step_against_the_reports[20]']['ratio']:.2f} times as fast",
        ],
        ["the same, batch 256", f"{amx['step_against_the_reports[256]']['ratio']:.2f} times as fast"],
        [
            "operations a second at batch 128, of those of a plain bf16 matrix product",
            f"{units[share]:.0%} of {units['matrix_product_gflops'] / 1e3:.2f} TFLOP/s",
        ],
        [
            "what the convolution library reaches on the same convolutions alone",
            f"{units['convolutions_alone_share']:.0%}",
        ],
        [
            "the step's share with AMX switched off (before its layers were fused)",
            f"{plain[share]:.0%} of {plain['matrix_product_gflops']:.0f} GFLOP/s",
        ],
    ]
    return markdown_table(["its training step", ""], lines)


def reading(results: Results) -> str:
    augment = results("augment-cpu-amd-epyc.json")["figures"]
    loaders = results("loaders-cpu-amd-epyc.json")["figures"]

    decoded, files = loaders["decoded[none]"], loaders["files"]
    cutout, policy = augment["against_ffcv[flip_translate_cutout]"], augment["augment[report]"]
    ours, theirs, bare = "images_per_second", "rival_images_per_second", decoded["bare FFCV images/s"]
    compared = [
        ("augmenting: flip, shift, cutout", cutout[ours], "FFCV's loader", cutout[theirs]),
        ("augmenting: the report's policy", policy[ours], "its own Pillow pipeline", policy[theirs]),
        ("loading pixels, `resident`", decoded["resident images/s"], "FFCV's own loader", bare),
        ("loading pixels, `ffcv`", decoded["ffcv images/s"], "FFCV's own loader, same file", bare),
        (
            "loading JPEG files, `ffcv`",
            files["ffcv images/s"],
            "torchvision's ImageFolder, two processes",
            files["ImageFolder images/s"],
        ),
    ]
    lines = [[what, rounded(mine), rival, rounded(its)] for what, mine, rival, its in compared]
    return markdown_table(["images/s on two cores of an AMD EPYC", "fastres", "the rival", "its images/s"], lines)


def loaders(results: Results) -> str:
    found = results("loaders-cpu-amd-epyc.json")["figures"]
    plain, moved, files = found["decoded[none]"], found["decoded[flip+translate]"], found["files"]
    named = {
        "`resident`, its images gathered": "resident",
        "`torch.index_select` alone, of rows known beforehand": "index_select alone",
        "`ffcv`": "ffcv",
        "FFCV's own loader on the same file": "bare FFCV",
        "`dali`": "dali",
        "`torch`, two processes": "torch",
        "torchvision's ImageFolder, two processes": "ImageFolder",
    }
    lines = []
    for name, key in named.items():
        columns = [(plain, "images/s"), (plain, "first epoch"), (moved, "images/s"), (files, "images/s")]
        rates = [figures.get(f"{key} {what}") for figures, what in columns]
        cells = ["" if rate is None else rounded(rate) for rate in rates]
        if key == "resident":
            cells[3] = "–"  # its images are decoded when it opens
        lines.append([name, *cells])
    header = [
        "images/s",
        "decoded, no augmentation",
        "its first epoch",
        "shift, flip, normalise",
        "JPEG files in folders",
    ]
    return markdown_table(header, lines)


def streaming(results: Results) -> str:
    found = results("loaders-cpu-amd-epyc.json")["figures"]
    lines = []
    for name, key in (("`ffcv`", "ffcv"), ("`dali`", "dali"), ("`torch`, two processes", "torch")):
        row = found[f"streaming[{key}]"]
        within = " and ".join(map(rounded, row["images/s in 1 GB"]))
        most = f"{row['most anonymous bytes'] / 1e6:.0f} MB"
        lines.append([name, *map(rounded, row["images/s"]), within, most])
    header = ["2 GB of images", "images/s from the disk", "next epoch", "both in 1 GB of memory, page cache included"]
    return markdown_table([*header, "anonymous memory at most"], lines)


def augmentation(results: Results) -> str:
    found = results("augment-cpu-amd-epyc.json")["figures"]
    named = {
        "augment[simple]": ("flip, shift, normalise", "torchvision v2, one image at a time"),
        "augment[report]": ("the report's whole policy", "the Pillow pipeline of its code"),
        "augment[report_mixed]": ("the same with CutMix or MixUp", "the same, without mixing"),
        "augment[simple_mixed]": (
            "flip, shift, normalise, CutMix or MixUp",
            "torchvision's mixing alone, a batch at a time",
        ),
        "against_ffcv[flip_translate_cutout]": (
            "flip, shift, cutout, normalise",
            "FFCV's loader: flip, translate, cutout, left in uint8",
        ),
        "against_ffcv[random_resized_crop_flip]": (
            "random resized crop, flip, normalise",
            "FFCV's loader: the same, left in uint8",
        ),
    }
    lines = []
    for key, (ours, rival) in named.items():
        row = found[key]
        speeds = [rounded(row["images_per_second"]), f"{row['share_of_copy_rate']:.0%}"]
        lines.append([ours, *speeds, rival, rounded(row["rival_images_per_second"])])
    return markdown_table(["ours", "images/s", "of the copy rate", "the rival", "its images/s"], lines)


def augment_accuracy(results: Results) -> str:
    runs = results("augment-accuracy.json")["runs"]
    named = {
        "none": "`none`",
        "shift": "`shift`: shift by 4, flip",
        "report": "`report`: the report's policy",
        "mixed": "`mixed`: the same with CutMix or MixUp in every batch until epoch 32",
    }
    lines = []
    for key, name in named.items():
        own = [run for run in runs if run["recipe"] == f"recipes/augment/{key}.toml"]
        measures = ("train_accuracy", "val_accuracy", "test_accuracy")
        lines.append([name, *(", ".join(f"{run[measure]:.1%}" for run in own) for measure in measures)])
    return markdown_table(["recipe", "training accuracy", "validation accuracy", "test accuracy"], lines)


def pareto(results: Results) -> str:
    return markdown_table(*page.table(results(PARETO)))


def roofline(results: Results) -> str:
    return markdown_table(*roofline_page.table(results(ROOFLINE)))


def suites(results: Results) -> str:
    found = results(SUITES)["figures"]
    named = {
        "epoch[report-20-default]": "training on batches of 20, augmentation included",
        "epoch[report-128-default]": "the same, of 128",
        "evaluation[none]": "evaluation",
        "time_to_accuracy": f"time to {found['time_to_accuracy']['target']:.0%} on shapes10, once compiled",
        "save[durable]": "a checkpoint, safe on the disk",
        "restore": "the checkpoint read again",
    }
    lines = []
    for key, name in named.items():
        row = found[key]
        share = f"{row['share_of_ceiling']:.0%} of a {row['ceiling']}" if "share_of_ceiling" in row else ""
        lines.append([name, row["against"].removesuffix(" too"), f"{row['ratio']:.2f}", share])
    header = ["the report's network on two cores of an AMD EPYC", "the rival", "its time over ours", "of the ceiling"]
    return markdown_table(header, lines)


def epoch(results: Results) -> str:
    lines = []
    for row in with_parts(results(SUITES)["figures"]).values():
        shares = [f"{row['parts'][part] / row['epoch_seconds']:.1%}" for part in PARTS]
        measured = [rounded(row["images_per_second"]), f"{row['ratio']:.2f}, {row['against']}"]
        lines.append([f"{row['setting']}, {row['factor']}", *measured, *shares])
    return markdown_table(["network, batch size, factor", "images/s", "a rival's time over its own", *PARTS], lines)


TABLES: dict[str, Callable[[Results], str]] = {
    "speed": speed,
    "five-epochs": five_epochs,
    "step": step,
    "reading": reading,
    "loaders": loaders,
    "streaming": streaming,
    "augmentation": augmentation,
    "augment-accuracy": augment_accuracy,
    "pareto": pareto,
    "roofline": roofline,
    "suites": suites,
    "epoch": epoch,
}
"""By the names that the markers have."""


def pictures(results: Results) -> Iterator[tuple[str, bytes]]:
    """Files in results/ that are made of others there: their names and contents."""
    run = results("report_best-5-epochs/lr-0.1-one-cycle.json")
    summary = run["summary"]
    loss = run_figures.loss(run["epochs"], best=summary["best"], leak=summary["split"] == "report")
    yield "report_best-5-epochs/loss.png", png(loss)
    rows = results("ablations-94-cpu.json")["rows"]
    yield "ablations-94-cpu.png", ablations.figure(rows)
    yield "ablations-94-cpu.md", ablations.table(rows, times=False).encode()
    epochs = with_parts(results(SUITES)["figures"])
    yield SUITES.replace(".json", "-epoch.png"), png(epoch_parts.bars(epochs))
    for name, draw in ((PARETO, page.picture), (ROOFLINE, roofline_page.picture)):
        if (results.folder / name).is_file():  # what `fastres bench` wrote
            yield name.replace(".json", ".png"), draw(results(name))
