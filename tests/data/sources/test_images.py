"""Folders and tars of images: layout, order, decoding, and what is refused."""

import io
import json
import os
import stat
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastres.data import open_dataset
from fastres.data.sources.images import decode, plan
from fastres.errors import UserError

Files = dict[str, bytes]


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def check(root: Path, source: Path) -> None:
    """The images of `image_files` at size 8, which is their own: nothing is resampled."""
    dataset = open_dataset(str(source), image_size=8, root=root, quiet=True)
    assert dataset.classes == ("ant", "bee")
    assert dataset.image_size == 8
    assert dataset.train is not None and dataset.test is not None and dataset.unlabelled is None
    assert dataset.train.labels is not None and dataset.test.labels is not None
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert dataset.test.labels.tolist() == [0, 1, 0, 1]
    right_half = dataset.train.images[:, 0, -1].tolist()
    assert right_half == [[40 * index + 40, 200 * label, 0] for index in range(3) for label in range(2)]
    assert dataset.test.images[:, 0, 0].tolist() == [[20 * i + 20, 100 * c, 127] for i in range(2) for c in range(2)]
    expected = dataset.train.images.reshape(-1, 3) / 255
    # fp64 over 384 pixels: rounding stays below 1e-14.
    np.testing.assert_allclose(dataset.mean, expected.mean(axis=0), rtol=0, atol=1e-14)
    np.testing.assert_allclose(dataset.std, expected.std(axis=0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.xz"])
@pytest.mark.parametrize("top", ["", "./", "pictures/"])
def test_tars(tmp_path: Path, image_files: Files, write_tar: Callable[..., Path], name: str, top: str) -> None:
    shuffled = dict(sorted(image_files.items(), key=lambda item: hash(item[0][::-1])))
    files = {top + member: data for member, data in shuffled.items()}
    check(tmp_path, write_tar(tmp_path / name, files | {top + "README.txt": b"hello", top + "train/.x.png": b"?"}))


def test_a_folder(tmp_path: Path, image_files: Files, write_folder: Callable[..., Path]) -> None:
    check(tmp_path / "root", write_folder(tmp_path / "in", image_files | {"train/ant/notes.txt": b""}))


def test_valid_stands_in_for_test(tmp_path: Path, image_files: Files, write_folder: Callable[..., Path]) -> None:
    files = {name.replace("test/", "valid/").replace(".png", ".PNG"): data for name, data in image_files.items()}
    check(tmp_path / "root", write_folder(tmp_path / "in", files))


def test_what_becomes_of_val_is_said(
    tmp_path: Path, image_files: Files, write_folder: Callable, write_tar: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(source: Path, *, quiet: bool = False) -> str:
        dataset = open_dataset(
            str(source), image_size=8, root=tmp_path / "root" / f"{source.name}-{quiet}", quiet=quiet
        )
        assert dataset.test is not None and len(dataset.test.images) == 4
        return capsys.readouterr().err

    alone = {"top/" + name.replace("test/", "val/"): data for name, data in image_files.items()}
    both = image_files | {"valid/ant/0.png": image_files["train/ant/0.png"]}
    stands_in, left_out = write_tar(tmp_path / "alone.tar", alone), write_folder(tmp_path / "both", both)
    assert f"{stands_in}: val/ becomes the test set\n" in said(stands_in)
    assert f"{left_out}: valid/ is left out: test/ is the test set\n" in said(left_out)
    beside = image_files | {"more/cow/0.png": image_files["train/ant/0.png"]}
    aside = write_folder(tmp_path / "beside", beside)
    assert "1 image beside train/ and test/ is left out, such as more/cow/0.png\n" in said(aside)
    assert said(stands_in, quiet=True) == ""
    assert "val" not in said(write_folder(tmp_path / "neither", image_files))


def test_a_flat_folder_is_unlabelled(tmp_path: Path, picture: Callable, write_folder: Callable[..., Path]) -> None:
    files = {f"{name}.jpg": picture((10 * index, 0, 0), kind="JPEG") for index, name in enumerate("cab")}
    dataset = open_dataset(str(write_folder(tmp_path / "in", files)), image_size=8, root=tmp_path / "r", quiet=True)
    assert dataset.classes == () and dataset.train is None and dataset.test is None
    assert dataset.unlabelled is not None and dataset.unlabelled.labels is None
    assert dataset.unlabelled.ids is not None and dataset.unlabelled.ids.tolist() == ["a", "b", "c"]
    # a, b, c have red 10, 20, 0; JPEG moves a value by a few levels at most.
    np.testing.assert_allclose(dataset.unlabelled.images[:, 4, 7, 0], [10, 20, 0], atol=4)


names = st.sets(
    st.builds(
        "{}/{}/{}.jpg".format, st.sampled_from(["train", "test"]), st.sampled_from("abc"), st.integers(0, 30).map(str)
    ),
    min_size=1,
)


@given(names, st.randoms())
def test_any_first_part_of_a_store_is_balanced(names: set[str], random: object) -> None:
    # Every class in both parts, so that the layout is valid.
    full = sorted(names | {f"{part}/{label}/x.jpg" for part in ("train", "test") for label in "abc"})
    layout = plan(full, "here")
    random.shuffle(full)  # type: ignore[attr-defined]
    assert plan(full, "here").rows == layout.rows
    assert layout.classes == ("a", "b", "c")
    for part in ("train", "test"):
        inside = {row: name for name, (where, row) in layout.rows.items() if where == part}
        assert sorted(inside) == list(range(layout.counts[part]))
        labels = ["abc".index(inside[row].split("/")[1]) for row in sorted(inside)]
        assert labels == layout.labels[part].tolist()
        totals = np.bincount(labels, minlength=3)
        for row in range(len(labels)):
            seen = np.bincount(labels[: row + 1], minlength=3)
            unfinished = seen[seen < totals]  # a class that has run out cannot keep up
            assert not len(unfinished) or seen.max() - unfinished.min() <= 1


BAD: dict[str, tuple[Callable[[Files], Files], str]] = {
    "no image": (lambda files: {"readme.txt": b""}, "holds no images: expected train/<class>"),
    "no class": (lambda files: {"train/a.png": b"", "test/b.png": b""}, "lie in no class folder"),
    "no parts": (lambda files: {"ant/a.png": b"", "bee/b.png": b""}, "holds no train or test folder"),
    "other classes": (
        lambda files: {name: data for name, data in files.items() if "test/bee" not in name},
        "test has no class folder 'bee'",
    ),
    "text": (lambda files: files | {"train/bee/7.png": b"hello"}, "train/bee/7.png is no JPEG or PNG image"),
    "empty": (lambda files: files | {"train/bee/7.jpg": b""}, "train/bee/7.jpg is no JPEG or PNG image"),
    "a GIF": (
        lambda files: files | {"test/ant/7.png": encode(Image.new("RGB", (8, 8)), "GIF")},
        "test/ant/7.png is no JPEG or PNG image",
    ),
    "cut": (
        lambda files: files | {"test/ant/7.png": files["test/ant/0.png"][:-26]},
        "test/ant/7.png is a damaged image",
    ),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", BAD)
def test_bad_images_and_layouts(
    tmp_path: Path, what: str, packed: bool, image_files: Files, write_tar: Callable, write_folder: Callable
) -> None:
    change, message = BAD[what]
    files = change(image_files)
    path = write_tar(tmp_path / "x.tar.gz", files) if packed else write_folder(tmp_path / "x", files)
    with pytest.raises(UserError, match=message):
        open_dataset(str(path), image_size=8, root=tmp_path / "root", quiet=True)
    assert not [*(tmp_path / "root/stores").glob("[!.]*"), *(tmp_path / "root/stores").glob(".*.tmp")]


@pytest.mark.parametrize("packed", [False, True])
def test_up_to_ten_bad_images_are_named_at_once(
    tmp_path: Path, packed: bool, image_files: Files, write_tar: Callable, write_folder: Callable
) -> None:
    def refused(files: Files) -> str:
        path = write_tar(tmp_path / "x.tar.gz", files) if packed else write_folder(tmp_path / str(len(files)), files)
        with pytest.raises(UserError) as caught:
            open_dataset(str(path), image_size=8, root=tmp_path / "root", quiet=True)
        return str(caught.value)

    cut = image_files["train/ant/0.png"][:-26]
    bad = {"train/ant/7.png": b"", "train/bee/new\nline.png": b"text", "test/bee/9.png": cut}
    first, second = refused(image_files | bad).split("\n")
    assert first.endswith(f": 3 of {len(image_files) + 3} images cannot be used:")
    for named in (
        "train/ant/7.png is no JPEG",
        "train/bee/new?line.png is no JPEG",
        "test/bee/9.png is a damaged image",
    ):
        assert named in second
    assert "more" not in second
    first, second = refused(image_files | {f"train/ant/bad{number}.png": b"" for number in range(130)}).split("\n")
    assert f": 130 of {len(image_files) + 130} images" in first
    assert second.count("is no JPEG or PNG image") == 10 and second.endswith("; and 120 more")


def test_up_to_ten_faults_of_a_layout_are_named_at_once() -> None:
    classes = [f"train/c{number:02}/0.png" for number in range(12)]
    with pytest.raises(UserError) as caught:
        plan([*classes, "test/c00/0.png", "test/only/0.png"], "x")
    assert str(caught.value).count("test has no class folder 'c") == 10
    assert str(caught.value).endswith("; and 2 more: train and test need the same")
    with pytest.raises(UserError, match=r"^x: train/a\?\.png; train/b\.png lie in no class folder: expected"):
        plan(["train/a\n.png", "train/b.png", "train/c/0.png"], "x")


def test_a_picture_beyond_pillows_own_limit_is_to_be_shrunk(picture: Callable) -> None:
    """Pillow refuses 2 × 89,478,485 pixels and warns of half as many: by the size that the header claims."""
    data = bytearray(picture())
    for side in (10_000, 20_000):  # 100 and 400 million
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        with pytest.raises(UserError, match=r"pixels: shrink it to (64,000,000|so many) or fewer"):
            decode(bytes(data), 8)


@pytest.mark.parametrize("packed", [False, True])
def test_a_class_whose_name_has_two_unicode_forms_is_one(
    tmp_path: Path,
    packed: bool,
    picture: Callable,
    write_tar: Callable,
    write_folder: Callable,
    capfd: pytest.CaptureFixture[str],
) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    files = {
        f"{part}/{name}/{number}.png": picture() for part in ("train", "test") for name in ("ant",) for number in "01"
    }
    files |= {f"train/{composed}/0.png": picture(), f"test/{decomposed}/0.png": picture()}
    path = write_tar(tmp_path / "x.tar.gz", files) if packed else write_folder(tmp_path / "x", files)
    dataset = open_dataset(str(path), image_size=8, root=tmp_path / "root")
    assert dataset.classes == ("ant", composed)
    assert "two Unicode forms" not in capfd.readouterr().err
    files |= {f"train/{decomposed}/1.png": picture()}
    path = write_tar(tmp_path / "y.tar.gz", files) if packed else write_folder(tmp_path / "y", files)
    dataset = open_dataset(str(path), image_size=8, root=tmp_path / "root")
    assert dataset.train is not None and dataset.train.labels is not None
    assert dataset.train.labels.tolist().count(1) == 2
    assert f"two Unicode forms are one class: {composed}" in capfd.readouterr().err


def test_a_source_in_the_other_unicode_form_is_the_folder(
    tmp_path: Path, image_files: Files, write_folder: Callable
) -> None:
    write_folder(tmp_path / unicodedata.normalize("NFD", "café"), image_files)
    typed = tmp_path / unicodedata.normalize("NFC", "café")
    assert len(open_dataset(str(typed), image_size=8, root=tmp_path / "root", quiet=True).classes) == 2


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to a pipe": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe"))[1],
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
}


@pytest.mark.parametrize("what", SPECIAL)
def test_special_files_are_refused(tmp_path: Path, what: str, image_files: Files, write_folder: Callable) -> None:
    path = write_folder(tmp_path / "in", image_files)
    SPECIAL[what](path / "train/ant/9.png")
    with pytest.raises(UserError, match=r"in/train/ant/9\.png is no regular file: remove it"):
        open_dataset(str(path), image_size=8, root=tmp_path / "root", quiet=True)


def test_files_are_read_no_further_than_they_should_be(
    tmp_path: Path, image_files: Files, write_folder: Callable
) -> None:
    path = write_folder(tmp_path / "in", image_files)
    odd = path / "train/ant/9.png"
    with odd.open("wb") as file:
        file.truncate((64 << 20) + 1)  # a hole: takes no disk
    with pytest.raises(UserError, match=r"9\.png has more than 64 MiB: shrink or remove it"):
        open_dataset(str(path), image_size=8, root=tmp_path / "root", quiet=True)
    odd.unlink()
    odd.symlink_to("/proc/self/status")  # regular, says that it is empty, and is not
    with pytest.raises(UserError, match=r"9\.png is longer than its size says"):
        open_dataset(str(path), image_size=8, root=tmp_path / "root", quiet=True)
    odd.unlink()
    odd.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read .*9\.png: No such file"):
        open_dataset(str(path), image_size=8, root=tmp_path / "root", quiet=True)
    odd.unlink()
    odd.symlink_to(path / "train/ant/0.png")  # a link to an image is as good as the image
    dataset = open_dataset(str(path), image_size=8, root=tmp_path / "root", quiet=True)
    assert dataset.train is not None and len(dataset.train.images) == 7


@pytest.mark.parametrize("packed", [False, True])
def test_names_that_are_not_utf8(
    tmp_path: Path, packed: bool, image_files: Files, write_folder: Callable, write_tar: Callable
) -> None:
    latin1 = os.fsdecode(b"caf\xe9")
    files = {name.replace("bee", latin1): data for name, data in image_files.items()}
    source = write_tar(tmp_path / f"{latin1}.tar", files) if packed else write_folder(tmp_path / latin1, files)
    command = [sys.executable, "-m", "fastres", "data"]
    options = [os.fsencode(source), "--image-size", "8", "--root", tmp_path / "root"]
    # Errors on standard output are strict in every UTF-8 locale; the locale C would let surrogates pass.
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    for words in (["info"], ["prepare"], ["info"], ["info", "--json"], ["prepare", "--json"]):
        done = subprocess.run([*command, *words, *options], capture_output=True, env=environment)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        if "--json" in words:
            facts = json.loads(done.stdout)
            assert facts["classes"] == ["ant", "caf\\udce9"]
            assert facts["parts"]["train"]["classes"] == {"ant": 3, "caf\\udce9": 3}
            assert facts["source"].endswith("caf\\udce9" + source.suffix) and facts["prepared"]
    dataset = open_dataset(str(source), image_size=8, root=tmp_path / "root", quiet=True)
    assert dataset.classes == ("ant", "caf\\udce9")
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    json.dumps(manifest, ensure_ascii=False).encode()  # fails where text is left that UTF-8 cannot hold


def test_names_of_unlabelled_images_that_are_not_utf8(
    tmp_path: Path, picture: Callable, write_folder: Callable
) -> None:
    path = write_folder(tmp_path / "in", {"a.png": picture(), os.fsdecode(b"caf\xe9.png"): picture()})
    part = open_dataset(str(path), image_size=8, root=tmp_path / "root", quiet=True).unlabelled
    assert part is not None and part.ids is not None and part.ids.tolist() == ["a", "caf\\udce9"]


def test_names_are_no_markup_of_the_bar(tmp_path: Path, image_files: Files, write_folder: Callable) -> None:
    """A bar is drawn on terminals only, so the process gets one."""
    path = write_folder(tmp_path / "[red]x", image_files)
    master, terminal = os.openpty()
    try:
        command = "import sys; from fastres.data import open_dataset; open_dataset(*sys.argv[1:2], root=sys.argv[2])"
        done = subprocess.run([sys.executable, "-c", command, path, tmp_path / "root"], stderr=terminal)
        shown = os.read(master, 1 << 16)
    finally:
        os.close(master)
        os.close(terminal)
    assert done.returncode == 0, shown
    assert b"decoding [red]x" in shown


def test_a_member_twice_is_refused(tmp_path: Path, picture: Callable, write_tar: Callable) -> None:
    path = write_tar(tmp_path / "x.tar", {"train/a/1.png": picture(), "./train/a/1.png": picture()})
    with pytest.raises(UserError, match=r"holds train/a/1\.png twice"):
        open_dataset(str(path), root=tmp_path, quiet=True)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_damaged_images_are_an_error_or_an_image(position: int, noise: bytes) -> None:
    gradient = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(16, 16, 3).astype(np.uint8)
    for kind in ("PNG", "JPEG"):
        data = bytearray(encode(Image.fromarray(gradient), kind))
        start = position % len(data)
        data[start : start + len(noise)] = noise
        try:
            assert decode(bytes(data), 16).shape == (16, 16, 3)
        except UserError as error:
            assert "image" in str(error) or "pixels" in str(error)


def test_colour_modes() -> None:
    grey = Image.new("L", (8, 8), 77)
    assert decode(encode(grey), 8).tolist() == [[[77] * 3] * 8] * 8
    assert (decode(encode(Image.fromarray(np.full((8, 8), 77 << 8, np.uint16))), 8) == 77).all()
    assert (decode(encode(Image.new("1", (8, 8), 1)), 8) == 255).all()
    assert (decode(encode(Image.new("RGB", (8, 8), (1, 2, 3)).quantize(4)), 8) == [1, 2, 3]).all()
    # Alpha 51 of 255 on black leaves a fifth of the colour; compositing rounds to within one level.
    clear = decode(encode(Image.new("RGBA", (8, 8), (200, 100, 50, 51))), 8)
    np.testing.assert_allclose(clear[0, 0], [40, 20, 10], atol=1)
    assert (decode(encode(Image.new("LA", (8, 8), (200, 0))), 8) == 0).all()
    assert (decode(encode(grey.convert("P"), transparency=77), 8) == 0).all()
    assert decode(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), 8).min() >= 250  # JPEG: not quite white


@pytest.mark.parametrize("width, height", [(64, 40), (40, 64), (20, 20), (4000, 40), (33, 32)])
def test_the_centred_square_is_resized(width: int, height: int) -> None:
    side = min(width, height)
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = (10, 200, 90)
    image = decode(encode(Image.fromarray(pixels)), 32)
    assert image.shape == (32, 32, 3)
    # The inside of the square has one colour, which bicubic resampling keeps; (33, 32) cuts through half pixels.
    assert (image[2:-2, 2:-2] == (10, 200, 90)).all()


def test_shrinking_is_antialiased() -> None:
    checks = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)
    # Averaged over 4×4 pixels a chessboard is grey; without antialiasing it would be black and white. Edges ring.
    np.testing.assert_allclose(decode(encode(Image.fromarray(checks)), 32)[4:-4, 4:-4], 127.5, atol=3)


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = encode(Image.new("1", (9000, 9000)))
    assert len(bomb) < 100_000
    with pytest.raises(UserError, match="has 9000×9000 pixels"):
        decode(bomb, 32)
