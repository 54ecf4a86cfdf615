"""Saving and restoring the report run's checkpoint (weights, statistics, momentum) against torch.save and torch.load;
reading its kept network and its data's store against the same without digests.

`checkpoint.save` is durable: when it returns, the file is whole on the disk, and a crash at any time leaves the old or
the new one. Its first rival is as durable, by the same fsync and rename around torch.save; the second is torch.save
alone, which promises nothing. What is read, from the page cache, is compared with its digests, as by no rival.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.harness.sameness import identical
from benchmarks.harness.versus import Ceiling, Side, Versus
from fastres.data import open_dataset
from fastres.data.store.decoded import open_store
from fastres.models import build
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.runs.schema import NetworkFacts
from fastres.training.step import Step
from fastres.utils.files import sync

RECIPE = Path(__file__).parents[2] / "recipes" / "report_best.toml"
CPU = torch.device("cpu")


def trained(dry: bool) -> Step:
    """After one step, which makes the momentum."""
    recipe = Recipe.load(RECIPE, ["train.compile=false", *(["model.channels=[16,16,16,16]"] if dry else [])])
    torch.manual_seed(0)
    network: nn.Module = build(recipe.model, 10, 32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = Step(network, recipe, 1, CPU)
    step(0, torch.randn(4, 3, 32, 32).bfloat16(), torch.arange(4))
    return step


def durable(path: Path, state: dict[str, Any]) -> None:
    """torch.save with the least that makes it as safe."""
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync(path.parent)


def alone(path: Path, state: dict[str, Any]) -> None:
    """torch.save."""
    torch.save(state, path)


RIVALS = {"durable": (durable, "torch.save, fsync and rename"), "alone": (alone, "torch.save without fsync")}


def writing(path: Path, content: bytes) -> Ceiling:
    """As many bytes written to a file and synchronised."""

    def write() -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    return Ceiling("write and fsync", write, len(content))


@pytest.mark.parametrize("kind", RIVALS)
def test_save(kind: str, versus: Versus, tmp_path: Path, dry: bool) -> None:
    step = trained(dry)
    state = step.state()
    save, against = RIVALS[kind]
    paths = tmp_path / "ours.pt", tmp_path / "rival.pt"
    checkpoint.save(paths[0], state)

    def side(path: Path, save: Any) -> Side:
        def outcome() -> Any:
            save(path, state)
            return torch.load(path, weights_only=True)

        return Side(lambda: save(path, state), outcome=outcome)

    def same(ours: Any, rival: Any) -> None:
        identical(ours, state)
        identical(rival, state)

    size = paths[0].stat().st_size
    versus(
        side(paths[0], checkpoint.save),
        side(paths[1], save),
        same=same,
        rounds=15,
        against=against,
        ceiling=writing(tmp_path / "bytes", paths[0].read_bytes()),
        bytes=size,
        recipe=step.recipe,
    )


def test_restore(versus: Versus, tmp_path: Path, dry: bool) -> None:
    """From the file into a network and its optimizer."""
    step, mine, theirs = trained(dry), trained(dry), trained(dry)
    path = tmp_path / "last.pt"
    checkpoint.save(path, step.state())
    content = bytearray(path.stat().st_size)

    def restore() -> None:
        mine.load_state(checkpoint.load(path))

    def torchs() -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs.network.load_state_dict(state["network"])
        theirs.optimizer.load_state_dict(state["optimizer"])

    def read() -> None:
        with path.open("rb") as file:
            file.readinto(content)

    def outcome(restored: Step, act: Any) -> Any:
        with torch.no_grad():
            for parameter in restored.network.parameters():
                parameter.zero_()
        act()
        return {part: restored.state()[part] for part in ("network", "optimizer")}

    def same(ours: Any, rival: Any) -> None:
        wanted = {part: step.state()[part] for part in ("network", "optimizer")}
        identical(ours, wanted)
        identical(rival, wanted)

    versus(
        Side(restore, outcome=lambda: outcome(mine, restore)),
        Side(torchs, outcome=lambda: outcome(theirs, torchs)),
        same=same,
        rounds=15,
        against="torch.load(weights_only=True)",
        ceiling=Ceiling("read from the page cache", read, len(content)),
        bytes=len(content),
        recipe=step.recipe,
    )


def test_load_network(versus: Versus, tmp_path: Path, dry: bool) -> None:
    """From final.safetensors into a network."""
    step, mine, theirs = trained(dry), trained(dry), trained(dry)
    path = tmp_path / "final.safetensors"
    about = NetworkFacts(classes=[*"0123456789"], image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    checkpoint.save_weights(path, step.network, about)

    def load() -> Any:
        mine.network.load_state_dict(checkpoint.load_weights(path)[0])
        return mine.network.state_dict()

    def safetensors() -> Any:
        theirs.network.load_state_dict(load_file(path))
        return theirs.network.state_dict()

    versus(load, safetensors, same=identical, rounds=15, against="safetensors' load_file", recipe=step.recipe)


def test_open_store(versus: Versus, root: str) -> None:
    """The store of shapes10, whose images nobody reads yet."""
    path = open_dataset("shapes10", root=root, quiet=True).path

    def opened() -> Any:
        dataset = open_store(path, "shapes10")
        return [part.labels for part in dataset.parts.values()]

    def unchecked() -> Any:
        json.loads((path / "manifest.json").read_bytes())
        for part in ("train", "test"):
            np.load(path / f"{part}_images.npy", mmap_mode="r")
        return [np.load(path / f"{part}_labels.npy") for part in ("train", "test")]

    def same(ours: Any, rival: Any) -> None:
        assert [labels.tolist() for labels in ours] == [labels.tolist() for labels in rival]

    versus(opened, unchecked, same=same, rounds=15, against="numpy.load")
