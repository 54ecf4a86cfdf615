"""Recipes: layering, kinds, messages, round trips, schema."""

import json
import tomllib
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fastres import recipe
from fastres.errors import InvalidRecipe, UserError
from fastres.recipe import AugmentConfig, Recipe, RecordConfig, schema
from fastres.recipe.optimizers import OPTIMIZERS

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "recipe.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        Recipe.load(path, list(overrides))
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def test_there_are_recipes() -> None:
    assert {path.name for path in RECIPES} >= {"report_best.toml", "quickstart.toml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_round_trips_and_fits_the_schema(path: Path, write: Any) -> None:
    recipe = Recipe.load(path)
    assert Recipe.load(write(recipe.to_toml())) == recipe
    validator = jsonschema.Draft202012Validator(schema())
    validator.validate(tomllib.loads(path.read_text()))
    validator.validate(tomllib.loads(recipe.to_toml()))
    assert path.read_text().startswith("#:schema "), "the first line points editors to the schema"


def test_the_committed_schema_is_current() -> None:
    committed = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert committed == schema(), "run `make schema`"


def test_the_schema_refuses_what_the_models_refuse() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    for wrong in ({"train": {"epoch": 3}}, {"train": {"epochs": 0}}, {"optimizer": {"name": "sgdm"}}, {"trian": {}}):
        assert not validator.is_valid(wrong), wrong


def test_every_field_has_a_docstring() -> None:
    def tables(model: type[BaseModel]) -> list[type[BaseModel]]:
        return [model, *(inner for child in model.__subclasses__() for inner in tables(child))]

    from fastres.recipe import Table

    missing = [
        f"{table.__name__}.{name}"
        for table in tables(Table)
        if not table.__name__.startswith("_")
        for name, field in table.model_fields.items()
        if not field.description
    ]
    assert missing == []


def test_layers_extends_then_file_then_overrides(write: Any) -> None:
    write("[train]\nepochs = 3\nbatch_size = 7\nseed = 1\n", "base.toml")
    path = write('extends = "base.toml"\n[train]\nbatch_size = 8\nseed = 2\n')
    train = Recipe.load(path, ["train.seed=5"]).train
    assert (train.epochs, train.batch_size, train.seed) == (3, 8, 5)


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path, write: Any) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "base.toml").write_text('extends = "../root.toml"\n')
    write("[train]\nepochs = 9\n", "root.toml")
    assert Recipe.load(write('extends = "inner/base.toml"\n')).train.epochs == 9


def test_extends_in_a_circle(write: Any) -> None:
    write('extends = "b.toml"\n', "a.toml")
    assert "circle" in message(write('extends = "a.toml"\n', "b.toml"))


def test_changing_a_kind_keeps_only_the_keys_that_the_new_kind_has(write: Any) -> None:
    path = write('[optimizer]\nname = "sgd"\nmomentum = 0.8\nlr = 0.3\n')
    # Whatever the order of the overrides: the kind is chosen first.
    optimizer = Recipe.load(path, ["optimizer.betas=[0.8, 0.95]", "optimizer.name=adamw"]).optimizer
    assert optimizer.name == "adamw"
    assert optimizer.lr == 0.3
    assert optimizer.betas == [0.8, 0.95]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.epochs=4", 4),
        ("train.compile=false", False),
        ("train.compile=False", False),
        ("optimizer.lr=1", 1.0),
        ("optimizer.lr=1e-3", 1e-3),
        ("data.source=/some/where/a b.tar.xz", "/some/where/a b.tar.xz"),
        ("record.name=2024-05-06", "2024-05-06"),
        ('record.name="quoted"', "quoted"),
        ("model.blocks=[1, 2, 3, 4]", [1, 2, 3, 4]),
    ],
)
def test_overrides_parse_toml_or_are_text(write: Any, text: str, value: object) -> None:
    recipe: Any = Recipe.load(write(""), [text])
    table, key = text.partition("=")[0].split(".")
    assert getattr(getattr(recipe, table), key) == value


def test_an_empty_override_returns_to_the_default(write: Any) -> None:
    path = write("[train]\nepochs = 77\ngrad_clip = 1.0\n")
    train = Recipe.load(path, ["train.epochs=", "train.grad_clip="]).train
    assert train.epochs == Recipe().train.epochs
    assert train.grad_clip is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=4", ["train.epoch=4: unknown key 'train.epoch'", "did you mean 'train.epochs'"]),
        ("trian.epochs=4", ["'trian'", "did you mean 'train'"]),
        ("xyz.epochs=4", ["'xyz'", "a recipe has data, model"]),
        ("train.epochs=four", ["'train.epochs' is 'four'", "valid number"]),
        ("train.epochs=true", ["'train.epochs'", "valid number"]),
        ("train.epochs=inf", ["'train.epochs'", "finite number"]),
        ("train.batch_size=4.5", ["'train.batch_size'", "valid integer"]),
        ("train.epochs=0", ["'train.epochs' is 0", "greater than 0"]),
        ("train=3", ["'train' must be a table"]),
        ("optimizer.name=adamx", ["did you mean 'adam'", f"there are {', '.join(OPTIMIZERS.under(object))}"]),
        ("optimizer.betas=[0.9, 0.99]", ["'optimizer.betas'", "momentum"]),
        ("optimizer.lr=nan", ["'optimizer.lr'"]),
        ("schedule.name=step", ["'schedule.milestones' is missing"]),
        ("train.precision=bf61", ["did you mean 'bf16'"]),
        ("model.channels=[1, 2, 3]", ["blocks has 4 entries", "channels must have as many"]),
        ("model.kernels=[3, 4, 3, 3]", ["must be odd"]),
        ("train.best=val_los", ["train.best is 'val_los'", "val_loss"]),
        ("train.best=test_accuracy", ["eval.test_every"]),
        ("train.early_stopping=3", ["train.best"]),
        ("schedule.warmup_epochs=20", ["below train.epochs"]),
        ("train.epochs", ["table.key=value"]),
        ("optimizer.nesterov", ["table.key=value"]),
        ("augment.std=[0.1, 0.0, 0.1]", ["std must be positive"]),
        ("data.image_size=1", ["'data.image_size' is 1"]),
    ],
)
def test_messages_name_place_key_and_cure(write: Any, override: str, expected: list[str]) -> None:
    text = message(write(""), override)
    for part in expected:
        assert part in text


