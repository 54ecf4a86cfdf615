"""`fastres doctor`: facts, install lines and problems of this machine and of worse ones."""

import io
import json
import os
import re
import time
import tomllib
from pathlib import Path

import pytest
import torch
from rich.console import Console

import fastres
from fastres.cli import doctor
from fastres.data import open_dataset
from fastres.engine import cpp_compiler
from tests.noise import write_noise

PROJECT = Path(fastres.__file__).resolve().parent.parent / "pyproject.toml"


def shown(facts: doctor.Examination, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    doctor.render(facts, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def fixes(facts: doctor.Examination) -> dict[str, str]:
    return {problem["what"]: problem["fix"] for problem in facts["problems"]}


def small_store(root: Path) -> Path:
    """A prepared store of eight images in two classes."""
    write_noise(root / "images", 2)
    return open_dataset(str(root / "images"), image_size=8, root=root / "data", quiet=True).path


@pytest.mark.serial
def test_it_is_quick_json_and_changes_nothing(tmp_path: Path) -> None:
    started = time.perf_counter()
    facts = doctor.examine(tmp_path / "data")
    # The contract; about 2 s are measured, most of it the import of torch.
    assert time.perf_counter() - started < 10
    assert (
        doctor.Examination.model_validate_json(json.dumps(facts.to_json(), allow_nan=False)).to_json()
        == facts.to_json()
    )
    assert list(tmp_path.iterdir()) == []
    assert facts["environment"]["torch"] == torch.__version__
    assert len(facts["devices"]) == torch.cuda.device_count() + 1
    assert facts["data"]["root"] == str((tmp_path / "data").resolve())
    assert facts["data"]["writable"] and facts["data"]["free_bytes"] > 0
    assert facts["data"]["stores"] == facts["data"]["downloads"] == []


def test_install_lines_are_those_of_the_project() -> None:
    if not PROJECT.is_file():
        pytest.skip("pyproject.toml is not there: fastres is installed from a wheel")
    project = tomllib.loads(PROJECT.read_text())["project"]
    for _, _, _, install in doctor.EXTRAS:
        for extra in re.findall(r"fastres\[(\w+)\]", install):
            assert extra in project["optional-dependencies"]
    needed = {re.match(r"[\w-]+", line)[0]: line for line in project["dependencies"]}  # type: ignore[index]
    assert set(doctor.NEEDED) <= set(needed)
    low, high = (".".join(map(str, version)) for version in doctor.TORCH)
    assert needed["torch"] == f"torch>={low},<{high}"
    assert doctor.TORCH_FIX.startswith(f"'{needed['torch']}'")


def test_each_extra_is_there_or_has_its_line(tmp_path: Path) -> None:
    facts = doctor.examine(tmp_path)
    extras = {extra["name"]: extra for extra in facts["extras"]}
    assert set(extras) == {"ffcv", "nvidia-dali", "optuna", "tensorboard", "wandb"}
    assert extras["tensorboard"]["version"] is not None  # the tests need it
    text = shown(facts)
    for extra in extras.values():
        if extra["version"] is None:
            # On a line of its own, however narrow the terminal: it is there to be copied.
            assert any(line.endswith(extra["install"]) for line in text.splitlines())
        else:
            assert extra["install"] not in text


def test_stores_are_listed_with_their_size(tmp_path: Path) -> None:
    path = small_store(tmp_path)
    facts = doctor.examine(tmp_path / "data")
    (store,) = facts["data"]["stores"]
    assert store["bytes"] == sum(file.stat().st_size for file in path.iterdir())
    assert (store["image_size"], store["classes"], store["images"]) == (8, 2, {"train": 4, "test": 4})
    assert store["sound"] and not any("store" in what for what in fixes(facts))
    assert "4 train, 4 test images of 8 px, 2 classes" in shown(facts)


@pytest.mark.usefixtures("needs_ffcv")
def test_betons_are_listed_and_damaged_ones_found(tmp_path: Path) -> None:
    from fastres.data import open_dataset
    from fastres.data.store import beton

    folder = beton.prepare(open_dataset("shapes10", root=tmp_path, quiet=True), quiet=True).folder
    facts = doctor.examine(tmp_path)
    entry = next(each for each in facts["data"]["stores"] if each["folder"] == folder.name)
    assert entry["sound"] and entry["bytes"] > 36_864_000
    assert f"{folder.name}  for FFCV, " in shown(facts, 200)
    os.truncate(folder / "train.beton", 1000)
    facts = doctor.examine(tmp_path)
    assert [each["folder"] for each in facts["data"]["stores"] if not each["sound"]] == [folder.name]


def test_a_damaged_store_is_a_problem_with_a_fix(tmp_path: Path) -> None:
    path = small_store(tmp_path)
    images = path / "train_images.npy"
    images.write_bytes(images.read_bytes()[:-1])
    facts = doctor.examine(tmp_path / "data")
    assert [store["sound"] for store in facts["data"]["stores"]] == [False]
    assert fixes(facts)[f"the prepared store {path} is damaged"] == f"rm -r {path}"
    text = shown(facts)
    assert "damaged" in text and f"fix: rm -r {path}" in text
    assert "Nothing needed is missing" not in text


def test_a_root_that_cannot_be_a_folder_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for root in (file, file / "below"):
        facts = doctor.examine(root)
        assert facts["data"]["writable"] is False
        assert "FASTRES_DATA" in fixes(facts)[f"{root} cannot be written"]


def test_a_machine_without_compilers_gets_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = doctor.examine(tmp_path)
    assert facts["compilers"] == {"c++": None, "c": None}
    assert any(
        "no C++ compiler" in what and fix == "apt-get install g++ python3-dev" for what, fix in fixes(facts).items()
    )
    assert "fix: apt-get install g++ python3-dev" in shown(facts)


def test_a_home_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "FASTRES_DATA", "TRITON_HOME", "TRITON_CACHE_DIR", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    assert doctor.render(doctor.examine(), Console(file=io.StringIO())) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch uses the GPU of this machine")
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
def test_a_gpu_that_torch_is_not_built_for_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"  # it answers as the driver's tool does
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.65.06'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    facts = doctor.examine(tmp_path)
    (what,) = (what for what in fixes(facts) if "GPU" in what)
    assert "NVIDIA H200" in what and "without CUDA" in what
    assert fixes(facts)[what] == "pip install --force-reinstall 'torch>=2.11,<2.14' torchvision"


def test_too_few_threads_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    try:
        facts = doctor.examine(tmp_path)
    finally:
        torch.set_num_threads(before)
    cores = facts["environment"]["usable_cores"]
    if cores == 1:
        pytest.skip("this machine has one core")
    assert fixes(facts)[f"OMP_NUM_THREADS keeps torch to 1 of {cores} cores"] == "unset OMP_NUM_THREADS"


def test_caches_have_their_places_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR"):
        folder = tmp_path / variable / "deep"
        folder.mkdir(parents=True)
        (folder / "code.nbc").write_bytes(b"x" * 3000)
        (folder / "code.o").write_bytes(b"x" * 500)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    facts = doctor.examine(tmp_path / "data")
    # Numba's places hold other files too; only its own count.
    assert {cache["name"]: cache["bytes"] for cache in facts["caches"]} == {
        "TorchInductor": 3500,
        "Triton": 3500,
        "Numba": 3000,
    }
    assert f"2.9 KiB in {tmp_path / 'NUMBA_CACHE_DIR'}" in shown(facts)


def test_hostile_names_are_harmless(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "[bold]x[\x1b[2J\udc80").touch()
    # The escape would clear the terminal and the lone surrogate could not be encoded.
    assert "[bold]x[?[2J?  downloaded, 0 bytes" in shown(doctor.examine(tmp_path))


def test_a_compiler_that_does_not_work_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own words; one that is called through a launcher is named whole."""
    compiler = tmp_path / "g++"
    for line, fix in {
        "x.h:1: fatal error: omp.h: No such file or directory": "apt-get install g++ python3-dev",
        "error: cannot write /scratch/cc1.s: No space left on device": "free some space in /scratch, or set TMPDIR",
    }.items():
        cpp_compiler.compiler_fault.cache_clear()
        compiler.write_text(f"#!/bin/sh\necho 'in file'\necho '{line}' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", f"env A=b {compiler}")
        monkeypatch.setenv("TMPDIR", "/scratch")
        facts = doctor.examine(tmp_path)
        assert facts["compilers"]["c++"]["path"].endswith(f"/env A=b {compiler}")
        (what,) = (what for what in fixes(facts) if "C++ compiler does not work" in what)
        assert what.endswith(f"it says: {line}") and fixes(facts)[what].startswith(fix)
    cpp_compiler.compiler_fault.cache_clear()
    monkeypatch.setenv("CXX", "missing-compiler -O2")
    found = {what: fix for what, fix in fixes(doctor.examine(tmp_path)).items() if "missing-compiler -O2" in what}
    assert list(found.values()) == ["unset CXX"]


def test_torch_compile_that_is_switched_off_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    facts = doctor.examine(tmp_path)
    assert fixes(facts)["TORCHDYNAMO_DISABLE is 1: training goes uncompiled"] == "unset TORCHDYNAMO_DISABLE"
    assert facts["environment"]["variables"]["TORCHDYNAMO_DISABLE"] == "1"
