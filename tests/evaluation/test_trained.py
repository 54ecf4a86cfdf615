"""A trained model on what people have: paths, pictures, arrays of any size; on a copied folder; without its data."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import fastres
from fastres.data import open_dataset
from fastres.data.store.encoded import decode
from fastres.evaluation.evaluator import Evaluator, everything
from fastres.evaluation.predict import evaluate
from fastres.evaluation.trained import TrainedModel
from fastres.runs import checkpoint
from tests.photos import NAMES, train_on, write_photos

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 photos of three classes, and a run that learnt them."""
    home = tmp_path_factory.mktemp("photos")
    write_photos(home / "photos", {"train": 80, "val": 20})
    train_on(home / "photos", home / "run")
    return home


@pytest.fixture
def model(home: Path) -> TrainedModel:
    return fastres.load(home / "run", device="cpu")


def written(run: Path, out: Path, **options: Any) -> list[dict[str, str]]:
    """What `evaluate` writes of each test image."""
    evaluate(run, device="cpu", predictions=out, **options)
    return list(csv.DictReader(io.StringIO(out.read_text())))


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({}, 1e-4),  # fp32, in other orders of sums
        ({'precision = "fp32"': 'precision = "bf16"'}, 2e-2),  # bf16 has 8 bits
        ({'tta = "none"': 'tta = "translate"'}, 1e-4),
    ],
)
def test_a_photo_has_the_probability_that_eval_writes(
    change: dict[str, str], tolerance: float, home: Path, tmp_path: Path
) -> None:
    """Also after the folder was copied elsewhere, where nothing but the photo is left."""
    run = shutil.copytree(home / "run", tmp_path / "run")
    recipe = (run / "recipe.toml").read_text()
    for old, new in change.items():
        assert old in recipe
        recipe = recipe.replace(old, new)
    (run / "recipe.toml").write_text(recipe)
    rows = written(run, tmp_path / "eval.csv")
    assert len(rows) == 60 and {row["label"] for row in rows} == {*NAMES}
    photos = shutil.copytree(home / "photos" / "val", tmp_path / "elsewhere" / "val")
    (run / "recipe.toml").write_text(recipe.replace(str(home / "photos"), "/gone"))
    model = fastres.load(run, device="cpu")
    expected = np.array([row["probability"] for row in rows], np.float32)
    for padded in (False, True):
        answers = [model(photos.parent / row["file"], padded=padded) for row in rows[:7]]
        assert [answer.label for answer in answers] == [row["class"] for row in rows[:7]]
        found = np.array([answer.probability for answer in answers], np.float32)
        assert np.array_equal(found, expected[:7]) or not padded, "the same bits in a batch of the same shape"
        assert np.abs(found - expected[:7]).max() <= tolerance
    together = model([photos.parent / row["file"] for row in rows], padded=True)
    assert np.array_equal(together.probabilities.amax(1).numpy(), expected)


def test_what_is_prepared_is_what_the_store_holds(home: Path, model: TrainedModel) -> None:
    test = open_dataset(home / "photos", quiet=True).test
    assert test is not None
    rows = written(home / "run", home / "eval.csv")
    files = [home / "photos" / row["file"] for row in rows]
    assert np.array_equal(model.prepare(files).numpy(), test.images)
    pictures = [Image.open(file) for file in files]
    assert np.array_equal(model.prepare(pictures).numpy(), test.images)
    arrays = [np.asarray(picture) for picture in pictures]
    assert np.array_equal(model.prepare(arrays).numpy(), test.images)
    tensors = tuple(torch.tensor(array).permute(2, 0, 1) for array in arrays)
    assert np.array_equal(model.prepare(tensors).numpy(), test.images)
    assert np.array_equal(model.prepare(np.asarray(test.images)).numpy(), test.images)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["RGB", "L", "P", "RGBA", "LA", "1", "I;16"]))
def test_any_picture_is_prepared_as_its_file_is(height: int, width: int, mode: str) -> None:
    random = np.random.default_rng((height, width))
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(random.integers(0, 1 << 16, (height, width), dtype=np.uint16))
    else:
        picture = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    picture.save(file, "PNG")
    unread = object.__new__(TrainedModel)
    object.__setattr__(unread, "facts", type("Facts", (), {"image_size": 32}))
    assert np.array_equal(unread.prepare(picture)[0].numpy(), decode(file.getvalue(), 32))
    if mode == "RGB":
        assert np.array_equal(unread.prepare(pixels)[0].numpy(), decode(file.getvalue(), 32))


def test_batches_of_any_size_and_form(model: TrainedModel) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 41, 33, 3), dtype=np.uint8)
    whole = model(images)
    assert len(whole) == 7 and whole.probabilities.shape == (7, 3) and whole.labels == [one.label for one in whole]
    forms = [torch.from_numpy(images), torch.from_numpy(images).permute(0, 3, 1, 2), list(images), images[::-1][::-1]]
    for form in forms:
        assert torch.equal(model(form).logits, whole.logits)
    one = model(images[3])
    # A batch of one may sum in another order: fp32 rounding.
    assert torch.allclose(one.probabilities, whole[3].probabilities, atol=1e-6)
    assert torch.equal(whole[2:5].logits, whole.logits[2:5])
    assert len(model(images[:0])) == len(model([])) == 0
    model.module.train()  # as a caller might leave it
    assert torch.equal(model(images).logits, whole.logits)


