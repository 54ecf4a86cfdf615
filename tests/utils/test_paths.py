"""Paths that begin with ~: in the library, on the command line, in variables and recipes."""

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

import fastres
from fastres.data import data_root
from fastres.errors import UserError
from fastres.recipe.portable import self_contained
from fastres.utils.paths import expand_home


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home and without a name, as `docker run --user 1234` makes one."""

    def unknown(uid: Any) -> None:
        raise KeyError(uid)

    for name in ("HOME", "USER", "LOGNAME", "FASTRES_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    root = pwd.getpwuid(os.getuid())
    for text, expected in {
        "~/x": tmp_path / "x",
        "~": tmp_path,
        f"~{root.pw_name}/x": Path(root.pw_dir, "x"),
        "x~/~": Path("x~", "~"),
        "": Path(),
    }.items():
        assert expand_home(text) == expected


def test_a_home_that_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="~nosuch/x names no folder, as there is no user nosuch: write the whole path"):
        expand_home("~nosuch/x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~backup.toml").touch()
    assert expand_home("~backup.toml") == Path("~backup.toml"), "a file of that name, as shells take it"


@pytest.mark.usefixtures("nobody")
def test_nobody_is_told_what_to_set() -> None:
    with pytest.raises(UserError, match="HOME is not set, and this user has no name"):
        expand_home("~/x")
    with pytest.raises(UserError, match=r"set FASTRES_DATA, or data\.root in the recipe"):
        data_root(None)
    with pytest.raises(UserError, match="~/data names no folder"):
        data_root("~/data")


def test_a_data_folder_of_a_user_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRES_DATA", "~nosuch/data")
    with pytest.raises(UserError, match="FASTRES_DATA: ~nosuch/data names no folder"):
        fastres.data.open_dataset("shapes10")


def test_recipes_and_runs_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the library: what is read, and what is made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text("[data]\nsource = '~/images'\nroot = '~/data'\n")
    recipe = fastres.Recipe.load("~/recipe.toml")
    (tmp_path / "images").mkdir()
    data = self_contained(recipe).data
    assert (data.source, data.root) == (str(tmp_path / "images"), str(tmp_path / "data"))
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/recipe.toml|{tmp_path}/recipe.toml exists"):
        fastres.train(recipe, out="~/recipe.toml")
    for path in ("~/none.toml", "~nosuch/recipe.toml"):
        with pytest.raises(UserError):
            fastres.Recipe.load(path)
    assert not (tmp_path / "~").exists()
