"""How commands end: pipes that close, signals, disks and GPUs that are full, names that are not UTF-8."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from fastres.cli import app as cli

RECIPES = Path(cli.__file__).parents[2] / "recipes"
COMMAND = [sys.executable, "-m", "fastres"]
# Python lets surrogates through on standard output in the C locale; a user's own locale does not.
STRICT = {"PYTHONIOENCODING": "utf-8:strict"}


def run(*arguments: object) -> tuple[int, str, str]:
    """Run a command in a process of its own, with an output that refuses what is not UTF-8."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, env=os.environ | STRICT)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# ---------------------------------------------------------------------------------------------------- pipes


def to_closed_pipe(*arguments: object, unbuffered: bool = False, with_errors: bool = False) -> tuple[int, str]:
    """Status and standard error of a command whose standard output nobody reads, nor its standard error if asked.

    Buffered output fails at the end of the command, unbuffered output in the middle.
    """
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        stdout=writer,
        stderr=writer if with_errors else subprocess.PIPE,
        env=environment | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {}),
        text=True,
    )
    os.close(writer)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["show", RECIPES / "quickstart.toml"], ["doctor"]])
def test_a_reader_that_has_gone_is_no_error(arguments: list[object], unbuffered: bool) -> None:
    assert to_closed_pipe(*arguments, unbuffered=unbuffered) == (0, "")


def test_a_reader_that_goes_in_the_middle_is_no_error() -> None:
    process = subprocess.Popen(
        [*COMMAND, "show", RECIPES / "quickstart.toml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(1) == b"["
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_a_run_that_lost_the_reader_of_its_progress_goes_on(tiny: Path, tmp_path: Path) -> None:
    code, _ = to_closed_pipe("train", tiny, "--out", tmp_path / "run", with_errors=True)
    assert code == 0 and (tmp_path / "run" / "summary.json").exists()


def test_a_run_goes_on_without_a_terminal_or_output(tiny: Path, tmp_path: Path) -> None:
    """Its terminal is gone, and SIGHUP ignored, as under nohup; its standard output is closed."""
    terminal, own = os.openpty()
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "train", str(tiny), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=own)
    os.close(own)
    os.close(terminal)
    assert process.wait() == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams_leave_no_traceback(closed: str, tmp_path: Path) -> None:
    for arguments, status in ((["--version"], 0), (["show", tmp_path / "none.toml"], 2)):
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, *map(str, arguments)]
        done = subprocess.run(shell, capture_output=True, text=True)
        assert done.returncode == status
        assert "Traceback" not in done.stderr + done.stdout
        assert status != 2 or done.stdout == "", "errors do not go to standard output"


def test_an_error_keeps_its_status_where_nobody_reads_the_output(tmp_path: Path) -> None:
    code, err = to_closed_pipe("show", tmp_path / "none.toml")
    assert code == 2
    assert "no such recipe" in err


def test_a_result_that_a_full_disk_refuses_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr and done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- Typer


def test_typers_own_ends_are_kept(fastres: Any) -> None:
    code, out, err = fastres("train", "--help")
    assert (code, err) == (0, "")
    assert "RECIPE" in out
    code, out, err = fastres("data", "prepare")
    assert code == 2
    assert "Usage:" in err and "SOURCE" in err
    code, out, err = fastres("show", "--nothing")
    assert code == 2
    assert "Usage:" in err and "--nothing" in err
    assert fastres("--version")[0] == 0


# ---------------------------------------------------------------------------------------------------- signals


def hears_ctrl_c() -> None:
    """A shell makes what it starts in the background ignore SIGINT, tests included; their children shall not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.serial
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_training_ends_in_a_word(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "data", "prepare", "shapes10", "--root", tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    while process.poll() is None and not list(tmp_path.glob("stores/*/*.npy")):
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert err.endswith("fastres: interrupted\n")
    assert "Traceback" not in err and "Aborted" not in err
    assert not list(tmp_path.rglob("*.npy")), "what was half built is gone"


def test_a_command_gives_the_signals_meaning_back(fastres: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert fastres("--version")[0] == 0
    assert signal.getsignal(signal.SIGTERM) is before


# ---------------------------------------------------------------------------------------------------- disks


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two classes, one named in Latin-1, one with an escape sequence."""
    folder = tmp_path_factory.mktemp("names")
    for part in ("train", "test"):
        for label, name in enumerate((b"caf\xe9", b"\x1b[31mred")):
            place = folder / "images" / part / os.fsdecode(name)
            place.mkdir(parents=True)
            for number in range(8):
                pixels = np.random.default_rng((label, number)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[data]\nsource = "{folder / "images"}"\nsplit = "none"\n'
        "[model]\nblocks = [1]\nchannels = [4]\nstrides = [2]\nkernels = [3]\nskip_kernels = [1]\n"
        "[train]\nepochs = 1\nbatch_size = 16\ncompile = false\n"
    )
    code, _, err = run("train", recipe, "--out", folder / "run", "--quiet")
    assert code == 0, err
    return folder


def test_predictions_that_cannot_be_written_are_refused_before_predicting(
    fastres: Any, trained: Path, tmp_path: Path
) -> None:
    for out, expected in (
        (tmp_path, "it is a folder: give the name of a file"),
        (tmp_path / ("x" * 300), "the name is too long"),
        (trained / "recipe.toml" / "out.csv", "a file stands where a folder is needed"),
    ):
        code, stdout, err = fastres("predict", trained / "run", trained / "images", "--out", out)
        assert (code, stdout) == (2, ""), err
        assert expected in err and "Traceback" not in err


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", LONG],
        ["train", LONG],
        ["train", RECIPES / "quickstart.toml", "--out", LONG],
        ["train", "--resume", LONG],
        ["eval", LONG],
        ["predict", LONG, "shapes10"],
        ["data", "info", LONG],
        ["data", "prepare", "shapes10", "--root", f"/tmp/{LONG}"],
    ],
)
def test_names_that_are_too_long_are_one_line(fastres: Any, arguments: list[object]) -> None:
    code, out, err = fastres(*arguments)
    assert (code, out) == (2, ""), err
    assert LONG in err and err.count("\n") == 1


