"""Distillation: the loss against fp64, the teacher's view and its limits, exact resume, and that it teaches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastres import train
from fastres.errors import UserError
from fastres.evaluation.trained import TrainedModel
from fastres.models import build
from fastres.recipe import DistillConfig, Recipe
from fastres.runs import checkpoint
from fastres.training.data import DataModule, open_data_module
from fastres.training.loop import Run, RunResult
from fastres.training.methods.distillation import Distillation
from fastres.training.methods.registry import method_of
from fastres.training.run import resume
from fastres.training.step import Step

CPU = torch.device("cpu")
COMMON: dict[str, Any] = {
    "data": {"train_images": 64, "test_images": 40, "split": "none"},
    "model": {"blocks": [1, 1], "channels": [4, 8], "strides": [2, 2]},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "train": {"epochs": 1.0, "batch_size": 16, "compile": False, "precision": "fp32"},
    "record": {"report": False},
}


def recipe(**tables: Any) -> Recipe:
    return Recipe.model_validate(
        {name: {**COMMON.get(name, {}), **tables.get(name, {})} for name in {**COMMON, **tables}}
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A run that was trained with colours of its own."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    colours = {"mean": [0.3, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    return train(recipe(augment=colours), out=out, device="cpu", quiet=True).run


def opened(options: Recipe) -> DataModule:
    return open_data_module(options, CPU, quiet=True)


def test_the_loss_in_fp64_by_its_definition(teacher: Path) -> None:
    """On mixed images, with the teacher's own colours: (1 − w)·CE + w·T²·Σ p·log(p/q)."""
    options = recipe(method={"name": "distill", "teacher": str(teacher), "temperature": 3.0, "weight": 0.7})
    assert isinstance(options.method, DistillConfig)
    data_module = opened(options)
    found = Distillation(options.method)
    found.prepare(data_module, CPU)
    torch.manual_seed(0)
    network = build(options.model, 10, 32)
    step = Step(network, options, 4, CPU, found)
    rows = torch.arange(16)
    images = data_module.augment.normalize(data_module.train.source, rows)  # type: ignore[attr-defined]
    labels, partners, weight = rows % 10, (rows + 3) % 10, torch.tensor([0.25])
    network.train()
    loss, _ = step._loss_and_correct(images, labels, partners, weight)

    twin = build(options.model, 10, 32).double().train()
    torch.manual_seed(0)
    twin.load_state_dict(build(options.model, 10, 32).state_dict())
    kept = TrainedModel.load(teacher, "cpu")
    pixels = torch.tensor(data_module.train_images[:16]).double().permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(each, dtype=torch.float64).view(1, 3, 1, 1)
        for each in (kept.recipe.augment.mean, kept.recipe.augment.std)
    )
    told = kept.module.double().eval()((pixels - mean) / std)
    logits = twin((pixels - data_module.augment.mean.view(1, 3, 1, 1)) / data_module.augment.std.view(1, 3, 1, 1))

    def cross_entropy(target: Tensor) -> Tensor:
        return -logits.log_softmax(1)[torch.arange(16), target].mean()

    p, q = (told / 3).softmax(1), (logits / 3).softmax(1)
    soft = (p * (p / q).log()).sum(1).mean()
    expected = 0.3 * (0.25 * cross_entropy(labels) + 0.75 * cross_entropy(partners)) + 0.7 * 9 * soft
    # fp32 through two networks of four layers: their logits are off by some 1e-6 of values of about 1.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_weight_is_no_teacher_and_the_teacher_stays(teacher: Path) -> None:
    """At weight 0 the student's bits are those of a student alone; at any weight the teacher's stay what they were."""
    finals = {}
    before = checkpoint.load_weights(teacher / checkpoint.FINAL)[0]
    for weight in (None, 0.0, 1.0):
        method = {} if weight is None else {"method": {"name": "distill", "teacher": str(teacher), "weight": weight}}
        options = recipe(**method)
        data_module = opened(options)
        found = method_of(options.method)
        found.prepare(data_module, CPU)
        torch.manual_seed(0)
        network = build(options.model, 10, 32)
        step = Step(network, options, 4, CPU, found)
        for number in range(4):
            rows = torch.arange(16) + 16 * number
            step(number, data_module.augment.normalize(data_module.train.source, rows), rows % 10)  # type: ignore[attr-defined]
        finals[weight] = network.state_dict()
        if isinstance(found, Distillation):
            assert not found.teacher.training
            assert all(torch.equal(tensor, before[name]) for name, tensor in found.teacher.state_dict().items())
    assert all(torch.equal(tensor, finals[0.0][name]) for name, tensor in finals[None].items())
    assert not all(torch.equal(tensor, finals[1.0][name]) for name, tensor in finals[None].items())


def test_teachers_that_do_not_fit(teacher: Path, tmp_path: Path) -> None:
    def method(path: Path) -> dict[str, Any]:
        return {"name": "distill", "teacher": str(path)}

    with pytest.raises(UserError, match="is not a run directory"):
        train(recipe(method=method(tmp_path / "none")), out=tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()
    _, about = checkpoint.load_weights(teacher / checkpoint.FINAL)
    for change, said in (
        ({"classes": [f"c{i}" for i in range(10)]}, "knows other classes"),
        ({"image_size": 16}, "16 pixels"),
    ):
        other = tmp_path / f"other-{len(said)}"
        (other / "checkpoints").mkdir(parents=True)
        (other / "recipe.toml").write_bytes((teacher / "recipe.toml").read_bytes())
        kept = TrainedModel.load(teacher, "cpu").module
        checkpoint.save_weights(other / checkpoint.FINAL, kept, about.updated(**change))
        with pytest.raises(UserError, match=said):
            train(recipe(method=method(other)), out=tmp_path / "run", device="cpu", quiet=True)
        assert not (tmp_path / "run").exists()


def test_a_resumed_run_wants_the_same_teacher(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends with the bits of an undisturbed one."""

    own = tmp_path / "teacher"
    (own / "checkpoints").mkdir(parents=True)
    for name in ("recipe.toml", checkpoint.FINAL):
        (own / name).write_bytes((teacher / name).read_bytes())
    options = recipe(method={"name": "distill", "teacher": str(own)}, train={"epochs": 2.0})
    straight: RunResult = train(options, out=tmp_path / "straight", device="cpu", quiet=True)

    class Stopped(Exception):
        pass

    def stop(self: Any, stopped: str) -> Any:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_finish", stop)
        with pytest.raises(Stopped):
            train(options.model_copy(update={}), out=tmp_path / "run", device="cpu", quiet=True)
    kept = (own / checkpoint.FINAL).read_bytes()
    network = TrainedModel.load(own, "cpu").module
    with torch.no_grad():
        network.get_parameter("conv1.weight").add_(1)
    checkpoint.save_weights(own / checkpoint.FINAL, network, checkpoint.load_weights(own / checkpoint.FINAL)[1])
    with pytest.raises(UserError, match=r"method\.teacher is not the one that"):
        resume(tmp_path / "run", device="cpu", quiet=True)
    (own / checkpoint.FINAL).write_bytes(kept)
    resumed = resume(tmp_path / "run", device="cpu", quiet=True)
    assert (resumed.run / checkpoint.FINAL).read_bytes() == (straight.run / checkpoint.FINAL).read_bytes()
