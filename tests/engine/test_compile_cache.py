"""Compiled graphs that are kept between runs: where, what they are told apart by, and what becomes of damaged ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastres.engine import compile_cache
from fastres.engine.compile import Compiled
from fastres.models import build
from fastres.recipe import Recipe
from fastres.training.step import Step

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
SHORT = ["train.epochs=1", "data.train_images=500", "data.test_images=100", "record.report=false"]
"""450 images to train on are nine whole batches: the same graph as of the whole recipe."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for what is compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what `configure_cache_dir` sets is taken back
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return tmp_path


def test_the_folder_is_the_users_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = compile_cache.root()
    assert place == home / "fastres" / "compiled"
    assert place.stat().st_mode & 0o777 == 0o700
    compile_cache.configure_cache_dir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(place / "inductor")
    assert compile_cache.root() == place, "what `configure_cache_dir` sets is no choice of the user's"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(home / "chosen"))
    compile_cache.configure_cache_dir()
    assert compile_cache.root() == home / "chosen" / "fastres"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_that_others_can_fill_is_not_used(home: Path, mode: int) -> None:
    place = compile_cache.root()
    place.chmod(mode)
    with pytest.raises(compile_cache.CacheUnavailable, match=r"others can write into .*chmod 700"):
        compile_cache.root()


def test_a_file_or_another_users_folder_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = compile_cache.root()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(compile_cache.CacheUnavailable, match="belongs to another user"):
            compile_cache.root()
    place.rmdir()
    place.write_text("")
    with pytest.raises(compile_cache.CacheUnavailable, match="not a folder"):
        compile_cache.root()


def test_the_key_tells_apart_what_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    images = torch.zeros(2, 3, 8, 8)

    def key(*arguments: torch.Tensor, about: str = "fp32") -> str:
        return compile_cache.key_of(network.forward, arguments or (images,), network, about)

    first = key()
    assert key() == first
    others = [key(images[:1]), key(images.double()), key(images, images), key(about="bf16")]
    others.append(key(images.contiguous(memory_format=torch.channels_last)))
    with torch.no_grad():
        others.append(key())
    network.eval()
    others.append(key())
    network.train()
    network[0].weight.requires_grad_(False)
    others.append(key())
    network[0].weight.requires_grad_(True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    others.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(compile_cache, "_sources", lambda: "edited")
    others.append(key())
    monkeypatch.undo()
    with torch._inductor.config.patch(max_autotune=True):
        others.append(key())
    assert len({first, *others}) == 1 + len(others)
    monkeypatch.setenv("FASTRES_DATA", "elsewhere")
    assert key() == first


def test_one_byte_anywhere_in_the_package_is_another_key(tmp_path: Path) -> None:
    package = Path(compile_cache.__file__).parents[1]
    copy = Path(shutil.copytree(package, tmp_path / "fastres", ignore=shutil.ignore_patterns("__pycache__")))
    sources = compile_cache._sources.__wrapped__
    first = sources(copy)
    assert sources(package) == first, "the key covers the package that runs"
    folders = [folder for folder in copy.rglob("*") if folder.is_dir() and any(folder.glob("*.py"))]
    rooms = {folder.relative_to(copy).parts[0] for folder in folders}
    assert {"engine", "kernels", "layers", "models", "training", "recipe", "utils"} <= rooms
    for folder in (copy, *folders):
        path = max(folder.glob("*.py"))
        content = path.read_bytes()
        path.write_bytes(content + b"#")
        assert sources(copy) != first, f"{path} may have been traced into a graph"
        path.write_bytes(content)
    assert sources(copy) == first
    path.rename(path.with_name("other.py"))
    assert sources(copy) != first


def graph_folder(place: Path) -> Path:
    folder = place / "0123"
    (folder / "ab").mkdir(parents=True)
    (folder / "graph.bin").write_bytes(b"x" * 1000)
    (folder / "ab" / "library.so").write_bytes(b"y" * 1000)
    (folder / "manifest.json").write_text(json.dumps({"files": compile_cache._listed(folder)}))
    folder.chmod(0o700)
    return folder


def test_damage_is_seen_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = graph_folder(tmp_path)
    assert compile_cache._sound(folder) is not None
    for name in ("graph.bin", "ab/library.so", "manifest.json"):
        whole = (folder / name).read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"z" + whole[1:]):
            (folder / name).write_bytes(damaged)
            assert compile_cache._sound(folder) is None
        (folder / name).unlink()
        assert compile_cache._sound(folder) is None
        (folder / name).write_bytes(whole)
    for text in ("[]", "{}", '{"files": 3}', '{"files": {"graph.bin": null}}'):
        (folder / "manifest.json").write_text(text)
        assert compile_cache._sound(folder) is None


