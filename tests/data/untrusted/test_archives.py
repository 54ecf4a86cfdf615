"""Archives are read whole or refused: hostile members, and truncation at any byte."""

import gzip
import io
import lzma
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastres.data import open_dataset
from fastres.data.untrusted import archives
from fastres.data.untrusted.archives import members
from fastres.errors import UserError


def read_all(path: Path) -> dict[str, bytes]:
    return {member.name: member.read(1 << 20) for member in members(path)}


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_come_in_order(tmp_path: Path, ending: str, format: int) -> None:
    files = {"./a.txt": b"one", "b/" + "long" * 20 + ".txt": b"x" * 5000, "c.txt": b""}
    path = tmp_path / f"x.{ending}"
    with tarfile.open(path, f"w:{ending[4:]}", format=format) as tar:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert list(read_all(path).items()) == [(name.removeprefix("./"), data) for name, data in files.items()]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


HOSTILE = {
    "climbs out": (special("train/../../evil.png", tarfile.REGTYPE), "outside its folder"),
    "starts with ..": (special("../evil.png", tarfile.REGTYPE), "outside its folder"),
    "backslashes": (special("train\\..\\..\\evil.png", tarfile.REGTYPE), "outside its folder"),
    "absolute": (special("/tmp/evil.png", tarfile.REGTYPE), "outside its folder"),
    "a folder outside": (special("../evil", tarfile.DIRTYPE), "outside its folder"),
    "symbolic link": (special("train/ant/x.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
    "hard link": (special("train/ant/x.png", tarfile.LNKTYPE, "/etc/passwd"), "is a link"),
    "device": (special("train/ant/x.png", tarfile.CHRTYPE), "no regular file"),
    "block device": (special("train/ant/x.png", tarfile.BLKTYPE), "no regular file"),
    "pipe": (special("train/ant/x.png", tarfile.FIFOTYPE), "no regular file"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_members_refuse_the_archive(
    tmp_path: Path, what: str, image_files: dict[str, bytes], write_tar: Callable[..., Path]
) -> None:
    member, problem = HOSTILE[what]
    (tmp_path / "in").mkdir()
    path = write_tar(tmp_path / "in/x.tar", image_files, [member])
    with pytest.raises(UserError, match=f"x.tar is refused: member .* {problem}"):
        open_dataset(str(path), image_size=8, root=tmp_path / "root", quiet=True)
    assert not [*(tmp_path / "root/stores").glob("[!.]*"), *(tmp_path / "root/stores").glob(".*.tmp")]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "root"]


def tar_of_noise() -> bytes:
    """A plain tar of 12 files of noise, which hardly shrinks when packed."""
    file = io.BytesIO()
    random = np.random.default_rng(0)
    with tarfile.open(fileobj=file, mode="w") as tar:
        for index in range(12):
            info = tarfile.TarInfo(f"f{index}")
            info.size = 700
            tar.addfile(info, io.BytesIO(random.bytes(700)))
    return file.getvalue()


TAR = tar_of_noise()
PACK: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gz": gzip.compress, "xz": lzma.compress}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(PACK)), st.floats(0, 1, exclude_max=True))
def test_truncation_at_any_byte_is_noticed(tmp_path: Path, how: str, share: float) -> None:
    # Behind the files come 10 KB of zeros at most, two blocks of which end the archive: cut before those.
    whole = PACK[how](TAR) if how != "plain" else TAR[: 12 * (512 + 1024)]
    path = tmp_path / "x.tar"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"x\.tar is truncated or damaged \(.*: fetch or pack it again"):
        read_all(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 12 * 1536 - 1), st.integers(1, 255))
def test_a_damaged_byte_never_hides_a_member(tmp_path: Path, position: int, flip: int) -> None:
    damaged = bytearray(TAR)
    damaged[position] ^= flip
    path = tmp_path / "y.tar"
    path.write_bytes(damaged)
    try:
        found = read_all(path)
    except UserError:
        return
    # A plain tar has checksums for headers only: contents may differ, but nothing may be missing.
    assert list(found) == [f"f{index}" for index in range(12)]


def test_a_header_of_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with gzip.open(path, "wb", 1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):  # 64 MB of the 1 GB suffice: the limit is 4 MB
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match="a header is larger"):
        read_all(path)


def test_a_member_longer_than_the_limit_is_refused(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    path = write_tar(tmp_path / "x.tar.gz", {"big": bytes(2000)})
    with pytest.raises(UserError, match="member big has 2,000 bytes, more than the 1,999"):
        [member.read(1999) for member in members(path)]


def test_an_unreadable_archive_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_all(tmp_path / "absent.tar")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        open_dataset(str(tmp_path / "pipe"), root=tmp_path, quiet=True)


def announcing(path: Path, size: int) -> Path:
    """A tar whose only file is said to have `size` bytes, and has four."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("train/a/0.jpg")
        info.size, info.pax_headers = 4, {"size": str(size)}
        tar.addfile(info, io.BytesIO(b"abcd"))
    return path


@pytest.mark.parametrize("size", [99_999_999_999_999, 1 << 40, 300 << 20, 20_000])
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_an_announced_size_is_not_believed(tmp_path: Path, name: str, size: int) -> None:
    """Python's tarfile would read nothing for hours, 10 KB at a time."""
    path = announcing(tmp_path / name, size)
    started = time.process_time()
    with pytest.raises(UserError, match=r"truncated or damaged \(it ends within a member\)|unfolds to far more"):
        list(members(path))
    assert time.process_time() - started < 1  # it takes a few milliseconds


@pytest.mark.parametrize("where", ["in a file", "behind the end", "many files"])
def test_zeros_are_not_unpacked_for_long(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is a hundredth here, except where it is that of members."""
    zeros = [bytes(1 << 20)] * 8
    if where != "many files":
        monkeypatch.setattr(archives, "UNFOLDED", archives.UNFOLDED // 100)
    info = tarfile.TarInfo("train/a/zeros.bin")
    info.size = len(zeros) << 20
    forms = {
        "in a file": [info.tobuf(), *zeros, bytes(1024)],
        "behind the end": [TAR, *zeros],
        "many files": [tarfile.TarInfo("f").tobuf() * 15_000, bytes(1024)],
    }
    path = tmp_path / "x.tar.gz"
    with gzip.open(path, "wb") as file:
        file.writelines(forms[where])
    with pytest.raises(UserError, match=r"unfolds to far more than images do: unpack it yourself"):
        list(members(path))


def test_a_file_of_holes_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(TAR)
    os.truncate(path, 1 << 43)
    with pytest.raises(UserError, match="zeros without end"):
        list(members(path))


def test_small_images_that_are_alike_are_no_bomb(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    """Of one colour each: 3 MB of headers, padding and images in some 100 KB."""
    pictures = [picture((number, 0, 0)) for number in range(50)]
    files = {f"train/a/{number:05}.png": pictures[number % 50] for number in range(3000)}
    path = tmp_path / "x.tar.xz"
    with tarfile.open(path, "w:xz", preset=9) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert sum(1 for _ in members(path)) == 3000
