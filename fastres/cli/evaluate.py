"""`fastres eval`, `report`, `predict` and `compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastres.cli.options import Device, Json, RunFolder
from fastres.cli.printing import print_json
from fastres.errors import UserError
from fastres.utils.terminal import printable

if TYPE_CHECKING:
    from fastres.evaluation.metrics import Measures


Spreadsheet = Annotated[
    bool, typer.Option("--spreadsheet", help="Put ' before names that a spreadsheet would run as formulas.")
]


def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Test on the test images of another source; classes are matched by name.",
            show_default="the run's own",
        ),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV file to write: file, label, class, probability.")
    ] = None,
    spreadsheet: Spreadsheet = False,
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
    """Test a finished run: overall, by class, confusion, calibration, on other data, on shifted test sets."""
    from dataclasses import asdict

    from fastres.runs.directory import read_recipe

    corruptions = None
    if shift or shift_kinds is not None or shift_severities is not None:
        if data is not None or predictions is not None:
            raise UserError("shifted sets are made of the run's own test images: leave --data and --predictions out")
        from fastres.evaluation import corrupted

        kinds, severities = corrupted.choose_kinds(shift_kinds), corrupted.choose_severities(shift_severities)
        outcome = corrupted.evaluate_corrupted(run, kinds=kinds, severities=severities, device=device)
        classes, measured, corruptions = outcome
    else:
        from fastres.evaluation.predict import evaluate as measure_run

        classes, measured = measure_run(run, device=device, data=data, predictions=predictions, spreadsheet=spreadsheet)
    tta = read_recipe(Path(run)).eval.tta
    if as_json:
        values = {"run": str(run), "classes": list(classes), "tta": tta, **asdict(measured)}
        print_json(values if corruptions is None else values | {"shift": corruptions.to_json()})
        return
    views = "" if tta == "none" else f", test-time augmentation: {tta}"
    print(f"test accuracy {measured.accuracy:.2%} of {measured.images:,} images, loss {measured.loss:.4f}{views}")
    print(f"expected calibration error {measured.expected_calibration_error:.2%} (15 bins){_calibrated(measured)}\n")
    _print_measures(classes, measured.class_accuracy, measured.confusion)
    if predictions is not None:
        print(printable(f"predictions {predictions}"))
    if corruptions is not None:
        print()
        print(corrupted.table(corruptions).for_terminal())
        print(corrupted.describe(corruptions))


def _calibrated(measured: "Measures") -> str:
    if measured.calibrated_error is None:
        return ""
    loss = f"loss {measured.calibrated_loss:.4f}"
    return f"; with the temperature of the run {measured.calibrated_error:.2%}, {loss}"


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
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Images, folders and tars of images; or one set: a pickle, CIFAR, shapes10.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="CSV file to write.", show_default="of photos none, else submission.csv"),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Most probable classes of an image.", show_default="1")
    ] = None,
    kaggle: Annotated[
        bool, typer.Option("--kaggle", help="Write the columns id and label: name of the file, and of the class.")
    ] = False,
    spreadsheet: Spreadsheet = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict the classes of images, with their probabilities. A set of images, such as a pickle, gives a CSV file with
    the header ID,Labels unless --top or --kaggle asks for another."""
    from fastres.evaluation.predict import predict as write_predictions
    from fastres.evaluation.prediction_files import as_json as prediction_json

    done = write_predictions(run, sources, out, device=device, top=top, kaggle=kaggle, spreadsheet=spreadsheet)
    count, answers = len(done.predictions), zip(done.names, done.predictions, strict=True)
    if as_json:
        values: dict[str, Any] = {"out": None if done.out is None else str(done.out), "images": count}
        if not done.challenge:
            values["predictions"] = [prediction_json(name, answer, top or 1) for name, answer in answers]
        print_json(values)
    elif done.out is not None:
        print(printable(f"{count:,} predictions in {done.out}"))
    else:
        for name, answer in answers:
            named = (f"{label} {probability:.2%}" for label, probability in answer.top(top or 1))
            print(printable(f"{name}: {', '.join(named)}"))


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
