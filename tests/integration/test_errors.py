"""Bad input: one clear message, exit code 2, nothing half-written."""

import io
import json
import os
import pickle
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def good_files() -> dict[str, bytes]:
    folders = [f"{part}/{name}" for part in ("train", "test") for name in "ab"]
    return {f"{folder}/{number}.png": png(number) for folder in folders for number in range(8)}


def sets(settings: list[str]) -> list[str]:
    """The settings as options of the command line."""
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture
def refused(fastres: Any, tiny: Path, tmp_path: Path) -> Any:
    """Train `tiny` with a source and settings that must be refused; returns the message. Checks that nothing stays."""

    def run(source: Path | str | None, *settings: str) -> str:
        root, out = tmp_path / "root", tmp_path / "out"
        options = [f"data.root={root}", *settings] + ([f"data.source={source}"] if source is not None else [])
        code, stdout, err = fastres("train", tiny, "--out", out, *sets(options))
        assert code == 2, err
        assert stdout == ""
        assert "Traceback" not in err
        message = err[err.rindex("fastres: ") :].strip()
        assert message.count("\n") <= 1
        assert not out.exists(), "no run directory"
        stores = [path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
        assert stores == [], "no store, no temporary file"
        return message

    return run


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.epoch=3", "did you mean 'train.epochs'?"),
        ("train.epochs=three", "valid number"),
        ("optimizer.name=sdg", "did you mean 'sgd'?"),
        ("augment.color_jitter.contrats=0.2", "did you mean 'augment.color_jitter.contrast'?"),
        ("augment.colour_jitter.hue=0.2", "did you mean 'augment.color_jitter'?"),
        ("optimizer.momentun=0.2", "did you mean 'optimizer.momentum'?"),
    ],
)
def test_misspelt_keys_and_wrong_types(refused: Any, setting: str, expected: str) -> None:
    assert expected in refused(None, setting)


def test_a_missing_recipe_a_missing_source(fastres: Any, refused: Any, tmp_path: Path) -> None:
    code, _, err = fastres("train", tmp_path / "none.toml")
    assert (code, "no such recipe" in err) == (2, True)
    assert str(tmp_path / "nowhere") in refused(tmp_path / "nowhere")


def test_a_truncated_archive(refused: Any, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar.gz", good_files())
    path.write_bytes(path.read_bytes()[:-2000])
    assert "images.tar.gz" in refused(path)


def test_an_official_archive_with_a_wrong_md5(refused: Any, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": b"x"})
    assert "md5" in refused(path)


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_calls_os_system_does_not_run(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({b"data": Attack(tmp_path / "made")}))
    assert "system" in refused(tmp_path / "evil.pkl")
    assert not (tmp_path / "made").exists()


def test_a_tar_that_reaches_outside(refused: Any, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "deep.tar.gz", good_files() | {"../outside.png": png()})
    assert "../outside.png" in refused(path)
    assert not list(tmp_path.rglob("outside.png"))


def test_an_image_that_is_none(refused: Any, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar.gz", good_files() | {"train/a/9.png": b"no image"})
    assert "train/a/9.png" in refused(path)


def test_no_classes(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "test").mkdir()
    assert str(tmp_path / "empty") in refused(tmp_path / "empty")


def test_a_batch_larger_than_the_data(refused: Any, tmp_path: Path, fastres: Any, tiny: Path) -> None:
    code, _, err = fastres("train", tiny, "--out", tmp_path / "out", "--set", "train.batch_size=181")
    assert code == 2
    assert "larger than the 180 images to train on: set it to at most 180" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["model.max_parameters=1000"], "model.max_parameters"),
        (["model.pool=20"], "model.pool"),
        (["augment.translate=32"], "augment.translate"),
        (["data.validation_share=0.001"], "validation_share"),
        (["model.strides=[8, 8]", "train.batch_size=179"], "drop_last"),
        (["data.image_size=64"], "image_size"),
        (["augment.cutout=33"], "augment.cutout"),
        (["mix.mixup_alpha=0"], "mix.mixup_alpha"),
        (["mix.cutmix_alpha=-1"], "mix.cutmix_alpha"),
        (["augment.random_resized_crop.scale=[0.0, 1.0]"], "scale"),
        (["augment.random_resized_crop.scale=[0.9, 1.1]"], "scale"),
        (["augment.random_resized_crop.ratio=[2.0, 1.0]"], "ratio"),
        (["augment.color_jitter.hue=0.6"], "hue"),
        (["augment.padding=constant"], "fill"),
        (["mix.cutmix_alpha=1", "train.batch_size=1", "model.strides=[1, 1]"], "train.batch_size"),
    ],
)
def test_choices_that_do_not_fit_the_data(
    fastres: Any, tiny: Path, tmp_path: Path, settings: list[str], expected: str
) -> None:
    out = tmp_path / "out"
    code, _, err = fastres("train", tiny, "--out", out, *sets(settings))
    assert (code, "Traceback" in err) == (2, False), err
    assert expected in err
    assert not out.exists()


