"""The encoded store: the same data set as the decoded one, and a file that changed is an error, never other pixels."""

import gc
import io
import json
import os
import pickle
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastres.data import Dataset, EncodedImages, info, open_dataset, prepare, verify
from fastres.errors import UserError

Files = dict[str, bytes]
KINDS = ["folder", "tar"]


def photos() -> Files:
    """40 JPEG files of noise, of odd sizes, and a few PNG, grey and palette images among them."""
    files, random = {}, np.random.default_rng(0)
    for part, count in (("train", 15), ("test", 5)):
        for label in ("ant", "bee"):
            for index in range(count):
                height, width = random.integers(9, 30, 2)
                picture = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
                kind = "PNG" if index % 5 == 1 else "JPEG"
                if index % 5 == 2:
                    picture = picture.convert("L")
                if index % 5 == 1 and label == "bee":
                    picture = picture.convert("P")
                file = io.BytesIO()
                picture.save(file, kind, quality=90)
                files[f"{part}/{label}/{index:02}.{kind.lower()}"] = file.getvalue()
    return files


@pytest.fixture(params=KINDS)
def source(
    request: pytest.FixtureRequest, tmp_path: Path, write_folder: Callable[..., Path], write_tar: Callable[..., Path]
) -> Path:
    if request.param == "folder":
        return write_folder(tmp_path / "in", photos())
    return write_tar(tmp_path / "in.tar", {"./top/" + name: data for name, data in photos().items()})


def opened(source: Path, **options: object) -> Dataset:
    return open_dataset(str(source), store="encoded", image_size=16, root=source.parent / "root", quiet=True, **options)  # type: ignore[arg-type]


def train(dataset: Dataset) -> EncodedImages:
    assert dataset.train is not None and isinstance(dataset.train.images, EncodedImages)
    return dataset.train.images


def test_it_is_the_decoded_store(source: Path) -> None:
    root = source.parent / "root"
    decoded = open_dataset(str(source), image_size=16, root=root, quiet=True)
    encoded = opened(source)
    assert encoded.path == decoded.path.with_name(decoded.path.name + "-encoded")
    assert (encoded.encoded, decoded.encoded) == (True, False)
    assert (encoded.classes, encoded.image_size) == (decoded.classes, 16)
    # From sums of integers: equal to the last bit, in whatever order the threads added them.
    assert (encoded.mean, encoded.std) == (decoded.mean, decoded.std)
    for one, other in ((encoded.train, decoded.train), (encoded.test, decoded.test)):
        assert one is not None and other is not None and one.labels is not None
        assert one.images.shape == other.images.shape and one.images.dtype == other.images.dtype
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.images[np.arange(len(one.images))], other.images)
    again = opened(source)
    assert again.manifest == encoded.manifest
    assert encoded.manifest["store"] == "encoded" and decoded.manifest["store"] == "decoded"
    assert encoded.manifest["fingerprint"] != decoded.manifest["fingerprint"]
    facts = info(str(source), store="encoded", image_size=16, root=root)
    assert facts["prepared"] and facts["store"] == "encoded" and facts["path"] == str(encoded.path)
    assert facts["parts"]["train"] == {"images": 30, "classes": {"ant": 15, "bee": 15}}
    assert verify(str(source), store="encoded", image_size=16, root=root) == []


def test_the_fingerprint_is_the_contents(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    files = photos()
    one, same = (opened(write_folder(tmp_path / name / "in", files)) for name in "ab")
    assert one.manifest["fingerprint"] == same.manifest["fingerprint"]
    files["test/bee/04.jpeg"] = files["test/bee/03.jpeg"]
    assert opened(write_folder(tmp_path / "c/in", files)).manifest["fingerprint"] != one.manifest["fingerprint"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_is_indexed_like_an_array(source: Path, data: st.DataObject) -> None:
    images = train(opened(source))
    model = images.decode(range(30))
    for _ in range(data.draw(st.integers(0, 2))):
        part = data.draw(st.slices(len(model)))
        images, model = images[part], model[part]  # a view of a view
        assert isinstance(images, EncodedImages) and images.shape == model.shape and len(images) == len(model)
    if data.draw(st.booleans()):
        images = pickle.loads(pickle.dumps(images))
    if not len(model):
        assert images[[]].shape == (0, 16, 16, 3)
        with pytest.raises(IndexError):
            images[0]
        return
    number = st.integers(-len(model), len(model) - 1)
    one = data.draw(number)
    assert np.array_equal(images[one], model[one]) and np.array_equal(images[np.int32(one)], model[one])
    for rows in (data.draw(st.lists(number, max_size=5)), data.draw(st.lists(number, max_size=3))):
        assert np.array_equal(images[rows], model[rows])
        assert np.array_equal(images[np.array(rows, np.int32)], model[np.array(rows, np.int32)])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(model), max_size=len(model))))
    assert np.array_equal(images[mask], model[mask])
    for beyond in (len(model), -len(model) - 1):
        for wrong in (beyond, [beyond]):
            with pytest.raises(IndexError):
                images[wrong]
    for wrong in ("x", 1.5, [[0]], (0, 0), None):
        with pytest.raises(IndexError):
            images[wrong]  # type: ignore[call-overload]


