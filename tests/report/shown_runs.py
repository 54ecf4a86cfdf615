"""Runs that pages and figures of tests show."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pages import Page
from PIL import Image

from fastres.recipe import Recipe
from fastres.report.run_page import ReportData, write_report
from fastres.report.style import png
from fastres.runs.environment import Environment
from fastres.runs.schema import Best, Epoch, Summary

NAMES = ["samples", "class_counts", "augmented", "loss", "accuracy", "learning_rate", "confusion", "worst_mistakes"]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://example.org/x onerror=alert(1)>',
    "$\\frac{$ & </table>",
    "a very long name " * 20,
    "line\nbreak\ttab\x00nul\x1besc",
    "猫 \u202e lone \udc80",
    "",
)


def report_data(
    classes: tuple[str, ...], *, side: int = 8, test: int = 60, wrong: int = 7, val: bool = True, seed: int = 0
) -> ReportData:
    """Noise as images; the first `wrong` test images are given the next class, all others their own."""
    random = np.random.default_rng(seed)
    number = len(classes)
    labels = np.arange(test) % number
    predicted = np.where(np.arange(test) < wrong, (labels + 1) % number, labels)
    probabilities = np.full((test, number), 0.01, np.float32)
    probabilities[np.arange(test), predicted] = np.linspace(0.6, 0.99, test, dtype=np.float32)
    samples = random.integers(0, 256, (40, side, side, 3), dtype=np.uint8)
    return ReportData(
        classes=classes,
        train_labels=random.integers(0, number, 500),
        val_labels=random.integers(0, number, 50) if val else None,
        samples=samples,
        sample_labels=random.integers(0, number, 40),
        augmented=samples[:, :, ::-1].astype(np.float32) / 255,
        test_images=random.integers(0, 256, (test, side, side, 3), dtype=np.uint8),
        test_labels=labels,
        test_probabilities=probabilities,
    )


def metrics(epochs: int, *, val: bool = True) -> list[Epoch]:
    rows = []
    for epoch in range(1, epochs + 1):
        row = Epoch(epoch=epoch, step=10 * epoch, lr=0.1 / epoch, train_loss=2 / epoch, train_accuracy=0.5)
        row = row.updated(val_loss=2.5 / epoch, val_accuracy=0.45) if val else row
        rows.append(row.updated(seconds=1.5, images_per_second=1000.0))
    return rows


SUMMARY: dict[str, Any] = {
    "name": "a run",
    "recipe_hash": "0123456789ab",
    "source": "cifar10",
    "split": "holdout",
    "test_accuracy": 53 / 60,
    "test_loss": 0.4,
    "best": Best(metric="val_loss", epoch=3, value=0.8),
    "parameters": 4_903_242,
    "multiply_adds": 253_000_000,
    "epochs": 3,
    "steps": 30,
    "images_per_second": 1234.5,
    "seconds": 4000.0,
    "cold_seconds": 41.0,
    "precision": "bf16",
    "compiled": False,
    "compile_note": "no C++ compiler found",
    "device": "a processor",
    "peak_memory_bytes": 2**30,
    "expected_calibration_error": 0.021,
    "stopped": "completed",
}
MACHINE = Environment(fastres="0.1.0", commit="c" * 40, dirty=True, torch="2.13.0", python="3.11.7")


def write(run: Path, shown: ReportData, rows: list[Epoch], **changes: Any) -> tuple[str, Page]:
    summary = Summary(**SUMMARY | changes)
    path = write_report(run, recipe=Recipe(), rows=rows, summary=summary, environment=MACHINE, report_data=shown)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def drawn(figure: Figure) -> Image.Image:
    """The figure as a file would hold it; the size on the page is 1120 pixels wide."""
    image = Image.open(io.BytesIO(png(figure)))
    image.load()
    # One pixel may be lost where 7 inches of 160 pixels are rounded.
    assert abs(image.width - 1120) <= 1 and 100 <= image.height <= 3000
    return image
