"""`fastres eval`, `report`, `predict` and `compare`."""

from pathlib import Path
from typing import Annotated

import typer

from fastres.cli.options import Device, Json, RunFolder, Source
from fastres.cli.printing import print_json
from fastres.utils.terminal import printable


def evaluate(
    run: RunFolder,
    shift: Annotated[
        bool, typer.Option("--shift", help="Also on shifted test sets: 15 kinds of corruption at 5 severities.")
    ] = False,
    shift_kinds: Annotated[
        str | None, typer.Option(metavar="KIND,…", help="Only these, such as fog,snow.", show_default="all")
    ] = None,
    shift_severities: Annotated[
        str | None, typer.Option(metavar="NUMBER,…", help="Only these, such as 1,3,5.", show_default="all")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Test a finished run: overall, by class, confusion, calibration, on shifted test sets."""
    from dataclasses import asdict

    from fastres.runs.directory import read_recipe

    corruptions = None
    if shift or shift_kinds is not None or shift_severities is not None:
        from fastres.evaluation import corrupted

        kinds, severities = corrupted.choose_kinds(shift_kinds), corrupted.choose_severities(shift_severities)
        outcome = corrupted.evaluate_corrupted(run, kinds=kinds, severities=severities, device=device)
        classes, measured, corruptions = outcome
    else:
        from fastres.evaluation.predict import evaluate as measure_run

        classes, measured = measure_run(run, device=device)
    tta = read_recipe(Path(run)).eval.tta
    if as_json:
        values = {"run": str(run), "classes": list(classes), "tta": tta, **asdict(measured)}
        print_json(values if corruptions is None else values | {"shift": corruptions.to_json()})
        return
    views = "" if tta == "none" else f", test-time augmentation: {tta}"
    print(f"test accuracy {measured.accuracy:.2%} of {measured.images:,} images, loss {measured.loss:.4f}{views}")
    print(f"expected calibration error {measured.expected_calibration_error:.2%} (15 bins)\n")
    _print_measures(classes, measured.class_accuracy, measured.confusion)
    if corruptions is not None:
        print()
        print(corrupted.table(corruptions).for_terminal())
        print(corrupted.describe(corruptions))


def report(run: RunFolder, device: Device = "auto", as_json: Json = False) -> None:
    """Draw the page of a run again, complete or not."""
    from fastres.training.page import redraw

    page = redraw(run, device=device)
    if as_json:
        print_json({"out": str(page)})
        return
    print(printable(f"page {page}"))


def predict(
    run: RunFolder,
    source: Source,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("submission.csv"),
    spreadsheet: Annotated[
        bool, typer.Option("--spreadsheet", help="Put ' before names that a spreadsheet would run as formulas.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the predicted class of each image to a CSV file with the header ID,Labels."""
    from fastres.evaluation.predict import predict as write_predictions

    count = write_predictions(run, source, out, device=device, spreadsheet=spreadsheet)
    if as_json:
        print_json({"out": str(out), "images": count})
        return
    print(f"{count:,} predictions in {out}")


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run directories, or folders that hold some.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(help="New folder for the page and its figures.", show_default="runs/compare-<time>")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put runs side by side: results, what differs, means over seeds, curves, accuracy against time."""
    from fastres.experiments.compare import page
    from fastres.experiments.compare.compare import compare as read_all
    from fastres.experiments.compare.compare import facts

    comparison = read_all(runs)
    folder = page.write_page(comparison, out)
    if as_json:
        print_json({"out": str(folder), **facts(comparison).to_json()})
        return
    page.render(comparison)
    print()
    print(printable(f"page {folder / 'compare.html'}"))


def _print_measures(classes: tuple[str, ...], accuracy: list[float | None], confusion: list[list[int]]) -> None:
    """Accuracy of each class, and the class it is most often taken for."""
    from fastres.report.document import Table

    rows = []
    for label, name in enumerate(classes):
        others = [(count, predicted) for predicted, count in enumerate(confusion[label]) if predicted != label]
        count, predicted = max(others, default=(0, label))
        fraction = accuracy[label]
        taken = f"{classes[predicted]} ({count})" if count else "-"
        rows.append([name, "no images" if fraction is None else f"{fraction:.2%}", f"{sum(confusion[label]):,}", taken])
    print(Table(["class", "accuracy", "images", "most often taken for"], rows).for_terminal())
