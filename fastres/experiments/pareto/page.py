"""Output of `fastres bench pareto` from its facts, those of pareto.json: table, figure and notes."""

from pathlib import Path

from fastres.experiments.pareto.schema import Pareto, RecipeFacts
from fastres.report import document, pareto
from fastres.report.document import Details, Note, Part, Picture, Table
from fastres.report.pareto import Mark
from fastres.report.style import png, short
from fastres.utils.format import DASH, number
from fastres.utils.statistics import TWO_SEEDS

RESULTS, MARKDOWN = "pareto.json", "pareto.md"
_FRONTS = {"seconds": "time", "images_per_second": "speed"}


def write(folder: Path, facts: Pareto) -> None:
    """Write pareto.md, pareto.png and, last, pareto.json into `folder`."""
    parts: list[Part] = [table(facts)]
    if any(recipe.done for recipe in facts.entries):
        parts.append(Picture("pareto", picture(facts), caption(facts)))
    parts += [*map(Note, warnings(facts)), *notes(facts), Details("", facts.command)]
    document.write(folder, [MARKDOWN], "Accuracy against throughput", parts, figures="")
    facts.write(folder / RESULTS)


def table(facts: Pareto) -> Table:
    """A line a recipe, in the order in which they were given."""
    header = ["Recipe", "Test accuracy, mean ± SD", "Seeds", "Images/s", "Seconds", "First step, cold (s)"]
    header += ["First step, warm (s)", "Parameters", "On the front of"]
    forms = {"images_per_second": ",.0f", "seconds": ",.1f", "cold_seconds": ",.1f", "warm_seconds": ",.1f"}
    lines = []
    for recipe in facts.entries:
        mean, sd, done = recipe.mean, recipe.sd_test_accuracy, len(recipe.done)
        lost = len(recipe.runs) - done
        spread = "" if sd is None else f" ± {100 * sd:.2f}"
        accuracy = DASH if mean.test_accuracy is None else f"{100 * mean.test_accuracy:.2f}{spread}%"
        cells = [recipe.name, accuracy, f"{done} ({lost} diverged)" if lost else f"{done}"]
        cells += [*(number(mean[key], form) for key, form in forms.items()), number(recipe.parameters, ",d")]
        lines.append([*cells, " and ".join(_FRONTS[key] for key in recipe.front) or DASH])
    return Table(header, lines)


def mark_of(recipe: RecipeFacts, index: int) -> Mark:
    """A recipe's point in the figure."""
    name, done = short(recipe.name, 30), recipe.done
    return Mark(recipe.name, name if len(done) == 1 else f"{name} ({len(done)} seeds)", index, done)


def picture(facts: Pareto) -> bytes:
    """The figure, a PNG."""
    marks = [mark_of(recipe, index) for index, recipe in enumerate(facts.entries)]
    return png(pareto.pareto([mark for mark in marks if mark.runs], facts.records))


def caption(facts: Pareto) -> str:
    """Caption of the figure."""
    text = f"Test accuracy on {facts.source} against training speed and against the time of the whole run. "
    text += "Filled points are on the Pareto front, which the dashed line follows; bars are one SD over seeds."
    if not facts.records:
        return text
    published = []
    for each in facts.records:
        mean = f", mean of {each.runs:,}" if each.runs else ""
        result = f"{100 * each.accuracy:.2f}% in {each.seconds:g} s ({each.device}{mean})"
        published.append(f"[{each.name}]({each.source}) {result}")
    return f"{text} Stars are published results, which take no part in the front: {', '.join(published)}."


def warnings(facts: Pareto) -> list[str]:
    """Reasons against a comparison."""
    texts = []
    if facts.records:
        devices = " or ".join(sorted({each.device for each in facts.records}))
        where = " and ".join(facts.devices) or "another device"
        texts.append(
            f"The published results were measured on other devices ({devices}) than these runs ({where}), by their "
            "authors' own clocks: their seconds are no measure of these recipes."
        )
        if facts.test_images not in (None, 10_000):
            texts.append(
                f"Tested on {facts.test_images:,} of the 10,000 test images that the published results are about."
            )
    if facts.pixels == "copy":
        texts.append(
            f"The images of {facts.source} are a lossy copy of CIFAR-10: accuracies on them cannot be compared with "
            "those of the published results, which are on the original pixels."
        )
    if len(facts.devices) > 1:
        texts.append(f"The runs were made on different devices ({', '.join(facts.devices)}): so were their seconds.")
    if optimistic := [entry.name for entry in facts.entries if entry.chosen_on_test]:
        texts.append(
            f"{', '.join(optimistic)}: the epoch that did best on the test images was kept, which is optimistic."
        )
    lost = [run for entry in facts.entries for run in entry.runs if run.state != "complete"]
    texts += [f"{run.run}: {run.state}: {run.error}" for run in lost]
    return texts


def notes(facts: Pareto) -> list[str]:
    """Notes on reading the numbers."""
    texts = [
        "Seconds are those of the whole run, tests included; images/s are those of the training steps alone. The first "
        "step is done after so many seconds from the start of a run: cold where the step had to be compiled, warm "
        "where an earlier run had left it compiled."
    ]
    if any(len(entry.done) == 2 for entry in facts.entries):
        texts.append(f"Of a mean over two: {TWO_SEEDS}.")
    if all(len(entry.runs) == 1 for entry in facts.entries):
        texts.append("Each recipe is one seed; another seed moves an accuracy by an amount that this cannot show.")
    return texts
