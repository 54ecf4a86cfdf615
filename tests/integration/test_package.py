"""What is installed, how fast it starts, and where kernels/ is found."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True)


def test_importing_is_silent_and_light(tmp_path: Path) -> None:
    done = python("-W", "error", "-c", "import fastres, sys; assert 'torch' not in sys.modules", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """The half second that `--help` may take is measured by benchmarks; this is its cause, whatever the machine."""
    code = (
        "import sys; sys.argv = ['fastres', '--help']\n"
        "from fastres.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'matplotlib', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = python("-W", "error", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for command in ("train", "eval", "predict", "show", "doctor", "data"):
        assert command in done.stdout


def test_the_parts_are_reached_from_the_package(tmp_path: Path) -> None:
    code = (
        "import fastres\n"
        "assert callable(fastres.train) and callable(fastres.resume) and callable(fastres.data.open_dataset)\n"
        "import fastres.training\n"
        "assert callable(fastres.train), 'a submodule must not hide the function'\n"
        "for name in fastres.__all__: getattr(fastres, name)\n"
        "try: fastres.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise SystemExit(1)\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_version(tmp_path: Path) -> None:
    from fastres import __version__

    assert python("-m", "fastres", "--version", cwd=tmp_path).stdout == f"fastres {__version__}\n"


def test_kernels_is_found_from_anywhere_and_only_by_its_full_name(tmp_path: Path) -> None:
    for place in (tmp_path, ROOT):
        done = python("-c", "import fastres.kernels as k; print(k.__name__)", cwd=place)
        assert done.stdout == "fastres.kernels\n", done.stderr
    assert "ModuleNotFoundError" in python("-c", "import kernels", cwd=tmp_path).stderr
    assert "import fastres.kernels" in python("-c", "import kernels", cwd=ROOT).stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, as a fresh clone would be."""
    place = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    listing, source = place / "files", place / "source"
    listing.write_bytes(listed.rstrip(b"\0"))
    source.mkdir()
    copy = f"tar --null -T {listing} -cf - | tar -xf - -C {source}"
    subprocess.run(copy, shell=True, cwd=ROOT, check=True)
    done = python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = place.glob("*.whl")
    return built


def test_the_wheel_holds_kernels_inside_fastres(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "fastres/kernels/__init__.py" in names
    assert "fastres/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastres"}
    code = "import fastres.kernels as k, fastres.cli; print(k.__file__)"
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout.strip() == str(tmp_path / "site" / "fastres" / "kernels" / "__init__.py"), done.stderr
