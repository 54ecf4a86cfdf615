"""Where Numba keeps what it compiled, in a process without a home folder."""

import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from numba import config

from fastres.utils import numba_cache


def test_nothing_is_kept_where_the_process_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a package in a folder that this user cannot write, as in a container that runs as somebody else."""

    def unknown(uid: Any) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.chdir(tmp_path)
    numba_cache._stay_out_of_the_working_folder.cache_clear()
    compiled = numba_cache.cached_njit()(lambda x: x + 1)
    numba_cache._stay_out_of_the_working_folder.cache_clear()
    path = Path(compiled._cache.cache_path)
    assert path.is_absolute() and path.is_relative_to(config.CACHE_DIR)
    assert Path(config.CACHE_DIR).stat().st_mode & 0o077 == 0
    assert not list(tmp_path.iterdir())
    assert "NUMBA_CACHE_DIR" in capsys.readouterr().err