def test_files_as_they_are(source: Path) -> None:
    images = train(opened(source))
    files = {name: data for name, data in photos().items() if name.startswith("train")}
    prefix = "" if source.is_dir() else "top/"
    assert {images.name(row).removeprefix(prefix): images.read(row) for row in range(len(images))} == files
    assert images.name(0) == prefix + "train/ant/00.jpeg" and images[1:].name(0) == prefix + "train/bee/00.jpeg"
    assert images.read(-1) == images.read(29)
    out = np.zeros((3, 16, 16, 3), np.uint8)
    assert images.decode([4, 4, 2], out) is out and np.array_equal(out, images[[4, 4, 2]])
    with pytest.raises(ValueError):
        images.decode([1, 2], out)


def handles() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_file_handles(source: Path) -> None:
    """None for a folder; for a tar one, which all views share, until `close` or the last of them is gone."""
    dataset, before = opened(source), handles()
    images, one = train(dataset), int(not source.is_dir())
    view = images[3:9]
    assert handles() == before
    images[0], view[0]
    assert handles() == before + one
    images.close()
    assert handles() == before
    view[0]
    assert handles() == before + one
    other = pickle.loads(pickle.dumps(images))
    assert len(pickle.dumps(images)) < 1000
    other[0]
    assert handles() == before + 2 * one
    del other
    assert handles() == before + one
    del dataset, images, view
    assert handles() == before


def test_threads_read_and_close_at_once(source: Path) -> None:
    images = train(opened(source))
    right, ended = images.decode(range(30)), threading.Event()

    def close() -> None:
        while not ended.is_set():
            images.close()

    closer = threading.Thread(target=close)
    closer.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            for row, pixels in zip(
                list(range(30)) * 10, pool.map(lambda row: images[row], list(range(30)) * 10), strict=True
            ):
                assert np.array_equal(pixels, right[row])
    finally:
        ended.set()
        closer.join()


NAMED = r"in(\.tar)?: (top/)?train/ant/02\.jpeg \(train image 4\) "
FIX = r";\nput it back as it was, or delete the store .*-encoded and prepare it again$"


