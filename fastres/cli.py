"""The command line: parse, call one function, print. Nothing heavy is imported before a command runs.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done; 2 an error of the user's, in
one or two lines that name the fix; 130 interrupted, in training after a checkpoint was saved.
"""

import io
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastres.commands import bench, data, printing
from fastres.commands.options import Device, Json, Overrides, RecipeFile, Root, RunFolder, Source
from fastres.commands.printing import print_json, print_table
from fastres.engine.memory import Beginning
from fastres.errors import Interrupted, UserError, disk_fault, out_of_gpu_memory
from fastres.utils.terminal import flushed, printable, quiet_thread

_PRINTING = (__file__, bench.__file__, data.__file__, printing.__file__)


class _Group(TyperGroup):
    """Names what ends a command before Typer sees it: Typer (and Click, on which its older releases stand) ends Ctrl-C
    without a word or with 'Aborted!', and any broken pipe with status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None
        except BrokenPipeError as error:
            # Results are printed in these files and nowhere else; anything else is work that ends halfway: its progress
            # has lost its reader, or a process that it needs has died.
            if [*traceback.walk_tb(error.__traceback__)][-1][0].f_code.co_filename not in _PRINTING:
                raise RuntimeError("a pipe broke in the middle of the work") from error
            sys.exit(0)  # head, or less, has read enough
        except Exception as error:
            if not out_of_gpu_memory(error):
                raise
            fix = "lower train.batch_size (or eval.batch_size, if it was testing)"
            if ctx.invoked_subcommand in ("eval", "predict"):
                fix = "lower eval.batch_size in the run's recipe.toml"
            raise UserError(f"the GPU has too little free memory: {fix}, or choose --device cpu") from error


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train small-image ResNets fast and report honestly.",
)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        from fastres._version import __version__

        print(f"fastres {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="TOML recipe.", show_default=False)] = None,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="New run directory.", show_default="runs/<name>-<time>")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Complete an interrupted run instead.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe into a run directory; test and report what comes out."""
    if (recipe is None) == (resume is None):
        raise UserError("give either a RECIPE to train or --resume RUN to complete")
    if resume is not None and (set_ or out is not None):
        raise UserError("--resume goes on with the run's own recipe in its own folder: leave out --set and --out")
    with Beginning() as beginning:  # Python's own start, with Typer 0.1 s, came before
        from fastres.training import run as training

        if resume is not None:
            result = training.resume(resume, device=device, quiet=quiet, beginning=beginning)
        else:
            from fastres.recipe import Recipe

            assert recipe is not None
            loaded = Recipe.load(recipe, set_)
            options: dict[str, Any] = {"device": device, "quiet": quiet, "name": recipe.stem}
            result = training.train(loaded, out=out, beginning=beginning, **options)
    summary = result.summary
    if as_json:
        print_json({"run": str(result.run), **summary})
        return
    from fastres.utils.statistics import wilson

    images = summary["test_images"]
    low, high = wilson(round(summary["test_accuracy"] * images), images)
    print(f"test accuracy {summary['test_accuracy']:.2%} (95% interval of the test sample {low:.2%} to {high:.2%})")
    speed = f"{summary['images_per_second'] or 0:,.0f} images/s"
    print(f"{summary['seconds']:.1f} s, {speed}, {summary['parameters']:,} parameters")
    print(f"run directory {result.run}")


