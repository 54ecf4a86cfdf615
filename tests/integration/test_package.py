"""What is installed, how fast it starts, and where kernels/ is found."""

import os
import subprocess
import sys
import tarfile
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
        "from fastres.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'matplotlib', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = python("-W", "error", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for command in ("train", "sweep", "eval", "report", "predict", "compare", "show", "doctor", "data", "bench"):
        assert command in done.stdout


def test_the_parts_are_reached_from_the_package(tmp_path: Path) -> None:
    code = (
        "import fastres\n"
        "assert callable(fastres.train) and callable(fastres.resume) and callable(fastres.data.open_dataset)\n"
        "import fastres.training.run\n"
        "assert callable(fastres.train), 'a submodule must not hide the function'\n"
        "for name in fastres.__all__: getattr(fastres, name)\n"
        "try: fastres.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise SystemExit(1)\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_names_are_there_before_they_are_imported(tmp_path: Path) -> None:
    code = (
        "import fastres, sys\n"
        "assert {'Recipe', 'train', 'resume', 'layers', 'data', 'recipe'} <= set(dir(fastres))\n"
        "assert not {'torch', 'pydantic'} & set(sys.modules)\n"
        "assert {'make_loader', 'open_dataset'} <= set(dir(fastres.data)) and 'torch' not in sys.modules\n"
        "assert fastres.recipe.AugmentConfig().translate == 4\n"
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
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, as a fresh clone would have them."""
    place = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    listing, source = place / "files", place / "source"
    listing.write_bytes(listed.rstrip(b"\0"))
    source.mkdir()
    copy = f"tar --null -T {listing} -cf - | tar -xf - -C {source}"
    subprocess.run(copy, shell=True, cwd=ROOT, check=True)
    return source


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a wheel or an sdist of `source` into `out`."""
    done = python("-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def check_wheel(wheel: Path, tmp_path: Path) -> None:
    """kernels/ is inside fastres and nowhere else, and can be imported from there."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "fastres/kernels/__init__.py" in names
    assert "fastres/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastres"}
    code = "import fastres.kernels as k, fastres.cli.app; from fastres.kernels.batch_norm import routing; "
    code += "routing._table(); print(k.__file__)"
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))  # _table reads a file beside the code
    assert done.stdout.strip() == str(tmp_path / "site" / "fastres" / "kernels" / "__init__.py"), done.stderr


def test_the_wheel_holds_kernels_inside_fastres(source: Path, tmp_path: Path) -> None:
    check_wheel(build("wheel", source, tmp_path), tmp_path)


@pytest.mark.slow
def test_a_wheel_built_from_the_sdist_is_the_same(source: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = (path for path in tmp_path.iterdir() if path.is_dir())
    check_wheel(build("wheel", unpacked, tmp_path), tmp_path)


@pytest.mark.slow
def test_an_editable_install_follows_the_folders(source: Path, tmp_path: Path) -> None:
    """In a virtual environment of its own, which borrows this one's packages."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    [packages] = {path for path in sys.path if path.endswith("site-packages")}
    command = [tmp_path / "venv" / "bin" / "pip", "install", "--no-deps", "--no-build-isolation", "--editable", source]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": packages}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (source / "kernels" / "added_later.py").write_text("VALUE = 7\n")
    # Appended, not on PYTHONPATH: there this environment's own editable fastres would be found first.
    code = f"import sys; sys.path.append({packages!r}); import fastres.kernels.added_later as m; print(m.VALUE)"
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "7\n", done.stderr
    (source / "kernels" / "added_later.py").unlink()
