"""Folders of one user's alone: every one on the way is looked at, and nothing is reached through another's link."""

import grp
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastres.utils import private_folders
from fastres.utils.private_folders import NotPrivate, digests, private_folder

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, which needs root")


def test_it_is_made_for_one_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        folder = private_folder(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert folder == tmp_path / "a" / "b" / "c"
    assert [path.stat().st_mode & 0o777 for path in (folder, *folder.parents[:2])] == [0o700] * 3


@pytest.mark.parametrize("level", [0, 1, 2])
def test_no_folder_on_the_way_is_anybody_elses_to_fill(level: int, tmp_path: Path) -> None:
    """A sticky one is, but its entries are their owners' alone."""
    folder = private_folder(tmp_path / "a" / "b" / "c")
    place = tmp_path / "a" / Path(*"bc"[:level])
    place.chmod(0o777)
    with pytest.raises(NotPrivate, match=rf"others can write into {place}: `chmod "):
        private_folder(folder)
    place.chmod(0o1777)
    if level < 2:
        assert private_folder(folder) == folder
    else:
        with pytest.raises(NotPrivate, match=f"others can write into {place}: `chmod 700"):
            private_folder(folder)


@needs_root
@pytest.mark.parametrize("level", [0, 1, 2])
def test_no_folder_on_the_way_is_another_users(level: int, tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "b" / "c")
    place = tmp_path / "a" / Path(*"bc"[:level])
    os.chown(place, 12345, -1)
    with pytest.raises(NotPrivate, match=f"{place} belongs to another user"):
        private_folder(folder)


def test_what_belongs_to_root_is_anybodys_way_but_not_his_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(NotPrivate, match="/usr belongs to another user"):
        private_folder(Path("/usr"))


def test_a_group_of_ones_own_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With umask 002, that is what new folders allow."""
    folder = private_folder(tmp_path / "a" / "b")
    folder.parent.chmod(0o775)
    user = private_folders.pwd.getpwuid(os.geteuid())
    groups = {"own": (user.pw_name, []), "shared": (user.pw_name, ["other"]), "common": ("users", [])}
    for kind, (name, members) in groups.items():
        private_folders._is_private.cache_clear()
        monkeypatch.setattr(grp, "getgrgid", lambda _, n=name, m=members: SimpleNamespace(gr_name=n, gr_mem=m))
        monkeypatch.setattr(
            private_folders.pwd, "getpwuid", lambda _: SimpleNamespace(pw_name=user.pw_name, pw_gid=os.getegid())
        )
        if kind == "own":
            assert private_folder(folder) == folder
        else:
            with pytest.raises(NotPrivate, match="others can write"):
                private_folder(folder)
    private_folders._is_private.cache_clear()


def test_links_are_followed_where_they_are_ones_own(tmp_path: Path) -> None:
    real = private_folder(tmp_path / "real" / "inside")
    (tmp_path / "link").symlink_to("real/../real")
    assert private_folder(tmp_path / "link" / "inside") == real
    real.parent.chmod(0o777)
    with pytest.raises(NotPrivate, match=r"others can write into .*/real"):
        private_folder(tmp_path / "link" / "inside")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OSError, match="symbolic links"):
        private_folder(tmp_path / "circle" / "inside")


@needs_root
def test_no_link_is_another_users(tmp_path: Path) -> None:
    private_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.chown(tmp_path / "link", 12345, -1, follow_symlinks=False)
    with pytest.raises(NotPrivate, match="another user's link"):
        private_folder(tmp_path / "link")


@needs_root
def test_a_file_of_another_user_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert digests(tmp_path).keys() == {"file"}
    os.chown(tmp_path / "file", 12345, -1)
    with pytest.raises(NotPrivate, match="file belongs to another user"):
        digests(tmp_path)


def test_a_hole_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 1 << 40)
    with pytest.raises(NotPrivate, match="more than 1024 MiB"):
        digests(tmp_path)
