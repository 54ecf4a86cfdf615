"""Checkpoints: exact, and hostile ones harmless."""

import errno
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fastres.errors import UserError
from fastres.runs import checkpoint
from fastres.runs.schema import Calibration, NetworkFacts
from fastres.training.methods.transfer import read_weights
from fastres.utils import tensor_files
from fastres.utils.tensor_files import all_finite


class Attack:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("side", [3, 1500])
def test_what_is_saved_comes_back_to_the_bit(side: int, tmp_path: Path) -> None:
    """Of a few bytes, and of 9 MB, which are summed and written side by side."""
    state = {"a": torch.randn(side, side), "b": {"c": [1, 2.5, "x", None, True]}, "d": torch.tensor(7)}
    checkpoint.save(tmp_path / "deep" / "c.pt", state)
    found = checkpoint.load(tmp_path / "deep" / "c.pt")
    assert torch.equal(found["a"], state["a"])  # type: ignore[arg-type]
    assert found["b"] == state["b"]
    found["a"].zero_()  # a view of the file, which stays
    assert torch.equal(checkpoint.load(tmp_path / "deep" / "c.pt")["a"], state["a"])  # type: ignore[arg-type]


def test_a_checkpoint_that_would_run_code_does_not(tmp_path: Path) -> None:
    torch.save({"step": Attack(tmp_path / "made")}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Attack(tmp_path / "made")))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(UserError, match="not a checkpoint of fastres"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_a_damaged_or_missing_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", {"a": torch.randn(1000)})
    whole = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path / "c.pt")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "gone.pt")


FACTS = NetworkFacts(
    classes=["a", 'crc32": "00000000 é'],
    image_size=8,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    crop="centre",
    resize="bicubic",
    batch_size=500,
    calibration=Calibration(temperature=1.5, images=20),
)


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_weights_travel_with_what_they_need(tmp_path: Path) -> None:
    network = small_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    checkpoint.save_weights(tmp_path / "w.safetensors", network, FACTS)
    weights, about = checkpoint.load_weights(tmp_path / "w.safetensors")
    assert about == FACTS
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        written = json.loads(file.metadata()["fastres"])
    assert [*written] == ["version", "crc32", *NetworkFacts.model_fields], "the same bytes in every process"
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_weights(tmp_path / "w.safetensors")


def written(kind: str, folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    """A checkpoint or a network, and its reader."""
    path = folder / kind
    if kind == "network":
        checkpoint.save_weights(path, small_network(), FACTS)
        return path, checkpoint.load_weights
    checkpoint.save(path, {"step": small_network().state_dict(), "rows": [{"epoch": 1, "loss": 0.5}], "name": None})
    return path, checkpoint.load


@pytest.mark.parametrize("kind", ["checkpoint", "network"])
def test_a_flipped_bit_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    """In weights, names, sizes, padding or the digest itself: one bit of some of the bytes, of each of the last."""
    path, load = written(kind, tmp_path)
    load(path)
    whole = path.read_bytes()
    for place in (*range(0, len(whole), 19), *range(len(whole) - 25, len(whole))):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"damaged|newer") as caught:
            load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["checkpoint", "network"])
def test_blocks_that_were_exchanged_zeroed_or_cut_off_are_refused(kind: str, tmp_path: Path) -> None:
    path, load = written(kind, tmp_path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (
        whole[:middle] + whole[middle + 64 : middle + 128] + whole[middle : middle + 64] + whole[middle + 128 :],
        whole[:middle] + bytes(64) + whole[middle + 64 :],
        whole[:-1],
        whole + b"\0",
        whole[:-25],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load(path)


def test_files_of_before_are_read_and_that_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state, weights = {"a": torch.randn(100)}, small_network().state_dict()
    torch.save(state, tmp_path / "last.pt")
    about = {"classes": ["a", "b"], "image_size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    save_file(weights, tmp_path / "final.safetensors", {"fastres": json.dumps(about)})
    assert torch.equal(checkpoint.load(tmp_path / "last.pt")["a"], state["a"])
    found, facts = checkpoint.load_weights(tmp_path / "final.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert (facts.classes, facts.mean) == (["a", "b"], (0.5, 0.5, 0.5))
    said = capfd.readouterr().err.splitlines()
    assert [line.partition(" is of an older version")[0] for line in said] == [
        str(tmp_path / "last.pt"),
        str(tmp_path / "final.safetensors"),
    ]
    # The archive that torch writes has a CRC-32 of each tensor, which at least is compared.
    whole = (tmp_path / "last.pt").read_bytes()
    place = whole.index(state["a"].numpy().tobytes())
    (tmp_path / "last.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(UserError, match="CRC-32"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    network = small_network()
    with torch.no_grad():
        network[1].bias[2] = value  # type: ignore[index]
    checkpoint.save_weights(tmp_path / "w.safetensors", network, FACTS)
    with pytest.raises(UserError, match="not finite"):
        checkpoint.load_weights(tmp_path / "w.safetensors")
    torch.save(network.state_dict(), tmp_path / "old.pt")
    with pytest.raises(UserError, match="not finite"):
        checkpoint.load(tmp_path / "old.pt")
    assert not all_finite([torch.zeros(0), torch.tensor([1, 2]), network[1].bias])  # type: ignore[index, list-item]
    assert all_finite([torch.zeros(0), torch.tensor([1, 2]), torch.tensor([65504.0]).half(), torch.zeros(1)])


def repacked(path: Path) -> None:
    """As a zip that unfolds to 200 times its size."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def laughing() -> list[Any]:
    """A list that is met 10³⁰ times, in 300 entries."""
    inside: list[Any] = [torch.zeros(1)]
    for _ in range(30):
        inside = [inside] * 10
    return inside


def test_what_a_file_announces_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"a": torch.zeros(1 << 18)}, path)
    repacked(path)
    with pytest.raises(UserError, match="packed"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="packed"):
        read_weights(str(path))
    checkpoint.save(path, {"a": torch.zeros(1).expand(1 << 50)})
    with pytest.raises(UserError, match="more than it holds"):
        checkpoint.load(path)
    checkpoint.save(path, {"a": laughing()})
    checkpoint.load(path)


def test_a_disk_that_fills_while_saving_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own writer would end in an error about positions in the file."""
    checkpoint.save(tmp_path / "c.pt", {"a": torch.zeros(10)})
    real = tensor_files._Summed.write

    def full(self: Any, data: memoryview) -> int:
        if len(data) > 1 << 16:
            self._file = FullFile()
        return real(self, data)

    class FullFile:
        def write(self, data: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_files._Summed, "write", full)
    with pytest.raises(UserError, match="the disk is full"):
        checkpoint.save(tmp_path / "c.pt", {"a": torch.zeros(1 << 18)})
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    assert torch.equal(checkpoint.load(tmp_path / "c.pt")["a"], torch.zeros(10))
