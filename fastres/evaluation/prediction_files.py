"""Predictions as files: CSV for people, for Kaggle and for the challenge, and the same as JSON."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastres.errors import UserError
from fastres.evaluation.predictions import Prediction, Predictions
from fastres.utils.files import write_bytes
from fastres.utils.format import plural
from fastres.utils.progress import say
from fastres.utils.terminal import printable
from fastres.utils.untrusted import encodable

FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""With what a cell begins that spreadsheets run (OWASP, "CSV Injection")."""

Rows = Iterable[Sequence[Any]]


def write_csv(path: Path, header: Sequence[str], rows: Rows, *, spreadsheet: bool = False) -> None:
    """Write a CSV file in UTF-8; a file's name keeps its bytes, UTF-8 or not. Names that a spreadsheet would run as a
    formula get a ' in front for a `spreadsheet`, and are mentioned otherwise."""
    formulas: list[str] = []
    lines = []
    for row in [header, *rows]:
        formulas += [cell for cell in row if isinstance(cell, str) and cell.startswith(FORMULAS)]
        lines.append(b",".join(_cell(cell, spreadsheet) for cell in row) + b"\n")
    if formulas and not spreadsheet:
        say(
            f"{plural(len(formulas), 'name', 'names')} such as {printable(formulas[0][:60])} would be a formula in a "
            "spreadsheet: `--spreadsheet` puts a ' in front"
        )
    write_bytes(path, b"".join(lines))


def _cell(value: Any, spreadsheet: bool = False) -> bytes:
    """A CSV cell: quoted where a file's name holds a comma, a quote or a line break, for a spreadsheet no formula."""
    text = str(value)
    if spreadsheet and isinstance(value, str) and text.startswith(FORMULAS):
        text = "'" + text
    if any(mark in text for mark in ',"\r\n'):
        text = '"' + text.replace('"', '""') + '"'
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a pickle's ids may hold surrogates that stand for no byte
        return text.encode(errors="replace")


def shortest(probability: float) -> np.float32:
    """A float32 that prints as the shortest text which reads back as the same float32."""
    return np.float32(probability)


def header_of(top: int) -> list[str]:
    """Names of the columns of `row_of`."""
    further = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "probability")]
    return ["class", "probability", *further]


def row_of(prediction: Prediction, top: int) -> list[Any]:
    """The `top` most probable classes, each with its probability."""
    return [cell for name, probability in prediction.top(top) for cell in (name, shortest(probability))]


def challenge_rows(ids: Sequence[Any], predictions: Predictions) -> Rows:
    """Rows under `ID,Labels`, the form of the challenge: the number of the most probable class."""
    return zip(ids, predictions.logits.argmax(1).tolist(), strict=True)


def kaggle_rows(names: Sequence[Any], predictions: Predictions, *, files: bool) -> Rows:
    """Rows under `id,label`, Kaggle's form: the name, of `files` without folders and ending, and the class; in the
    order of numbers where all are numbers. Raises UserError where two images have one id."""
    ids = [PurePosixPath(name).stem if files else str(name) for name in names]
    first: dict[str, Any] = {}
    for number, name in zip(ids, names, strict=True):
        if (other := first.setdefault(number, name)) is not name:
            raise UserError(f"{printable(str(other))} and {printable(str(name))} have one id: predict one of them")
    rows = list(zip(ids, predictions.labels, strict=True))
    if all(re.fullmatch("[0-9]{1,18}", number) for number in ids):
        rows.sort(key=lambda row: int(row[0]))
    return rows


def as_json(name: Any, prediction: Prediction, top: int) -> dict[str, Any]:
    """An image's prediction: file, class, probability, and the `top` classes where those are more than one."""
    best = [{"class": label, "probability": float(str(shortest(value)))} for label, value in prediction.top(top)]
    told = {"file": encodable(name) if isinstance(name, str) else name, **best[0]}
    return told if top == 1 else told | {"top": best}