def test_a_recipe_behind_links_in_a_circle_is_one_line(fastres: Any, tmp_path: Path) -> None:
    (tmp_path / "circle.toml").symlink_to(tmp_path / "circle.toml")
    code, _, err = fastres("show", tmp_path / "circle.toml")
    assert code == 2
    assert "circle.toml: cannot be read (" in err and err.count("\n") == 1


def test_a_file_in_tensorboards_place_is_one_line(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    assert fastres("train", tiny, "--out", tmp_path / "run", "--set", "record.tensorboard=true", "--quiet")[0] == 0
    from fastres.errors import UserError
    from fastres.runs.recorder import Recorder

    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UserError, match="tensorboard: a file stands where a folder is needed"):
        Recorder(tmp_path, tensorboard=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a tmpfs needs root: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full_for_tensorboard_is_one_line(small_disk: Path) -> None:
    # The disk fills up after metrics.jsonl is rewritten: two pages are left, its row takes one, the 200 events of about
    # 60 bytes take three.
    script = """if True:
        import os, sys, threading
        from pathlib import Path
        from fastres.errors import UserError
        from fastres.runs.recorder import Recorder
        from fastres.runs.schema import Epoch
        from fastres.utils.terminal import quiet_thread
        class Wide(Epoch, extra="allow"): pass
        threading.excepthook = quiet_thread
        place = Path(sys.argv[1])
        recorder = Recorder(place, tensorboard=True)
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        (place / "filler").write_bytes(bytes(free - 8192))
        for attempt in (lambda: recorder.log(Wide(epoch=1, **{f"m{n}": 0.5 for n in range(200)})), recorder.close):
            try:
                attempt()
            except UserError as error:
                print(error)
        print((place / "metrics.jsonl").stat().st_size)
    """
    done = subprocess.run([sys.executable, "-c", script, small_disk], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[0].startswith(f"cannot write {small_disk}/tensorboard: the disk is full")
    assert int(lines[-1]) > 0


# ---------------------------------------------------------------------------------------------------- GPU memory


@pytest.mark.parametrize(("command", "expected"), [("train", "train.batch_size"), ("eval", "eval.batch_size")])
def test_too_little_gpu_memory_is_one_line(
    command: str, expected: str, fastres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line's own group, around commands that end as CUDA's allocator ends them."""
    app = typer.Typer(cls=cli._Group, add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def train() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore\nlines")

    app.command(name="eval")(train)
    monkeypatch.setattr(cli, "app", app)
    code, out, err = fastres(command)
    assert (code, out) == (2, "")
    assert err.startswith("fastres: the GPU has too little free memory: lower ") and expected in err
    assert err.count("\n") == 1


@pytest.mark.gpu
def test_a_real_lack_of_gpu_memory_is_one_line(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        code, _, err = fastres("train", tiny, "--out", tmp_path / "run", "--device", "cuda", "--quiet")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert code == 2, err
    assert "train.batch_size" in err and "Traceback" not in err


# ---------------------------------------------------------------------------------------------------- names


def test_class_names_command_no_terminal_and_need_not_be_utf8(trained: Path) -> None:
    code, out, err = run("eval", trained / "run")
    assert code == 0, err
    assert "\x1b" not in out
    rows = out.splitlines()
    named = [row for row in rows if row.startswith(("caf", "?[31mred"))]
    assert len(named) == 2
    assert len({row.index("  8  ") for row in named}) == 1, "the columns stay aligned"
    for command in ("info", "prepare"):
        code, out, err = run("data", command, trained / "images")
        assert code == 0, err
        assert "\x1b" not in out
    code, out, err = run("data", "info", trained / "images", "--json")
    assert code == 0, err
    assert "\x1b[31mred" in json.loads(out)["classes"], "JSON escapes it and gives it back"


def test_a_path_that_is_not_utf8_can_be_printed(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9.csv")
    code, printed, err = run("predict", trained / "run", trained / "images", "--out", out)
    assert code == 0, err
    assert printed.endswith("caf?.csv\n")
    assert out.is_file()


def test_errors_command_no_terminal(tmp_path: Path) -> None:
    code, _, err = run("show", tmp_path / "\x1b[2Jnone.toml")
    assert code == 2
    assert "?[2Jnone.toml: no such recipe" in err and "\x1b" not in err


def test_ids_are_the_names_of_the_files(fastres: Any, trained: Path, tmp_path: Path) -> None:
    names = ["a", "café", 'x,"y"', os.fsdecode(b"z\xe9")]
    (tmp_path / "heap").mkdir()
    for name in names:
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "heap" / f"{name}.png")
    out = tmp_path / "out.csv"
    for options, header, shown in (
        ([], ["file", "class", "probability"], [f"{tmp_path / 'heap' / name}.png" for name in names]),
        (["--kaggle"], ["id", "label"], names),
    ):
        code, _, err = fastres("predict", trained / "run", tmp_path / "heap", "--out", out, *options)
        assert code == 0, err
        rows = list(csv.reader(io.StringIO(out.read_bytes().decode(errors="surrogateescape"))))
        assert rows[0] == header
        assert [row[0] for row in rows[1:]] == shown
        assert {row[1] for row in rows[1:]} <= {"caf\\udce9", "\x1b[31mred"}


def test_names_that_a_spreadsheet_would_run_are_mentioned_or_quoted(
    fastres: Any, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "heap").mkdir()
    for name in ("=1+1,A", "plain", "-5"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "heap" / f"{name}.png")
    ids = []
    for options in ([], ["--spreadsheet"]):
        out = tmp_path / "out.csv"
        code, _, err = fastres("predict", trained / "run", tmp_path / "heap", "--kaggle", "--out", out, *options)
        assert code == 0, err
        assert ("2 names such as -5 would be a formula" in err) == (not options)
        ids.append([name for name, _ in csv.reader(io.StringIO(out.read_text()))][1:])
    assert ids == [["-5", "=1+1,A", "plain"], ["'-5", "'=1+1,A", "plain"]]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        (7, b"7"),
        ("plain", b"plain"),
        (os.fsdecode(b"caf\xe9,b"), b'"caf\xe9,b"'),
        ("\ud800\n", b'"?\n"'),  # a pickle's ids can hold surrogates that stand for no byte
    ],
)
def test_the_bytes_of_a_cell(name: object, cell: bytes) -> None:
    from fastres.evaluation.prediction_files import _cell

    assert _cell(name) == cell
