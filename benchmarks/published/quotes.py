"""Sentences of the READMEs that quote figures, and the results behind each."""

from typing import Any

from benchmarks.published import ablations
from benchmarks.published.results import Quote, Results

README, BENCHMARKS = "README.md", "benchmarks/README.md"

WITHOUT_RESULT = (
    (BENCHMARKS, "by up to 5 in 65% of the values", "counted once, as fastres/data/store/ffcv_decode.py says"),
    (
        BENCHMARKS,
        "260 GFLOP/s for the weight gradient of 512 → 512 on 4×4",
        "9.66 GFLOP in 37.2 ms, by the table in fastres/layers/convolution.py",
    ),
)
"""Document, phrase and origin of figures that no file in results/ has."""


def quotes(results: Results) -> list[Quote]:
    """All of them; a figure is rounded as its field says."""

    def quote(document: str, phrase: str, **figures: Any) -> Quote:
        return Quote(document, phrase, figures)

    rows = results("ablations-94-cpu.json")["rows"]
    names = [row["without"] for row in rows[1:]]
    lost = {name: -100 * value for name, value in zip(names, ablations.differences(rows), strict=True)}
    reach = 100 * (ablations.reach(rows) or 0)

    runs = results("augment-accuracy.json")["runs"]
    accuracy = {key: _by_recipe(runs, key) for key in ("val_accuracy", "test_accuracy")}
    tests = accuracy["test_accuracy"]
    policies = [value for name, values in tests.items() if name != "none" for value in values]
    # Accuracies have four digits, and so have their differences, but for what binary fractions add.
    apart = {key: round(100 * max(max(two) - min(two) for two in found.values()), 6) for key, found in accuracy.items()}

    step = results("step-cpu-amx.json")["figures"]
    units, slow = step["step_against_the_matrix_units"], results("step-cpu-avx512.json")["figures"]
    slow_units = slow["step_against_the_matrix_units"]
    augment = results("augment-cpu-amd-epyc.json")["figures"]
    streaming = results("loaders-cpu-amd-epyc.json")["figures"]
    rates = [rate for key in ("ffcv", "dali", "torch") for rate in streaming[f"streaming[{key}]"]["images/s in 1 GB"]]
    speed = {name: results(f"speed{name}-cpu-amd-epyc.json") for name in ("94", "95")}
    reached = {name: found["ours"]["summary"]["test_accuracy"] for name, found in speed.items()}
    report = results("reproduce-cpu/reproduce.json")
    [leaked] = [claim["values"] for claim in report["claims"] if claim["name"] == "held-out"]
    return [
        quote(
            README,
            "small logits at the start {logits:.1f} points, orthogonal updates {orthogonal:.1f}, small batches "
            "{batches:.1f}, flips {flips:.1f}, views in the test {views:.1f}, renormalised filters {filters:.1f}; "
            "Dirac initialisation costs {dirac:.1f} there, and the other nine lie within the uncertainty of ± "
            "{reach:.1f}.",
            logits=lost["small logits at the start"],
            orthogonal=lost["orthogonal updates (one Newton–Schulz step)"],
            batches=lost["small batches (2,000 images)"],
            flips=lost["flip"],
            views=lost["test-time augmentation"],
            filters=lost["renormalised filters"],
            dirac=-lost["Dirac initialisation"],
            reach=reach,
        ),
        quote(
            README,
            "{ours:.2%} on CIFAR-10 (JPEG), where the public script of the record has {rival:.2%}",
            ours=reached["94"],
            rival=float(speed["94"]["airbench94_muon"]["epochs"][-1]["test_accuracy_with_tta"]),
        ),
        quote(
            README,
            "{ours:.2%} on CIFAR-10 (JPEG), {points:.1f} points above speed/94.toml",
            ours=reached["95"],
            points=100 * (reached["95"] - reached["94"]),
        ),
        quote(
            README,
            "has {least_none:.0%} to {most_none:.0%} test accuracy without augmentation and {least:.0%} to {most:.0%} "
            "with it",
            least_none=min(tests["none"]),
            most_none=max(tests["none"]),
            least=min(policies),
            most=max(policies),
        ),
        quote(
            README,
            "[What {minutes:.0f} minutes on two cores and CIFAR-10 (JPEG) say of {claims:d} claims]",
            minutes=sum(run["seconds"] or 0 for run in report["runs"]) / 60,
            claims=len(report["claims"]),
        ),
        quote(README, "as {share:.1%} of the validation images are trained on", share=sum(leaked) / len(leaked)),
        quote(README, "at about {rate:,.0f} images/s. How long the device", rate=round(min(rates), -4)),
        quote(
            BENCHMARKS,
            "The first batch of a process comes after {first:.1f} s; FFCV's loaders compile for {cutout:.0f} and "
            "{crop:.0f} s. A batch of 1,024 right after a rival's turn runs at {simple:,.0f} images/s (the report's "
            "policy {report:,.0f})",
            first=augment["first_batch_of_a_process"]["first_batch_seconds"],
            cutout=augment["against_ffcv[flip_translate_cutout]"]["rival_first_batch_seconds"],
            crop=augment["against_ffcv[random_resized_crop_flip]"]["rival_first_batch_seconds"],
            simple=round(augment["augment[simple]"]["first_batch_images_per_second"], -3),
            report=round(augment["augment[report]"]["first_batch_images_per_second"], -3),
        ),
        quote(
            BENCHMARKS,
            "Each policy is worth {worth:d} points and more. Two seeds of one recipe lie up to {val:.1f} points apart "
            "in validation and {test:.1f} in test accuracy",
            worth=int(100 * (min(policies) - max(tests["none"]))),
            val=apart["val_accuracy"],
            test=apart["test_accuracy"],
        ),
        quote(
            BENCHMARKS,
            "multiplies bf16 matrices at {product:.1f} TFLOP/s on two cores; the report network's step reaches "
            "{share:.0%} of that",
            product=units["matrix_product_gflops"] / 1e3,
            share=units["share_of_matrix_product"],
        ),
        quote(BENCHMARKS, "with nothing between them, reach {share:.0%}:", share=units["convolutions_alone_share"]),
        quote(
            BENCHMARKS,
            "a step is {small:.2f} times as fast with them at batch 20 and {large:.2f} times at batch 128",
            small=step["products_against_convolutions[20]"]["ratio"],
            large=step["products_against_convolutions[128]"]["ratio"],
        ),
        quote(
            BENCHMARKS,
            "the product drops to {product:.1f} TFLOP/s, the step reaches {share:.0%} of it",
            product=slow_units["matrix_product_gflops"] / 1e3,
            share=slow_units["share_of_matrix_product"],
        ),
        quote(
            BENCHMARKS,
            "the ratio to the report's configuration is then {small:.1f} at batch 20 and {large:.1f} at batch 256",
            small=slow["step_against_the_reports[20]"]["ratio"],
            large=slow["step_against_the_reports[256]"]["ratio"],
        ),
    ]


def _by_recipe(runs: list[dict[str, Any]], key: str) -> dict[str, list[float]]:
    """The values of all seeds of each recipe, by the name of its file."""
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run["recipe"].split("/")[-1].removesuffix(".toml"), []).append(run[key])
    return found
