"""Epoch time, and where it goes: two networks, three batch sizes, one factor at a time changed from the default.

The default (the report's augmentation, the `resident` loader, a compiled step of fused layers) competes with plain
PyTorch (plain.py); what changes a factor competes with the default, so that its ratio says what the factor costs. A
turn is a second of steps in the middle of an epoch, three at least, after two that are not timed, with which a loader
begins to read ahead. An epoch's seconds are extrapolated from them: what a loader does once an epoch is not in them.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.harness.sameness import near
from benchmarks.harness.summary import with_parts
from benchmarks.harness.versus import DEVICE, FIGURES, Side, Versus, matrix_product, note
from benchmarks.suites.epoch_parts import bars, parts
from benchmarks.suites.epoch_variants import DEFAULTS, PlainTraining, Training, Variant, changed
from fastres.engine.memory import keep_freed_memory
from fastres.engine.precision import DTYPES
from fastres.report.style import png
from fastres.utils.files import write_bytes

PROFILED = 20
SUBSET = (
    *DEFAULTS[:2],
    replace(DEFAULTS[0], loader="torch"),
    replace(DEFAULTS[0], augmentation="none"),
    replace(DEFAULTS[0], compiled=False),
    replace(DEFAULTS[0], fused=False),
)
"""Variants that run without --full."""

keep_freed_memory()  # as `fastres train` does


def parameter(variant: Variant) -> Any:
    """Of a test, marked where it is none of SUBSET."""
    name = f"{variant.network} {variant.batch} {variant.factor}".replace(" ", "-")
    return pytest.param(variant, id=name, marks=() if variant in SUBSET else pytest.mark.full)


@pytest.fixture(scope="module", autouse=True)
def figure(request: pytest.FixtureRequest) -> Iterator[None]:
    """Beside the JSON of --save-results, a picture of where the time goes."""
    yield
    path = request.config.getoption("--save-results")
    entries = with_parts(FIGURES)
    if path is not None and entries:
        write_bytes(path.with_name(f"{path.stem}-epoch.png"), png(bars(entries)))


# The rival computes in fp32, ours in bf16, which rounds each of twelve convolutions' outputs to one part in 256; 0.02%
# was measured.
SAME_NETWORK = near(loss=0.01)
# Eager operators and compiled code round to bf16 in other places. As in bench_step.py, that is noise of some 10% of the
# weights' update, which makes it longer by 1%, and 0.1% of the loss; a wrong rate or a missing step is beyond that.
SAME_STEPS = near(order=0, loss=0.01, update=0.25, update_length=0.05)
SAME_BITS = near(order=0, loss=0, update=0)
SAME_ORDER = near(order=0)


@pytest.mark.parametrize("variant", [parameter(each) for each in DEFAULTS])
def test_epoch(variant: Variant, source: str, root: str, versus: Versus, dry: bool) -> None:
    """The default against plain PyTorch."""
    training = Training(variant, source, root, dry)
    ours, rival = (each.side(each.untrained_loss) for each in (training, PlainTraining(training, dry)))
    compare(variant, training, ours, rival, SAME_NETWORK, "plain PyTorch", versus)


@pytest.mark.parametrize("variant", [parameter(each) for default in DEFAULTS for each in changed(default)])
def test_factor(variant: Variant, source: str, root: str, versus: Versus, dry: bool) -> None:
    """A factor against the default."""
    training, default = (Training(each, source, root, dry) for each in (variant, variant.default))
    same = SAME_STEPS
    if variant.loader != default.recipe.data.loader:
        same = SAME_BITS
    elif variant.augmentation != variant.default.augmentation:
        same = SAME_ORDER  # the images are others, and each side's are compared with the reference
    ours, rival = (each.side(each.two_steps) for each in (training, default))
    compare(variant, training, ours, rival, same, "the default", versus)
    default.data_module.close()


def compare(
    variant: Variant, training: Training, ours: Side, rival: Side, same: Any, against: str, versus: Versus
) -> None:
    """Time by turns, then the parts."""
    recipe, train = training.recipe, training.data_module.train
    steps_an_epoch = len(train.subset) / train.batch_size
    ratio = versus(
        ours,
        rival,
        same=same,
        rounds=7 if versus.full else 3,
        against=against,
        unit="images",
        ceiling=matrix_product(DTYPES[recipe.train.precision], 64 if versus.dry else 2048),
        operations=training.operations * ours.units,
        recipe=recipe,
        device=DEVICE,
        source=training.data_module.dataset.name,
    )
    step_seconds, profiled = ratio.seconds * recipe.train.batch_size, min(training.steps, PROFILED)
    found = parts(training.ours, profiled, step_seconds)
    note(
        versus.request,
        versus.benchmark,
        setting=variant.setting,
        factor=variant.factor,
        epoch_seconds=step_seconds * steps_an_epoch,
        epoch_images=len(train.subset),
        timed_steps=training.steps,
        profiled_steps=profiled,
        parts={part: seconds * steps_an_epoch for part, seconds in found.items()},
    )
    training.data_module.close()
