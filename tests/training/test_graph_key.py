"""What of a recipe is in the key of a compiled graph: all that the traced function may read, and no more."""

from typing import Any

import pytest
import torch

from fastres.models import build
from fastres.recipe import (
    DinoConfig,
    DistillConfig,
    EmpSslConfig,
    LookaheadConfig,
    ModelConfig,
    Recipe,
    SpeednetConfig,
    TrainConfig,
)
from fastres.training.step import UNREAD, Step, settings_of_graph

OTHER: dict[str, Any] = {
    "epochs": 3.0,
    "batch_size": 7,
    "drop_last": True,
    "seed": 5,
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
    "deterministic": True,
    "grad_clip": 1.0,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "lookahead": LookaheadConfig(every=3),
    "best": "val_loss",
    "early_stopping": 2,
    "checkpoint_seconds": 1.0,
}
"""For each field of [train] a value that is not the default."""


def test_every_field_of_train_is_in_the_key_or_declared_unread() -> None:
    assert set(OTHER) == set(TrainConfig.model_fields), "a new field: give it another value here"
    assert set(OTHER) > UNREAD
    first = settings_of_graph(Recipe())
    for field, value in OTHER.items():
        assert value != getattr(TrainConfig(), field)
        recipe = Recipe().model_copy(update={"train": TrainConfig().model_copy(update={field: value})})
        assert (settings_of_graph(recipe) == first) == (field in UNREAD), field


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return "other" if isinstance(value, str) else [*(value or []), 1]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # another value need not be a valid one
@pytest.mark.parametrize(
    "table", [ModelConfig(), SpeednetConfig(), DistillConfig(teacher="a"), DinoConfig(), EmpSslConfig()]
)
def test_every_field_of_model_and_method_is_in_the_key(table: Any) -> None:
    place = "model" if isinstance(table, (ModelConfig, SpeednetConfig)) else "method"
    first = settings_of_graph(Recipe().model_copy(update={place: table}))
    for field in type(table).model_fields:
        changed = table.model_copy(update={field: another(getattr(table, field))})
        key = settings_of_graph(Recipe().model_copy(update={place: changed}))
        assert (key == first) == (field == "teacher"), field


def test_the_traced_function_reads_no_field_that_is_declared_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(blocks=[1], channels=[8], strides=[1], kernels=[3], skip_kernels=[1])
    recipe = Recipe(model=model, train=TrainConfig(compile=False, label_smoothing=0.1))
    step = Step(build(recipe.model, 10, 8), recipe, 10, torch.device("cpu"))
    read: set[str] = set()

    def record(table: TrainConfig, name: str) -> Any:
        read.add(name)
        return object.__getattribute__(table, name)

    monkeypatch.setattr(TrainConfig, "__getattribute__", record)
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    step._loss_and_correct(images, labels, labels.flip(0), torch.tensor([0.3]))
    assert "label_smoothing" in read, "the test sees what is read"
    assert not read & UNREAD
