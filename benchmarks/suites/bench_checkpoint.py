"""Saving and restoring the report run's checkpoint (weights, statistics, momentum) against torch.save and torch.load.

`checkpoint.save` is durable: when it returns, the file is whole on the disk, and a crash at any time leaves the old or
the new one. Its first rival is as durable, by the same fsync and rename around torch.save; the second is torch.save
alone, which promises nothing. Files are read from the page cache.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.harness.sameness import identical
from benchmarks.harness.versus import Ceiling, Side, Versus
from fastres.models import build
from fastres.recipe import Recipe
from fastres.runs import checkpoint
from fastres.training.step import Step
from fastres.utils.files import sync_folder

RECIPE = Path(__file__).parents[2] / "recipes" / "report_best.toml"
CPU = torch.device("cpu")


def trained(dry: bool) -> Step:
    """After one step, which makes the momentum."""
    recipe = Recipe.load(RECIPE, ["train.compile=false", *(["model.channels=[8,8,8,8]"] if dry else [])])
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
    sync_folder(path.parent)


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