def test_commands_that_make_no_sense(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    for arguments, expected in (
        (["train"], "RECIPE"),
        (["train", tiny, "--resume", tmp_path], "either"),
        (["train", "--resume", tmp_path], "not a run directory"),
        (["train", tiny, "--out", tmp_path / "full"], "not an empty folder"),
        (["train", tiny, "--device", "tpu"], "auto, cpu or cuda"),
        (["eval", tmp_path / "nothing"], "not a run directory"),
        (["predict", tmp_path, "shapes10"], "not a run directory"),
        (["show", tmp_path / "nothing.toml"], "no such recipe"),
        (["data", "info", tmp_path / "nothing"], "nothing"),
        (["data", "verify", "cifar10", "--root", tmp_path], "data prepare cifar10"),
        (["tain"], "tain"),
        (["train", tiny, "--sett", "a=b"], "--sett"),
    ):
        code, _, err = fastres(*arguments)
        assert code == 2, (arguments, err)
        assert expected in err, (arguments, err)
        assert "Traceback" not in err
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_cuda_where_there_is_none(fastres: Any, tiny: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, _, err = fastres("train", tiny, "--device", "cuda")
    assert code == 2
    assert "fastres doctor" in err


def test_a_damaged_store_is_named_and_prepare_mends_it(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    path, root = write_tar(tmp_path / "images.tar.gz", good_files()), tmp_path / "root"
    assert fastres("data", "prepare", path, "--root", root)[0] == 0
    [images] = root.rglob("train_images.npy")
    images.write_bytes(images.read_bytes()[:-1])
    code, _, err = fastres("train", tiny, "--set", f"data.source={path}", "--set", f"data.root={root}")
    assert code == 2
    assert str(images.parent) in err
    assert fastres("data", "verify", path, "--root", root)[0] == 2
    assert fastres("data", "prepare", path, "--root", root)[0] == 0
    assert fastres("data", "verify", path, "--root", root)[0] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting a tmpfs needs root: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_while_preparing(fastres: Any, small_disk: Path) -> None:
    code, _, err = fastres("data", "prepare", "shapes10", "--root", small_disk)
    assert code == 2
    assert "the disk is full" in err
    assert "Traceback" not in err
    left = sum(path.stat().st_size for path in small_disk.rglob("*") if path.is_file())
    assert left < 1000, "what did not fit was taken away again"


def test_a_full_disk_while_training(fastres: Any, tiny: Path, small_disk: Path) -> None:
    """The last good checkpoint survives, and the run goes on once there is room."""
    run = small_disk / "run"
    # 0.6 MB of weights and momentum: the first checkpoint fits, a second beside it does not.
    settings = ["model.channels=[8, 88]", "train.checkpoint_seconds=1000", "train.epochs=3"]
    code, _, err = fastres("train", tiny, "--out", run, *sets(settings))
    assert code == 2, err
    assert (run / "checkpoints" / "last.pt").is_file()
    assert "the disk is full" in err
    assert "Traceback" not in err
    assert not list(run.rglob("*.tmp"))
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    code, _, err = fastres("train", "--resume", run)
    assert code == 0, err
    assert json.loads((run / "summary.json").read_text())["epochs"] == 3


def test_a_run_that_another_process_trains(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    from fastres.runs import directory

    assert fastres("train", tiny, "--out", tmp_path / "run", "--quiet")[0] == 0
    (tmp_path / "run" / "summary.json").unlink()
    with directory.run_lock(tmp_path / "run"):
        code, _, err = fastres("train", "--resume", tmp_path / "run")
    assert code == 2
    assert "another process is training" in err