def test_classes_go_by_name(model: TrainedModel) -> None:
    answer = model(np.full((50, 50, 3), 90, np.uint8))
    ranked = answer.top(99)
    assert [name for name, _ in ranked] == [NAMES[label] for label in answer.logits.argsort(descending=True)]
    assert (answer.label, answer.probability) == ranked[0] and len(answer.top()) == 3
    assert sum(probability for _, probability in ranked) == pytest.approx(1)
    assert answer[ranked[1][0]] == ranked[1][1]
    assert str(answer).startswith(f"{answer.label} {answer.probability:.2%}, ")
    with pytest.raises(KeyError, match="'cow' is none of the 3 classes"):
        answer["cow"]


def test_the_module_is_a_plain_one(model: TrainedModel) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    mean, std = (torch.tensor(values).float() for values in (model.facts.mean, model.facts.std))
    normal = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model.module(normal)
    assert isinstance(model.module, torch.nn.Module) and not model.module.training
    # The normalisation is one multiplication and addition there, a division here: fp32 rounding of values near 2.
    assert torch.allclose(model(images).logits, logits, atol=1e-4)
    assert model.temperature is not None
    expected = (model(images).logits.double() / model.temperature).softmax(1).float()
    assert torch.equal(model(images).probabilities, expected)


@pytest.mark.parametrize("views", ["none", "mirror", "translate", "selective"])
def test_views_are_those_of_the_test(views: str, model: TrainedModel) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    options = model.recipe.eval.model_copy(update={"tta": views})
    options_of_training = model.recipe.train.model_copy(update={"compile": False, "precision": "fp32"})
    evaluator = Evaluator(model.module, model.augment, options_of_training, model.device)
    expected = evaluator.logits(everything(images, 9, model.device), options)
    assert torch.equal(model(images, views=views).logits, expected)


def test_what_is_no_image_is_an_error(model: TrainedModel, tmp_path: Path) -> None:
    for images, message in (
        (np.zeros((8, 8, 3)), "images are float64: give uint8"),
        (torch.zeros(2, 3, 8, 8), r"images are torch.float32: give uint8"),
        (np.zeros((8, 8), np.uint8), r"shape \[8, 8\]: give"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \[8, 8, 4\]: give"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \[0, 8, 3\]: give"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], "an image in a list"),
        ({"a": 1}, "dict is no image"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="views are 'all': give one of none, mirror, translate, selective"):
        model(np.zeros((8, 8, 3), np.uint8), views="all")
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff")
    for path, told in (
        (tmp_path / "none.jpg", "cannot read .*none.jpg"),
        (tmp_path / "cat.jpg", "cat.jpg is no JPEG or PNG image"),
        (tmp_path, "is no regular file"),
    ):
        with pytest.raises(fastres.UserError, match=told):
            model([path])


def test_a_run_of_before_is_loaded_and_says_what_it_lacks(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(home / "run", tmp_path / "run")
    weights, facts = checkpoint.load_weights(run / checkpoint.FINAL)
    known = {"classes", "image_size", "mean", "std"}
    old = {key: value for key, value in facts.to_json().items() if key in known}
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    save_file(weights, run / checkpoint.FINAL, {"fastres": json.dumps(old)})
    model = fastres.load(run, device="cpu")
    told = "probabilities are uncalibrated: the run is of a version of fastres that fitted no temperature"
    assert capfd.readouterr().err.count(told) == 1
    image = np.full((50, 50, 3), 90, np.uint8)
    calibrated = fastres.load(home / "run", device="cpu")(image)
    assert capfd.readouterr().err == ""
    assert model.temperature is None and torch.equal(model(image).logits, calibrated.logits)
    assert torch.equal(model(image).probabilities, calibrated.logits.double().softmax(0).float())
    assert model.batch_size == 500, "of eval.batch_size, as nothing else is known"
    _, measured = evaluate(run, device="cpu")
    assert measured.calibrated_loss is None


def test_the_run_says_how_it_was_calibrated(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, measured = evaluate(home / "run", device="cpu")
    summary = json.loads((home / "run" / "summary.json").read_text())
    assert summary["calibration"]["images"] == 48 and summary["calibrated_error"] == measured.calibrated_error
    with safe_open(home / "run" / checkpoint.FINAL, "pt") as file:
        facts = json.loads(file.metadata()["fastres"])
    assert facts["calibration"] == summary["calibration"]
    assert (facts["crop"], facts["resize"], facts["batch_size"]) == ("centre", "bicubic", 60)
    run = train_on(home / "photos", tmp_path / "run", "data.split=none")
    fastres.load(run, device="cpu")
    reason = "uncalibrated: there are no validation images (data.split = 'none')"
    assert f"{run}: probabilities are {reason}" in capfd.readouterr().err


def test_other_data_is_matched_by_name(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, own = home / "run", written(home / "run", tmp_path / "own.csv")
    for part in ("train", "val"):  # without cats, so that a dog is class 0 there
        for name in NAMES[1:]:
            shutil.copytree(home / "photos" / part / name, tmp_path / "fewer" / part / name)
    rows = written(run, tmp_path / "out.csv", data=str(tmp_path / "fewer"))
    assert "has no images of these classes: cat" in capfd.readouterr().err
    expected = {row["file"]: row for row in own if row["label"] != "cat"}
    assert {row["file"]: row for row in rows} == expected, "the same bits in other company"
    (tmp_path / "fewer" / "train" / "dog").rename(tmp_path / "fewer" / "train" / "=cow")
    (tmp_path / "fewer" / "val" / "dog").rename(tmp_path / "fewer" / "val" / "=cow")
    with pytest.raises(fastres.UserError, match=r"classes that were not trained on: =cow;\nleave them out: cat, dog"):
        evaluate(run, data=str(tmp_path / "fewer"))