def test_several_faults_are_named_at_once(write: Any) -> None:
    path = write("[train]\nepoch = 3\nbatch_size = 1.5\n[modle]\nblocks = [1]\n")
    first, second = message(path, "augment.cutot=8").split("\n")
    for key in ("'train.epochs'", "'train.batch_size'", "'model'", "augment.cutot=8: unknown key 'augment.cutot'"):
        assert key in first + second
    assert second.startswith("also ") and "more" not in second
    wrong = "".join(f"wrong{number} = 1\n" for number in range(14))
    first, second = message(write(f"[train]\n{wrong}")).split("\n")
    assert (first + second).count("unknown key") == 10 and second.endswith("; and 4 more")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\r\nepochs = 3\r\n")
    assert Recipe.load(path).train.epochs == 3


def test_a_name_in_the_other_unicode_form_is_the_file(tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize("NFD", "café.toml")).write_text("[train]\nepochs = 3\n")
    assert Recipe.load(tmp_path / unicodedata.normalize("NFC", "café.toml")).train.epochs == 3


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: AugmentConfig(translat=4), "AugmentConfig: unknown key 'translat'; did you mean 'translate'?"),
        (lambda: recipe.Augment(translat=4), "AugmentConfig: unknown key 'translat'; did you mean 'translate'?"),
        (lambda: Recipe(train={"epoch": 3}), "Recipe: unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        (lambda: Recipe(optimizer={"name": "sdg"}), "Recipe: 'optimizer.name' is 'sdg'; did you mean 'sgd'?"),
        (lambda: AugmentConfig(flip="randm"), "did you mean 'random'?"),
        (lambda: RecordConfig(name="../../x"), "RecordConfig: name: '../../x' is no beginning of a folder's name"),
    ],
)
def test_tables_of_the_library_explain_themselves_as_files_do(make: Any, expected: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        make()
    assert expected in str(caught.value) and isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__, "no traceback of pydantic's"


def test_a_recipe_that_is_changed_says_how_to_make_another() -> None:
    with pytest.raises(AttributeError, match=r"a recipe stays as it is: load another one, .*TrainConfig\(epochs=…\)"):
        Recipe().train.epochs = 3.0


def test_impossible_combinations(write: Any) -> None:
    assert "momentum above 0" in message(write(""), "optimizer.nesterov=true", "optimizer.momentum=0.0")
    assert "validation images" in message(write(""), "data.split=none", "train.best=val_loss")
    assert "one_cycle warms up by itself" in message(write(""), "schedule.name=one_cycle", "schedule.warmup_epochs=1")
    assert "milestones must rise" in message(write(""), "schedule.name=step", "schedule.milestones=[3, 2]")


def test_an_error_in_an_extended_file_names_that_file(write: Any) -> None:
    base = write("[train]\nepocs = 3\n", "base.toml")
    assert message(write('extends = "base.toml"\n')).startswith(str(base))


def test_files_that_are_no_recipes(tmp_path: Path, write: Any) -> None:
    write("", "quick.toml")
    assert "did you mean" in message(tmp_path / "quik.toml")
    assert "no such recipe" in message(tmp_path / "nowhere" / "x.toml")
    assert "not a file" in message(tmp_path)
    assert "not valid TOML" in message(write("[train\n"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in message(tmp_path / "binary.toml")
    assert "'extends' must be" in message(write("extends = 3\n"))
    assert "no such recipe" in message(write('extends = "gone.toml"\n'))


def test_presets_fill_in_and_given_keys_win(write: Any) -> None:
    model = Recipe.load(write('[model]\npreset = "resnet34-imagenet"\n')).model
    assert (model.blocks, model.stem) == ([3, 4, 6, 3], "imagenet")
    path = write('[model]\npreset = "resnet34"\nblocks = [1, 1, 1, 1]\n')
    assert Recipe.load(path).model.blocks == [1, 1, 1, 1]
    # Asked for later, the preset wins over what a file had.
    assert Recipe.load(path, ["model.preset=resnet18-imagenet"]).model.blocks == [2, 2, 2, 2]


def test_lists_follow_the_number_of_stages(write: Any) -> None:
    model = Recipe.load(write("[model]\nblocks = [1, 1]\n")).model
    assert (model.channels, model.strides, model.kernels, model.skip_kernels) == ([64, 128], [1, 2], [3, 3], [1, 1])


def test_the_hash_follows_what_changes_numbers_only(write: Any) -> None:
    path = write("")
    plain = Recipe.load(path).hash()
    assert Recipe.load(path, ["record.name=x", "train.checkpoint_seconds=1.0"]).hash() == plain
    assert Recipe.load(path, ["data.loader=torch", "data.workers=0"]).hash() == plain
    assert Recipe.load(path, ["train.seed=1"]).hash() != plain


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3)))
def test_no_value_makes_anything_but_a_recipe_or_a_user_error(value: object) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.toml"
        path.write_text("")
        for key in ("train.epochs", "optimizer.lr", "model.blocks", "data.source", "schedule", "augment.mean"):
            try:
                Recipe.load(path, [f"{key}={json.dumps(value)}"])
            except UserError as error:
                assert str(error)
