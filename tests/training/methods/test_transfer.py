"""Transfer learning: which weights arrive, which are left to be drawn, frozen, or trained at rates of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastres.data.compat.torchvision import import_torchvision
from fastres.errors import UserError
from fastres.models import Network, build
from fastres.recipe import Recipe, TransferConfig
from fastres.runs import checkpoint
from fastres.training.methods.transfer import frozen_norms, rate_factors, read_weights, start_from
from fastres.training.step import Step

TINY: dict[str, Any] = {"blocks": [1, 1], "channels": [4, 8], "strides": [2, 2]}
CPU = torch.device("cpu")


def network(classes: int = 10, seed: int = 0, **model: Any) -> Network:
    torch.manual_seed(seed)
    return build(Recipe.model_validate({"model": {**TINY, **model}}).model, classes, 32)


def saved(state: Any, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def test_a_flipped_bit_is_noticed_where_the_archive_can(tmp_path: Path) -> None:
    path = Path(saved({"weight": torch.full((64,), 1.5)}, tmp_path / "w.pt"))
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((64,), 1.5).numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_weights(str(path))


def test_everything_but_a_classifier_of_other_classes_arrives(tmp_path: Path) -> None:
    source, here = network(classes=10, seed=1), network(classes=7, seed=2)
    drawn = here.fc.weight.clone()  # type: ignore[union-attr, operator]
    start_from(here, TransferConfig(weights=saved(source.state_dict(), tmp_path / "w.pt")))
    for name, tensor in here.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, source.state_dict()[name]), name
    assert torch.equal(here.fc.weight, drawn)  # type: ignore[union-attr, arg-type]
    same = network(classes=10, seed=2)
    start_from(same, TransferConfig(weights=str(tmp_path / "w.pt")))
    assert torch.equal(same.fc.weight, source.fc.weight)  # type: ignore[union-attr, arg-type]


def test_torchvisions_names_load(tmp_path: Path) -> None:
    """Its ResNet-18 of 1,000 classes into our ImageNet form with ten: all but the classifier."""
    theirs = import_torchvision().models.resnet18().state_dict()
    shape = {"blocks": [2, 2, 2, 2], "channels": [64, 128, 256, 512], "strides": [1, 2, 2, 2], "stem": "imagenet"}
    options = Recipe.model_validate({"model": {**shape, "max_parameters": None}}).model
    here = build(options, 10, 64)
    start_from(here, TransferConfig(weights=saved(theirs, tmp_path / "resnet18.pth")))
    for name, tensor in here.state_dict().items():
        assert name.startswith("fc.") or torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_the_forms_that_weights_come_in(suffix: str, tmp_path: Path) -> None:
    """A bare state_dict, one inside a checkpoint, one of DataParallel's names, a run's folder."""
    from safetensors.torch import save_file

    state = network(seed=3).state_dict()
    if suffix == ".safetensors":
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        save_file(state, tmp_path / "weights.safetensors")
        save_file(state, tmp_path / "run" / checkpoint.FINAL)
        sources = [tmp_path / "weights.safetensors", tmp_path / "run"]
    else:
        forms = {"bare": state, "inside": {"epoch": 3, "state_dict": state}}
        forms["parallel"] = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
        sources = [Path(saved(form, tmp_path / f"{name}{suffix}")) for name, form in forms.items()]
    for source in sources:
        found = read_weights(str(source))
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_counters_may_be_missing(tmp_path: Path) -> None:
    state = {name: t for name, t in network(seed=1).state_dict().items() if not name.endswith("num_batches_tracked")}
    start_from(network(), TransferConfig(weights=saved(state, tmp_path / "old.pth")))


class Hostile:
    def __reduce__(self) -> Any:
        return (Path("/tmp/never").touch, ())


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    state = network(seed=1).state_dict()
    less = {name: tensor for name, tensor in state.items() if name != "layer2.0.conv2.weight"}
    more = {**state, "layer9.weight": torch.zeros(3)}
    for found, said in ((less, "has no layer2.0.conv2.weight"), (more, "makes no layer9.weight")):
        with pytest.raises(UserError, match=said):
            start_from(network(), TransferConfig(weights=saved(found, tmp_path / "w.pt")))
    path = saved(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"conv1.weight is \[4, 3, 3, 3\] there, \[6, 3, 3, 3\] here"):
        start_from(network(channels=[6, 8]), TransferConfig(weights=path))
    with pytest.raises(UserError, match=r"transfer.freeze: no parameter fits 'layr1.\*'; they have names like conv1"):
        start_from(network(), TransferConfig(weights=path, freeze=["layr1.*"]))
    with pytest.raises(UserError, match="leaves nothing to train"):
        start_from(network(), TransferConfig(weights=path, freeze=["*"]))
    with pytest.raises(UserError, match=r"transfer.lr_factors: no parameter fits 'head.\*'"):
        rate_factors(network(), TransferConfig(weights=path, lr_factors={"head.*": 2.0}))


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x04N."])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_and_hostile_files(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="holds no state_dict, or is damaged"):
        read_weights(str(tmp_path / name))


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    path = saved({"state_dict": {"conv1.weight": Hostile()}}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no state_dict"):
        read_weights(path)
    for source, said in ((tmp_path / "none", "does not exist"), (tmp_path, "does not exist"), (__file__, "is none of")):
        with pytest.raises(UserError, match=said):
            read_weights(str(source))


def trained(recipe: dict[str, Any], path: str, steps: int = 3) -> tuple[Network, Network, Step]:
    """A network that started from `path` before and after `steps` steps on noise."""
    options = Recipe.model_validate({"model": TINY, "train": {"compile": False, "precision": "fp32"}, **recipe})
    here = network(seed=5)
    assert options.transfer is not None
    start_from(here, options.transfer)
    before = network(seed=5)
    before.load_state_dict(here.state_dict())
    step = Step(here, options, 10, CPU)
    generator = torch.Generator().manual_seed(0)
    for number in range(steps):
        images = torch.randn(8, 3, 32, 32, generator=generator)
        step(number, images, torch.randint(0, 10, (8,), generator=generator))
    return before, here, step


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_what_is_frozen_keeps_its_bits_statistics_too(optimizer: str, tmp_path: Path) -> None:
    path = saved(network(seed=1).state_dict(), tmp_path / "w.pt")
    transfer = {"weights": path, "freeze": ["conv1.weight", "bn1.*", "layer1.*"]}
    recipe = {"transfer": transfer, "optimizer": {"name": optimizer, "lr": 0.01, "weight_decay": 0.1}}
    before, after, _ = trained(recipe, path)
    assert len(frozen_norms(after)) == 4  # bn1 and those of layer1: bn1, bn2 and the skip's
    for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        kept = name.startswith(("conv1.", "bn1.", "layer1."))
        assert torch.equal(old, new) == kept, name
    half, _, _ = trained({**recipe, "transfer": {**transfer, "freeze": ["bn1.weight"]}}, path)
    assert frozen_norms(half) == [], "a BN that still trains its bias follows its batches"


def test_rates_of_their_own(tmp_path: Path) -> None:
    """The first pattern that fits counts; a step of plain SGD is exactly that many times as long."""
    path = saved(network(seed=1).state_dict(), tmp_path / "w.pt")
    plain = {"name": "sgd", "lr": 0.125, "momentum": 0.0, "weight_decay": 0.0}
    schedule = {"name": "constant"}
    common = {"optimizer": plain, "schedule": schedule}
    before, after, _ = trained({**common, "transfer": {"weights": path}}, path, steps=1)
    factors = {"layer1.0.conv1.weight": 0.5, "layer1.*": 0.25, "fc.*": 4.0}
    _, scaled, _ = trained({**common, "transfer": {"weights": path, "lr_factors": factors}}, path, steps=1)
    for name, old in before.named_parameters():
        factor = 0.5 if name == "layer1.0.conv1.weight" else 0.25 if name.startswith("layer1.") else 1.0
        factor = 4.0 if name.startswith("fc.") else factor
        new, other = (part.get_parameter(name).detach() for part in (after, scaled))
        # Powers of two scale the update exactly. Adding it to the weight rounds, by at most 2⁻²⁴ of the sum: both
        # sums, of which the factor makes at most five.
        largest = max(float(tensor.abs().max()) for tensor in (old.detach(), new, other))
        assert torch.allclose(other - old, factor * (new - old), rtol=0, atol=5 * largest * 2**-24), name


@pytest.mark.parametrize("decoupled", [False, True])
def test_muons_filters_too(decoupled: bool, tmp_path: Path) -> None:
    path = saved(network(seed=1).state_dict(), tmp_path / "w.pt")
    transfer = {"weights": path, "lr_factors": {"layer2.*": 0.1}}
    optimizer = {"name": "muon", "lr": 0.02, "weight_decay": 0.01, "decouple_decay": decoupled}
    _, after, step = trained({"optimizer": optimizer, "transfer": transfer}, path)
    rates = {
        id(weight): (group["initial_lr"], group["weight_decay"])
        for group in step.optimizer.param_groups
        for weight in group["params"]
    }
    slow = rates[id(after.get_parameter("layer2.0.conv1.weight"))]
    fast = rates[id(after.get_parameter("layer1.0.conv1.weight"))]
    assert slow[0] == pytest.approx(0.002) and fast[0] == 0.02
    # Decoupled, both decay by the same share a step, lr·weight_decay.
    assert slow[1] / fast[1] == pytest.approx(10 if decoupled else 1)


def test_a_module_that_is_no_network_of_ours_has_no_frozen_norms() -> None:
    assert frozen_norms(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False))) == []
