"""Kinds of tables and names of values that are added at run time, in recipes and in what is built of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from fastres.bench.counts import update_work
from fastres.data.loaders import choose
from fastres.errors import UserError
from fastres.models import build
from fastres.models.network import FAMILIES
from fastres.optim import build_optimizer
from fastres.recipe import Recipe, schema
from fastres.recipe.data import LOADER_NAMES, NAMED
from fastres.recipe.networks import NETWORKS, NetworkConfig
from fastres.recipe.optimizers import OPTIMIZERS, ElementwiseConfig


@pytest.fixture
def lion(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ElementwiseConfig]]:
    """An optimizer's table that is registered for the time of a test."""
    monkeypatch.setattr(OPTIMIZERS, "_tables", dict(OPTIMIZERS._tables))

    @OPTIMIZERS.register
    class _LionConfig(ElementwiseConfig):
        name: Literal["lion"] = "lion"
        lr: float = 1e-4
        weight_decay: float = 0.0
        sharpness: int = 1

    yield _LionConfig


@pytest.fixture
def load(tmp_path: Path) -> Any:
    path = tmp_path / "recipe.toml"
    path.write_text("")
    return lambda *overrides: Recipe.load(path, list(overrides))


def test_a_kind_that_is_registered_later_is_like_the_others(lion: Any, load: Any, tmp_path: Path) -> None:
    recipe = load("optimizer.name=lion", "optimizer.sharpness=3")
    assert isinstance(recipe.optimizer, lion) and recipe.optimizer.sharpness == 3
    (tmp_path / "whole.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "whole.toml") == recipe
    assert recipe.hash() != load("optimizer.name=lion").hash()
    auxiliary = load("optimizer.name=muon", "optimizer.auxiliary.name=lion", "optimizer.auxiliary.sharpness=2")
    assert isinstance(auxiliary.optimizer.auxiliary, lion)
    for overrides, message in (
        (["optimizer.name=lino"], f"did you mean 'lion'? there are {', '.join(OPTIMIZERS.under(object))}"),
        (["optimizer.name=lion", "optimizer.sharpnes=3"], "did you mean 'optimizer.sharpness'?"),
        (["optimizer.name=lion", "optimizer.sharpness=x"], "'optimizer.sharpness' is 'x'"),
        (
            ["optimizer.name=muon", "optimizer.auxiliary.name=muon"],
            f"there are {', '.join(OPTIMIZERS.under(ElementwiseConfig))}",
        ),
    ):
        with pytest.raises(UserError) as caught:
            load(*overrides)
        assert message in str(caught.value)


def test_what_has_no_implementation_is_told_and_not_taken_for_another(lion: Any) -> None:
    network = nn.Linear(3, 2)
    for ask in (build_optimizer, update_work):
        with pytest.raises(LookupError, match="no update rule is registered for _LionConfig, only for SgdConfig, "):
            ask(lion(), network)

    class _NothingConfig(NetworkConfig):
        name: Literal["nothing"] = "nothing"

    with pytest.raises(LookupError, match="no family of networks is registered for _NothingConfig"):
        build(_NothingConfig(), 10, 32)
    with pytest.raises(LookupError, match="no loader is registered for 'nothing'"):
        choose.open_pixels("nothing", None, torch.device("cpu"))  # type: ignore[arg-type]


def test_names_can_be_added(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOADER_NAMES, "_names", list(LOADER_NAMES))
    LOADER_NAMES.register("mine")
    assert load("data.loader=mine").data.loader == "mine"
    with pytest.raises(UserError, match=" or 'mine'; did you mean 'mine'"):
        load("data.loader=mien")


def test_the_schema_lists_what_the_package_has() -> None:
    tables = schema()["properties"]
    found = {table: json.dumps(tables[table]["discriminator"]["mapping"]) for table in ("model", "optimizer")}
    assert all(f'"{name}"' in found["optimizer"] for name in OPTIMIZERS.under(object))
    assert all(f'"{name}"' in found["model"] for name in NETWORKS.under(object))
    assert schema()["$defs"]["DataConfig"]["properties"]["loader"]["enum"] == list(LOADER_NAMES)


def test_every_name_has_its_implementation() -> None:
    from fastres.data.sources.named import SETS

    assert set(FAMILIES) == set(NETWORKS.under(object).values())
    assert set(SETS) == set(NAMED)
    assert all(choose.loader_of(kind).__name__ for kind in choose.KINDS)
