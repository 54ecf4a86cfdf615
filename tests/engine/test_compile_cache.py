"""Compiled graphs that are kept between runs: where, what they are told apart by, and what becomes of damaged ones."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
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
from fastres.utils.private_folders import digests

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
SHORT = ["train.epochs=1", "data.train_images=500", "data.test_images=100", "record.report=false"]
"""450 images to train on are nine whole batches: the same graph as of the whole recipe."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for what is compiled, and one for temporary files."""
    (tmp_path / "temporary").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
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


@pytest.mark.parametrize("configured", [False, True])
def test_where_others_can_write_a_private_folder_is_used_and_that_is_said(
    home: Path, configured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if configured:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(home / "shared" / "inductor"))
    place, note = compile_cache.locate()
    assert note is None
    place.parent.chmod(0o777)
    found, note = compile_cache.locate()
    private = home / "temporary" / f"fastres-{os.geteuid()}"
    assert found == (home / "fastres" / "compiled" if configured else private)
    assert note == f"others can write into {place.parent}: `chmod go-w {place.parent}`"
    assert found.stat().st_mode & 0o777 == 0o700
    if not configured:
        private.chmod(0o777)
        with pytest.raises(compile_cache.CacheUnavailable, match="others can write into"):
            compile_cache.locate()


def test_a_file_in_the_place_of_the_folder(home: Path) -> None:
    place = compile_cache.root()
    place.rmdir()
    place.write_text("")
    assert compile_cache.locate()[1] == f"{place} is not a folder"


def test_no_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", none)
    assert compile_cache.locate() == (
        home / "temporary" / f"fastres-{os.geteuid()}",
        "Could not determine home directory.",
    )


def test_torchs_own_caches_lie_beside_the_graphs_though_links_lead_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "real").mkdir(mode=0o700)
    (home / "linked").symlink_to(home / "real")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "linked"))
    compile_cache.configure_cache_dir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(home / "real" / "fastres" / "compiled" / "inductor")
    assert compile_cache.locate() == (home / "real" / "fastres" / "compiled", None)


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
    (folder / "ab").mkdir(parents=True, mode=0o700)
    (folder / "graph.bin").write_bytes(b"x" * 1000)
    (folder / "ab" / "library.so").write_bytes(b"y" * 1000)
    (folder / "ab" / "waiting.lock").touch()
    compile_cache.Manifest(about="", files=digests(folder)).write(folder / "manifest.json")
    folder.chmod(0o700)
    return folder


def sound(folder: Path) -> bool:
    try:
        with compile_cache._checked(folder) as (_, data, _):
            return data == b"x" * 1000
    except (compile_cache.Damaged, FileNotFoundError):
        return False


def test_damage_is_seen_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = graph_folder(tmp_path)
    assert sound(folder)
    for name in ("graph.bin", "ab/library.so", "manifest.json"):
        whole = (folder / name).read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"z" + whole[1:]):
            (folder / name).write_bytes(damaged)
            assert not sound(folder)
        (folder / name).unlink()
        assert not sound(folder)
        (folder / name).write_bytes(whole)
    manifest = json.loads((folder / "manifest.json").read_text())
    for files in (None, 3, {}, {"graph.bin": None}, {"graph.bin": manifest["files"]["graph.bin"]}):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"files": files}))
        assert not sound(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert sound(folder)


@pytest.mark.parametrize("what", ["file", "link", "pipe", "lock with contents", "link for a file", "link for all"])
def test_what_the_manifest_does_not_list_is_refused(what: str, tmp_path: Path) -> None:
    folder = graph_folder(tmp_path)
    place = folder / "ab" / "more.py"
    if what == "file":
        place.write_text("import os")
    elif what == "link":
        place.symlink_to(folder / "graph.bin")
    elif what == "pipe":
        os.mkfifo(place)
    elif what == "lock with contents":
        (folder / "ab" / "more.lock").write_text("x")
    elif what == "link for a file":
        (folder / "graph.bin").rename(tmp_path / "elsewhere")
        (folder / "graph.bin").symlink_to(tmp_path / "elsewhere")
    else:
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match=r"symbolic link|Not a directory"):
            sound(folder)
        compile_cache._clear(folder)
        assert not folder.is_symlink() and sound(tmp_path / "elsewhere")
        return
    assert not sound(folder)


def test_what_was_checked_is_used_whatever_takes_its_place(tmp_path: Path) -> None:
    folder = graph_folder(tmp_path)
    with compile_cache._checked(folder) as (_, _, checked):
        folder.rename(tmp_path / "old")
        (tmp_path / "0123" / "ab").mkdir(parents=True)
        (tmp_path / "0123" / "ab" / "library.so").write_bytes(b"another")
        assert (checked / "ab" / "library.so").read_bytes() == b"y" * 1000


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
    compile_cache.root().parent.chmod(0o777)
    (home / "temporary").chmod(0o777)
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
    for _ in range(3):
        torch.compiler.reset()
        step = step_for(state)
        step(1, images, labels)
        found.append((step.loss_and_correct.from_cache, step.loss_and_correct.fallback_reason))
    assert found == [(False, None), (True, None), (True, None)], "loading adds nothing to the folder"