def place(source: Path) -> tuple[Path, int, int]:
    """The file that holds train/ant/02.jpeg, where in it, and its size."""
    data = photos()["train/ant/02.jpeg"]
    if source.is_dir():
        return source / "train/ant/02.jpeg", 0, len(data)
    return source, source.read_bytes().index(data), len(data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits(source: Path, data: st.DataObject) -> None:
    """Any change of a file's bytes is an error that names it, though a decoder would often make a picture of them."""
    images = train(opened(source))
    right = images.decode([row for row in range(30) if row != 4])
    path, start, size = place(source)
    before = path.read_bytes()
    flips = data.draw(st.sets(st.integers(0, 8 * size - 1), min_size=1, max_size=40))
    changed = bytearray(before)
    for bit in flips:
        changed[start + bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(changed)
        for read in (lambda: images[4], lambda: images.read(4), lambda: images[[1, 4]], lambda: images[2:][2]):
            with pytest.raises(UserError, match=NAMED + "has changed: its checksum is another" + FIX):
                read()
        assert np.array_equal(images.decode([row for row in range(30) if row != 4]), right)
    finally:
        path.write_bytes(before)
    assert len(images[4])


def test_a_tar_cut_at_any_place(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    """Each image is as it was, or an error with its name; the archive never becomes another data set."""
    path = write_tar(tmp_path / "in.tar", photos())
    images = train(opened(path))
    right, content = images.decode(range(30)), path.read_bytes()
    ends = [int(images._offsets[row] + images._sizes[row]) for row in range(30)]
    random = np.random.default_rng(0)
    for cut in sorted({*random.integers(0, len(content), 100).tolist(), 0, *ends[:3], ends[0] - 1}, reverse=True):
        os.truncate(path, cut)
        for row, end in enumerate(ends):
            if end <= cut:
                assert np.array_equal(images[row], right[row])
            else:
                name = images.name(row)
                with pytest.raises(
                    UserError, match=rf"{name} \(train image {row}\) has changed: its size is no longer"
                ):
                    images[row]
    # Asked for anew, it is another source: one that was cut.
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        opened(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda path: path.unlink(), r"cannot be read \(No such file or directory\)"),
    "empty": (lambda path: path.write_bytes(b""), "has changed: its size is no longer"),
    "shorter": (lambda path: os.truncate(path, 100), "has changed: its size is no longer"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"0"), "has changed: its size is no longer"),
    "endless": (lambda path: os.truncate(path, 1 << 40), "has changed: its size is no longer"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), r"cannot be read \(.*is no regular file: remove it\)"),
    "a device": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), r"cannot be read \(.*no regular file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), r"cannot be read \(.*no regular file"),
    "a circle": (lambda path: (path.unlink(), path.symlink_to(path.name)), r"cannot be read \(Too many levels of sym"),
    "another": (lambda path: path.write_bytes(path.with_name("03.jpeg").read_bytes()), "has changed: its size"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_of_a_folder_changes(what: str, tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    source = write_folder(tmp_path / "in", photos())
    images = train(opened(source))
    change, message = CHANGES[what]
    change(source / "train/ant/02.jpeg")
    for _ in range(2):
        with pytest.raises(UserError, match=NAMED + message):
            images[4]
    with pytest.raises(UserError, match=FIX):
        images[4]
    assert len(images[[3, 5]]) == 2
    problems = verify_store_of(source)
    assert len(problems) == 1 and "train/ant/02.jpeg (train image 4)" in problems[0] and "\n" not in problems[0]


def verify_store_of(source: Path) -> list[str]:
    """As `verify`, but of the store as it was prepared, whatever the folder's own times say."""
    from fastres.data.store.decoded import verify_store

    (store,) = (source.parent / "root/stores").glob("[!.]*-encoded")
    return verify_store(store)


@pytest.mark.parametrize("what", ["gone", "a pipe", "a folder", "another tar"])
def test_a_tar_changes(what: str, tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    path = write_tar(tmp_path / "in.tar", photos())
    images = train(opened(path))
    right = images[4]
    path.rename(tmp_path / "moved.tar")
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    elif what == "another tar":
        write_tar(path, {name: photos()[name] for name in reversed(photos())})
    assert np.array_equal(images[4], right)  # open already: still the file that it was
    images.close()
    with pytest.raises(UserError, match=NAMED):
        images[4]


def test_a_changed_image_is_prepared_anew(source: Path) -> None:
    """What the errors advise works: delete the store, or change the source so that it is another."""
    import shutil

    path, start, _ = place(source)
    first = opened(source)
    content = bytearray(path.read_bytes())
    content[start + 400] ^= 4  # within the entropy-coded data: another picture
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # so that only the contents tell
    assert opened(source).path == first.path
    shutil.rmtree(first.path)
    second = opened(source)
    assert second.path == first.path and second.manifest["fingerprint"] != first.manifest["fingerprint"]
    assert len(train(second)[4])


REFUSED: dict[str, tuple[Callable[[Path, Callable], str], str]] = {
    "gz": (lambda place, tar: str(tar(place / "x.tar.gz", photos())), "x.tar.gz is compressed.*\nunpack it"),
    "xz": (lambda place, tar: str(tar(place / "x.tar.xz", photos())), "x.tar.xz is compressed.*\nunpack it"),
    "drawn": (lambda place, tar: "shapes10", "shapes10 has no image files.*use the decoded store"),
    "a pickle": (
        lambda place, tar: [str(place / "x.pkl"), (place / "x.pkl").write_bytes(pickle.dumps({}))][0],
        "x.pkl is neither a folder nor a tar of images: use the decoded store",
    ),
    "a device": (lambda place, tar: "/dev/zero", "/dev/zero is neither a folder nor a tar of images"),
    "nothing in it": (lambda place, tar: str(tar(place / "x.tar", {"a.txt": b""})), "holds no images"),
    "a damaged image": (lambda place, tar: str(tar(place / "x.tar", {"a.png": b"hello"})), "a.png is no JPEG or PNG"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_hold(what: str, tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    make, message = REFUSED[what]
    source = make(tmp_path, write_tar)
    with pytest.raises(UserError, match=f"(?s){message}"):
        open_dataset(source, store="encoded", root=tmp_path / "root", quiet=True)
    assert not [*(tmp_path / "root/stores").glob("[!.]*"), *(tmp_path / "root/stores").glob(".*.tmp")]
    with pytest.raises(UserError, match="there is no store 'jpeg': choose 'decoded' or 'encoded'"):
        open_dataset(source, store="jpeg", root=tmp_path / "root", quiet=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_not_utf8(
    kind: str, tmp_path: Path, image_files: Files, write_folder: Callable, write_tar: Callable
) -> None:
    """Of files, classes, and of the folder or tar itself."""
    latin1 = os.fsdecode(b"caf\xe9 50%")
    files = {name.replace("bee", latin1).replace("0.png", f"{latin1}.png"): data for name, data in image_files.items()}
    place = tmp_path / latin1
    place.mkdir()
    source = write_folder(place / "in", files) if kind == "folder" else write_tar(place / "in.tar", files)
    dataset = open_dataset(str(source), store="encoded", image_size=8, root=tmp_path / "root", quiet=True)
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    json.dumps(manifest, ensure_ascii=False).encode()  # fails where text is left that UTF-8 cannot hold
    images = train(dataset)
    assert images.location == source
    names = {images.name(row) for row in range(len(images))}
    assert names == {name for name in files if name.startswith("train")}
    assert all(images.read(row) == files[images.name(row)] for row in range(len(images)))
    assert images[:].shape == (6, 8, 8, 3) and len(images[[0, 5]]) == 2


def test_unlabelled_images(tmp_path: Path, picture: Callable, write_folder: Callable[..., Path]) -> None:
    source = write_folder(tmp_path / "in", {f"{name}.png": picture((10, 20, 30)) for name in "cab"})
    part = open_dataset(str(source), store="encoded", image_size=8, root=tmp_path / "root", quiet=True).unlabelled
    assert part is not None and part.labels is None and part.ids is not None
    assert part.ids.tolist() == ["a", "b", "c"] and part.images.name(0) == "a.png"
    assert part.images[0][0, -1].tolist() == [10, 20, 30]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "no location": lambda path: change(path, lambda manifest: manifest.pop("location")),
    "a far location": lambda path: change(path, lambda manifest: manifest.update(location="http://x/y")),
    "a number for a location": lambda path: change(path, lambda manifest: manifest.update(location=3)),
    "no sizes": lambda path: (path / "train_sizes.npy").unlink(),
    "a short array": lambda path: shorten(path, "train_checksums.npy"),
    "sizes that are no sizes": lambda path: replace(path, "train_sizes.npy", np.full(30, 1 << 40)),
    "negative sizes": lambda path: replace(path, "train_sizes.npy", np.full(30, -1)),
    "negative offsets": lambda path: replace(path, "train_offsets.npy", np.full(30, -1)),
    "names beyond their end": lambda path: replace(path, "train_name_ends.npy", np.full(30, 1 << 40)),
    "floats": lambda path: replace(path, "train_offsets.npy", np.zeros(30)),
}


def change(path: Path, function: Callable[[dict], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    function(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def shorten(path: Path, name: str) -> None:
    replace(path, name, np.load(path / name)[:-1])


def replace(path: Path, name: str, values: np.ndarray) -> None:
    """With a manifest that fits, as somebody may write who means it."""
    np.save(path / name, values)
    entry = {"shape": list(values.shape), "dtype": values.dtype.str, "bytes": (path / name).stat().st_size}
    change(path, lambda manifest: manifest["files"][name].update(entry))


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_store(what: str, source: Path) -> None:
    dataset = opened(source)
    handle = pickle.dumps(train(dataset))
    DAMAGE[what](dataset.path)
    with pytest.raises(UserError, match="is damaged"):
        opened(source)
    with pytest.raises(UserError, match="is damaged or gone"):
        pickle.loads(handle)
    rebuilt = prepare(str(source), store="encoded", image_size=16, root=source.parent / "root", quiet=True)
    assert rebuilt.manifest == dataset.manifest
    assert len(pickle.loads(handle)) == 30


def test_the_real_images(real_images: Path, tmp_path: Path) -> None:
    """Some of CIFAR-10's JPEG files, in a folder and in a plain tar: the pixels and statistics of the decoded store."""
    taken: Counter[tuple[str, ...]] = Counter()
    with tarfile.open(real_images) as packed, tarfile.open(tmp_path / "in.tar", "w") as plain:
        for member in packed:
            if member.isreg() and taken[member.name.rpartition("/")[:1]] < 15:
                taken[member.name.rpartition("/")[:1]] += 1
                plain.addfile(member, packed.extractfile(member))
    assert taken.total() == 300
    with tarfile.open(tmp_path / "in.tar") as plain:
        plain.extractall(tmp_path / "in", filter="data")
    root = tmp_path / "root"
    with pytest.raises(UserError, match="is compressed"):
        open_dataset(str(real_images), store="encoded", root=root, quiet=True)
    for source in (tmp_path / "in", tmp_path / "in.tar"):
        decoded = open_dataset(str(source), root=root, quiet=True)
        encoded = open_dataset(str(source), store="encoded", root=root, quiet=True)
        assert (encoded.mean, encoded.std) == (decoded.mean, decoded.std)
        for one, other in ((encoded.train, decoded.train), (encoded.test, decoded.test)):
            assert one is not None and other is not None and len(one.images) == 150
            assert np.array_equal(one.images[np.arange(150)], other.images)