@app.command()
def speedrun(
    recipe: RecipeFile,
    runs: Annotated[int, typer.Option(help="How many; fixed before the first.", show_default=False)],
    set_: Overrides = [],  # noqa: B006 - typer copies it
    target: Annotated[float, typer.Option(help="Accuracy that the mean is compared with, as a share.")] = 0.94,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; one of an interrupted speedrun is completed.",
            show_default="runs/<name>-speedrun-<time>",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe many times, compiled once: time of a run, mean accuracy, its interval and significance."""
    from fastres.recipe import Recipe
    from fastres.speedrun import speedrun as run_all
    from fastres.speedrun_results import describe

    loaded = Recipe.load(recipe, set_)
    result = run_all(loaded, runs, target=target, out=out, device=device, name=recipe.stem)
    if as_json:
        print_json({"out": str(result.folder), **result.summary})
        return
    print(describe(result.summary))
    print(f"speedrun folder {result.folder}")


@app.command()
def sweep(
    recipe: RecipeFile,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; one of an interrupted sweep is completed.",
            show_default="runs/<name>-sweep-<time>",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that share a search.")] = 1,
    as_json: Json = False,
) -> None:
    """Train every point of a recipe that is a sweep, or search for the best; table and page of what differs."""
    from fastres.recipe import Recipe
    from fastres.sweep_results import means_table, notes, table

    about = Recipe.load(recipe, set_).sweep
    if about is not None and about.search is not None:
        from fastres import search

        plan = search.load(recipe, set_)
        result = search.search(plan, out=out, device=device, workers=workers, name=recipe.stem)
    else:
        from fastres import sweep as sweeps

        if workers != 1:
            raise UserError("--workers is for a [sweep.search]: the points of a grid are trained one after the other")
        result = sweeps.sweep(sweeps.load(recipe, set_), out=out, device=device, name=recipe.stem)
    if as_json:
        print_json({"out": str(result.folder), **result.summary})
        return
    print_table(*table(result.summary), left=1)
    if result.summary["means"]:
        print()
        print_table(*means_table(result.summary), left=0)
    for note in notes(result.summary):
        print(f"\n{note}")
    print(f"\nsweep folder {result.folder}")


@app.command(name="eval")
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

    shifted: dict[str, Any] | None = None
    if shift or shift_kinds is not None or shift_severities is not None:
        from fastres.evaluation import corrupted

        kinds = corrupted.choose_kinds(shift_kinds)
        severities = corrupted.choose_severities(shift_severities)
        classes, measured, shifted = corrupted.evaluate_shifted(run, kinds=kinds, severities=severities, device=device)
    else:
        from fastres.evaluation.predict import evaluate as measure_run

        classes, measured = measure_run(run, device=device)
    tta = read_recipe(Path(run)).eval.tta
    if as_json:
        found = {"run": str(run), "classes": list(classes), "tta": tta, **asdict(measured)}
        print_json(found if shifted is None else found | {"shift": shifted})
        return
    views = "" if tta == "none" else f", test-time augmentation: {tta}"
    print(f"test accuracy {measured.accuracy:.2%} of {measured.images:,} images, loss {measured.loss:.4f}{views}")
    print(f"expected calibration error {measured.expected_calibration_error:.2%} (15 bins)\n")
    _print_measures(classes, measured.class_accuracy, measured.confusion)
    if shifted is not None:
        print()
        print_table(*corrupted.rows(shifted), left=1)
        print(corrupted.describe(shifted))


@app.command()
def predict(
    run: RunFolder,
    source: Source,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("submission.csv"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the predicted class of each image to a CSV file with the header ID,Labels."""
    from fastres.evaluation.predict import predict as write_predictions

    count = write_predictions(run, source, out, device=device)
    if as_json:
        print_json({"out": str(out), "images": count})
        return
    print(f"{count:,} predictions in {out}")


@app.command()
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
    from fastres import compare_page
    from fastres.compare import compare as read_all
    from fastres.compare import facts

    comparison = read_all(runs)
    folder = compare_page.write_page(comparison, out)
    if as_json:
        print_json({"out": str(folder), **facts(comparison)})
        return
    compare_page.render(comparison)
    print()
    print(printable(f"page {folder / 'compare.html'}"))


@app.command()
def reproduce(
    claims: Annotated[
        list[str] | None,
        typer.Argument(metavar="CLAIM", help="Claims, or subjects of several; by default all.", show_default=False),
    ] = None,
    recipes: Annotated[Path, typer.Option(help="Folder of the report's recipes.")] = Path("recipes"),
    out: Annotated[Path, typer.Option(help="Folder to write; what is there already is picked up.")] = Path(
        "runs/reproduce"
    ),
    source: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Images.", show_default="that of the recipes, cifar10")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each recipe.")] = 3,
    scale: Annotated[float, typer.Option(help="Fraction of epochs times images, for a machine without a GPU.")] = 1.0,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    workers: Annotated[
        int | None, typer.Option(help="Runs side by side.", show_default="1 on a CPU, 4 on a GPU")
    ] = None,
    device: Device = "auto",
    list_: Annotated[bool, typer.Option("--list", help="Only say what would be trained.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the claims of the report: table with verdicts, page, figures."""
    options: dict[str, Any] = {
        "recipes": recipes,
        "out": out,
        "source": source,
        "seeds": seeds,
        "scale": scale,
        "settings": set_,
    }
    if list_:
        from fastres.reproduce import listing
        from fastres.reproduce.plan import make

        plan = make(claims or [], **options)
        if as_json:
            print_json(listing.facts(plan))
            return
        print_table(*listing.claims(plan), left=3)
        print()
        print_table(*listing.runs(plan), left=1)
        print(f"\n{listing.total(plan)}")
        return
    from fastres.reproduce.page import counts
    from fastres.reproduce.work import reproduce as measure_all

    result = measure_all(claims or [], **options, device=device, workers=workers, quiet=quiet)
    if as_json:
        print_json({"out": str(result.folder), **result.facts})
        return
    columns = ("name", "figure", "measured", "seeds", "verdict")
    lines = [[str(row[key]) for key in columns] for row in result.facts["claims"]]
    print_table(["claim", "report", "measured, mean ± SD", "seeds", "verdict"], lines, left=3)
    print(f"\n{counts(result.findings)}")
    print(f"page {result.folder / 'report.html'}")


@app.command()
def show(
    recipe: RecipeFile,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    augment: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw training images before and after augmentation, and stop.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the resolved recipe and the network's layers with shapes, parameters and multiply-adds."""
    from dataclasses import asdict

    from fastres.models import build, count_parameters, layers
    from fastres.recipe import Recipe
    from fastres.training.data import shape_of

    loaded = Recipe.load(recipe, set_)
    if augment is not None:
        from fastres.training.page import draw_augmented

        shown = draw_augmented(loaded, augment)
        if as_json:
            print_json({"out": str(augment), "images": shown})
        else:
            print(f"{shown} training images before and after augmentation in {augment}")
        return
    classes, size, known = shape_of(loaded.data)
    network = build(loaded.model, classes, size)
    table = layers(network, size)
    parameters, products = count_parameters(network), sum(layer.multiply_adds for layer in table)
    points = []
    if loaded.sweep is not None and loaded.sweep.search is None:
        from fastres.sweep import load

        points = load(recipe, set_).points
    if as_json:
        print_json(
            {
                "recipe": loaded.model_dump(exclude_none=True),
                "recipe_hash": loaded.hash(),
                "layers": [asdict(layer) for layer in table],
                "parameters": parameters,
                "multiply_adds": products,
                **({"points": {point.name: point.settings for point in points}} if points else {}),
            }
        )
        return
    print(loaded.to_toml())
    rows = [
        [layer.name, layer.kind, "×".join(map(str, layer.output)), f"{layer.parameters:,}", f"{layer.multiply_adds:,}"]
        for layer in table
    ]
    total = ["total", "", "", f"{parameters:,}", f"{products:,}"]
    print_table(["layer", "kind", "output", "parameters", "multiply-adds"], [*rows, total], left=3)
    work = f"{6 * products / 1e9:.2f} GFLOP to train on an image"
    print(f"\n{classes} classes of {size}×{size} images, {parameters:,} parameters, {work}")
    if not known:
        print(f"{loaded.data.source} is not prepared yet: ten classes are assumed")
    if points:
        from fastres import sweep_results

        keys = sweep_results.labels([*points[0].settings])
        print(f"\n{len(points)} points, for `fastres sweep`; the layers above are those of the recipe without a point")
        cells = [[point.name, *(sweep_results.shown(point.settings[key]) for key in keys)] for point in points]
        print_table(["point", *keys.values()], cells, left=1)


@app.command()
def doctor(root: Root = None, as_json: Json = False) -> None:
    """Say what this machine has and what is missing, with the line that installs it."""
    from fastres import doctor as examination

    facts = examination.examine(root)
    if as_json:
        print_json(facts)
        return
    examination.render(facts)


def _print_measures(classes: tuple[str, ...], accuracy: list[float | None], confusion: list[list[int]]) -> None:
    """Accuracy of each class, and the class it is most often taken for."""
    rows = []
    for label, name in enumerate(classes):
        others = [(count, predicted) for predicted, count in enumerate(confusion[label]) if predicted != label]
        count, predicted = max(others, default=(0, label))
        share = accuracy[label]
        taken = f"{classes[predicted]} ({count})" if count else "-"
        rows.append([name, "no images" if share is None else f"{share:.2%}", f"{sum(confusion[label]):,}", taken])
    print_table(["class", "accuracy", "images", "most often taken for"], rows, left=1)


def main() -> None:
    """Entry point of the `fastres` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that are not UTF-8, a terminal that knows no ×
            stream.reconfigure(errors="replace")
    threading.excepthook = quiet_thread
    # SIGTERM ends a command as Ctrl-C does, so that it cleans up; who starts us with SIGTERM ignored has a reason.
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(_run())
    finally:
        signal.signal(signal.SIGTERM, before)


def _run() -> int:
    """Run the command of sys.argv, say on standard error what stopped it, and return the exit status."""
    try:
        try:
            app()
        except SystemExit as stop:  # the way in which Typer always ends
            # rich, which prints help and `doctor`, makes status 1 of a reader that has gone.
            code = 0 if isinstance(stop.__context__, BrokenPipeError) and stop.code == 1 else int(stop.code or 0)
        flushed(sys.stdout)
        return code
    except UserError as error:
        return _say(str(error), 2)
    except Interrupted as stop:
        return _say(str(stop), 130)
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        return _say(fault, 2)


def _say(message: str, code: int) -> int:
    print("fastres: " + "\n".join(printable(line) for line in message.split("\n")), file=sys.stderr)
    return code
