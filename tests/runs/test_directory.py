"""Run directories: their names, and folders that a killed process left."""

import os
from pathlib import Path

import pytest

from fastres.errors import UserError
from fastres.recipe import Recipe
from fastres.runs import directory, many
from fastres.utils.locks import open_lock, try_lock


@pytest.mark.parametrize("name", ["../../x", "a/b", "/tmp/x", "", "x" * 201, "a\0b"])
def test_a_name_stays_in_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no beginning of a folder's name"):
        directory.create(None, name, Recipe())
    assert not [*tmp_path.iterdir()]
    assert directory.create(None, "..", Recipe()).parent == Path("runs")


def test_what_ends_a_command_before_anything_is_saved_leaves_no_folder(tmp_path: Path) -> None:
    run = directory.create(tmp_path / "run", "x", Recipe())
    (run / "environment.json").write_text("{}")
    (run / ".lock").touch()
    directory.remove_unsaved(run)
    assert not run.exists()
    run = directory.create(tmp_path / "run", "x", Recipe())
    (run / "rounds/0/checkpoints").mkdir(parents=True)
    (run / "rounds/0/checkpoints/last.pt").touch()
    directory.remove_unsaved(run)
    assert (run / "recipe.toml").is_file()


def test_a_folder_that_a_killed_process_began_is_written_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill = os.fork()
    if not kill:
        with many.whole_folder(out, "x") as folder:
            (folder / "figures").mkdir()
            (folder / "figures/.loss.png.17-0a1b2c3d.tmp").touch()
            os._exit(9)  # as SIGKILL does: nothing is cleaned up
    assert os.waitpid(kill, 0)[1] == 9 << 8
    assert (out / many.UNFINISHED).is_file()
    with open_lock(out / many.UNFINISHED) as held:
        assert try_lock(held)
        with pytest.raises(UserError, match="another process is writing"), many.whole_folder(out, "x"):
            pass
    with many.whole_folder(out, "x") as folder:
        assert [path.name for path in folder.rglob("*") if path.is_file()] == [many.UNFINISHED]
        (folder / "page.html").touch()
    assert {path.name for path in out.iterdir()} == {"figures", "page.html"}
    with pytest.raises(UserError, match="exists and is not an empty folder"), many.whole_folder(out, "x"):
        pass


def test_a_folder_whose_writing_fails_vanishes_if_it_is_ours(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), many.whole_folder(tmp_path / "out", "x") as folder:
        (folder / "half").touch()
        raise ZeroDivisionError
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    for name in ("precious", many.UNFINISHED):  # somebody else's mark makes nothing ours
        (tmp_path / "mine" / name).touch()
    with pytest.raises(ZeroDivisionError), many.whole_folder(tmp_path / "mine", "x"):
        raise ZeroDivisionError
    assert (tmp_path / "mine/precious").exists()


def test_what_stands_in_the_way_of_a_run_names_the_command_that_goes_on(tmp_path: Path) -> None:
    directory.create(tmp_path / "a run", "x", Recipe())
    with pytest.raises(UserError) as caught:
        directory.check_free(tmp_path / "a run")
    assert str(caught.value).endswith(f"or go on with `fastres train --resume '{tmp_path}/a run'`")


@pytest.mark.parametrize("left", [".lock", ".plan.json.17-0a1b2c3d.tmp"])
def test_what_a_kill_leaves_of_the_first_file_is_nothing(left: str, tmp_path: Path) -> None:
    (tmp_path / left).touch()
    directory.check_free(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError):
        directory.check_free(tmp_path)