def test_damaged_headers_are_made_anew(tmp_path: Path) -> None:
    with compile_cache._headers(tmp_path) as headers:
        for name in ("good.gch", "bad.gch"):
            (headers / name).write_bytes(b"x" * 1000)
    (headers / "bad.gch").write_bytes(b"x" * 500)
    (headers / "unfinished.gch").write_bytes(b"x" * 1000)

    def found() -> set[str]:
        return {path.name for path in headers.iterdir()}

    with compile_cache._headers(tmp_path):
        assert found() == {"good.gch"}
        (headers / "new.gch").write_bytes(b"x")
        with compile_cache._headers(tmp_path):
            assert found() == {"good.gch", "new.gch"}, "another process is at work on it"
    os.truncate(tmp_path / "headers.json", 10)
    with compile_cache._headers(tmp_path):
        assert not found()


def test_the_graphs_that_were_used_last_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "LIMIT", 3)
    for number in range(5):
        folder = tmp_path / f"{number:04}"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        os.utime(folder / "manifest.json", (number, number))
    compile_cache._prune(tmp_path, "0000")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0000", "0003", "0004"]


def test_what_cannot_be_kept_is_compiled_all_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the note says why."""
    compile_cache.root().chmod(0o777)
    network = nn.Linear(3, 2)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compiled = Compiled(network.forward, enabled=True, network=network)
    compiled(torch.zeros(2, 3))
    assert compiled.active
    assert not compiled.from_cache
    assert "not kept for the next start: others can write into" in str(compiled.fallback_reason)


# ------------------------------------------------------------------------------------------------- whole starts


def start(home: Path, name: str) -> tuple[dict[str, Any], str]:
    """Summary and weights of a short run of the quickstart recipe in a process of its own."""
    run = home / name
    command = [sys.executable, "-m", "fastres", "train", str(RECIPE), "--out", str(run)]
    done = subprocess.run(
        [*command, *(part for option in SHORT for part in ("--set", option))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    weights = (run / "checkpoints" / "final.safetensors").read_bytes()
    return json.loads((run / "summary.json").read_text()), weights.hex()


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_takes_less_than_five_seconds(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with a space, by a compiler of two words: TorchInductor by itself takes neither."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "a cache"))
    monkeypatch.setenv("CXX", "env g++")
    cold, weights = start(home, "cold")
    assert (cold["compiled"], cold["compiled_from_cache"], cold["compile_note"]) == (True, False, None)
    assert cold["warm_seconds"] is None

    def files() -> dict[Path, int]:
        found = [path for path in compile_cache.root().rglob("*") if path.is_file()]
        return {path: path.stat().st_size for path in found if path.suffix != ".lock"}

    before = files()
    warm, same = start(home, "warm")
    assert (warm["compiled"], warm["compiled_from_cache"], warm["compile_note"]) == (True, True, None)
    assert files() == before, "nothing was generated"
    assert same == weights
    assert warm["cold_seconds"] == cold["cold_seconds"]
    assert warm["warm_seconds"] < 5

    # A disk that was full, a copy that broke off: no library may be loaded, and the headers are no use either.
    for path, size in before.items():
        os.truncate(path, size // 2)
    again, same = start(home, "damaged")
    assert (again["compiled"], again["compiled_from_cache"]) == (True, False), again["compile_note"]
    assert again["compile_note"] == "compiled anew, because what was kept cannot be used: its files are damaged"
    assert same == weights
    healed, same = start(home, "healed")
    assert (healed["compiled_from_cache"], same) == (True, weights)


def test_a_resumed_run_keeps_a_graph_that_loads_again(home: Path) -> None:
    """AdamW's state, which a resumed run has when it compiles, is no part of what is kept."""
    recipe = Recipe.model_validate(
        {
            "model": {"blocks": [1], "channels": [8], "strides": [4], "stem": "cifar"},
            "optimizer": {"name": "adamw"},
            "train": {"precision": "fp32"},
        }
    )
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)

    def step_for(state: dict[str, Any] | None) -> Step:
        step = Step(build(recipe.model, 10, 8), recipe, 10, torch.device("cpu"))
        if state is not None:
            step.load_state(state)
        return step

    eager = step_for(None)
    eager.loss_and_correct.active = False
    eager(0, images, labels)
    state, found = eager.state(), []
    for _ in range(2):
        torch.compiler.reset()
        step = step_for(state)
        step(1, images, labels)
        found.append((step.loss_and_correct.from_cache, step.loss_and_correct.fallback_reason))
    assert found == [(False, None), (True, None)]
