"""What holds for the options of every command."""

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from fastres.cli import app, bench, data
from fastres.cli.options import Commands


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In options, arguments and lists of them, given either way; text that is no path stays."""
    monkeypatch.setenv("HOME", str(tmp_path))
    commands, seen = Commands(), dict[str, Any]()

    @commands.command()
    def one(
        files: Annotated[list[Path], typer.Argument()],
        out: Path | None = None,
        text: str = "",
        other: Path | None = None,
    ) -> None:
        seen.update(files=files, out=out, text=text, other=other)

    result = CliRunner().invoke(commands, ["~/a", "b", "--out=~/c", "--text", "~/d"])
    assert result.exit_code == 0, result.output
    assert seen == {"files": [tmp_path / "a", Path("b")], "out": tmp_path / "c", "text": "~/d", "other": None}


def test_every_command_is_one_of_these() -> None:
    assert all(isinstance(each.app, Commands) for each in (app, bench, data))


def test_no_folder_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    (tmp_path / "home" / "run").mkdir(parents=True)
    (tmp_path / "home" / "run" / "file").touch()
    monkeypatch.setattr("sys.argv", ["fastres", "train", "recipe.toml", "--out=~/run"])
    assert app._run() == 2
    monkeypatch.setattr("sys.argv", ["fastres", "train", "recipe.toml", "--out=~nosuch/run"])
    assert app._run() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "recipe.toml"]
