"""The figures of the page that no run has drawn."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from fastres.report.style import BLACK, BLUE, LEAKY, RED, TEXT, curve, epoch_axis, single
from fastres.runs.schema import Epoch


def leak(code: Sequence[Epoch], honest: Sequence[Epoch]) -> Figure:
    """Losses by epoch of two runs: training (blue) and leaky validation (red) of the one with the code's split, rows of
    metrics.jsonl `code`, and validation on held-out images (black) of the one without the leak, `honest`."""
    figure, axes = single(3.9)
    seen = [
        *curve(axes, code, "train_loss", color=BLUE, label="training, the code's split"),
        *curve(axes, code, "val_loss", color=RED, linestyle=(0, (5, 1.5)), label=f"{LEAKY}, the code's split"),
        *curve(axes, honest, "val_loss", color=BLACK, linestyle="-.", marker="s", label="validation, held out"),
    ]
    axes.set_ylim(0, 1.06 * max(seen) if seen and max(seen) > 0 else 1)
    axes.set_ylabel("cross-entropy loss (nats an image)", fontsize=TEXT)
    epoch_axis(axes, max((row.epoch for row in (*code, *honest)), default=1))
    figure.legend(loc="outside upper center", ncols=2, fontsize=TEXT, frameon=False, handlelength=3)
    return figure
