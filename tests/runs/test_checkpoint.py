"""Checkpoints: exact, and hostile ones harmless."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from fastres.errors import UserError
from fastres.runs import checkpoint


class Attack:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4), "b": {"c": [1, 2.5, "x", None, True]}, "d": torch.tensor(7)}
    checkpoint.save(tmp_path / "deep" / "c.pt", state)
    found = checkpoint.load(tmp_path / "deep" / "c.pt")
    assert torch.equal(found["a"], state["a"])  # type: ignore[arg-type]
    assert found["b"] == state["b"]


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


def test_weights_travel_with_what_they_need(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    checkpoint.save_weights(tmp_path / "w.safetensors", network, {"classes": ["a", "b"]})
    weights, about = checkpoint.load_weights(tmp_path / "w.safetensors")
    assert about == {"classes": ["a", "b"]}
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_weights(tmp_path / "w.safetensors")
