"""Photos at the command line: a run predicts files, folders and tars of them by name, and is tested on other data."""

import csv
import io
import json
import os
import pickle
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastres.evaluation.trained import TrainedModel
from tests.photos import NAMES, train_on, write_photos

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learnt photos; the photos are in photos/val, in heap/ and in more.tar, and the run knows none."""
    home = tmp_path_factory.mktemp("photos")
    write_photos(home / "photos", {"train": 40, "val": 10})
    train_on(home / "photos", home / "run", "eval.batch_size=20")
    (home / "heap" / "deep").mkdir(parents=True)
    for number, file in enumerate(sorted((home / "photos" / "val" / "cat").iterdir())):
        shutil.copy(file, home / "heap" / ("deep" if number % 2 else "") / f"{number + 5}{file.suffix}")
    with tarfile.open(home / "more.tar", "w") as tar:
        tar.add(home / "photos" / "val", "val")
    (home / "heap" / "notes.txt").write_text("of the holidays")
    return home


def table(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text())))


def test_files_folders_and_tars_are_predicted_by_name(
    fastres: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    sources, out = ["photos/val/dog/3.jpg", "heap/", "more.tar"], tmp_path / "out.csv"
    code, printed, err = fastres("predict", "run", *sources, "--top", 2, "--out", out)
    assert (code, printed) == (0, f"41 predictions in {out}\n"), err
    assert "heap/: 1 file is no image by its name and left out, such as heap/notes.txt" in err
    header, *rows = table(out)
    assert header == ["file", "class", "probability", "class_2", "probability_2"]
    heap = [
        *(f"heap/{number}.png" for number in (11, 13, 5, 7, 9)),
        *(f"heap/deep/{n}.jpg" for n in (10, 12, 14, 6, 8)),
    ]
    names = [row[0] for row in rows]
    assert names[:11] == ["photos/val/dog/3.jpg", *sorted(heap)]
    assert sorted(names[11:]) == sorted(
        f"more.tar/val/{name}/{n}.{'jpg' if n % 2 else 'png'}" for name in NAMES for n in range(10)
    )
    model = TrainedModel.load(home / "run", "cpu")
    answers = model([name.replace("more.tar", "photos") for name in names], padded=True)
    expected = [[cell for pair in answer.top(2) for cell in (pair[0], str(np.float32(pair[1])))] for answer in answers]
    assert [row[1:] for row in rows] == expected, "to the bit, as there is a batch of the test or more"


def test_a_photo_is_printed_and_told_as_json(fastres: Any, home: Path) -> None:
    file = home / "photos" / "val" / "dog" / "3.jpg"
    answer = TrainedModel.load(home / "run", "cpu")(file)
    code, printed, err = fastres("predict", home / "run", file)
    assert (code, printed, err) == (0, f"{file}: {answer.label} {answer.probability:.2%}\n", "")
    code, printed, err = fastres("predict", home / "run", file, "--top", 2)
    assert printed == f"{file}: " + ", ".join(f"{name} {value:.2%}" for name, value in answer.top(2)) + "\n"
    code, printed, err = fastres("predict", home / "run", file, "--top", 5, "--json")
    assert code == 0, err
    [told] = json.loads(printed)["predictions"]
    assert (told["file"], told["class"]) == (str(file), answer.label)
    assert [(each["class"], np.float32(each["probability"])) for each in told["top"]] == answer.top(5)


def test_kaggles_form(fastres: Any, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    code, _, err = fastres("predict", home / "run", home / "heap", "--kaggle", "--out", out)
    assert code == 0, err
    header, *rows = table(out)
    assert header == ["id", "label"] and [row[0] for row in rows] == [*map(str, range(5, 15))], "in order of numbers"
    assert {row[1] for row in rows} <= {*NAMES}
    code, _, err = fastres("predict", home / "run", home / "photos", "--kaggle", "--out", tmp_path / "twice.csv")
    assert (
        code == 2 and "train/cat/0.png and " in err and "have one id" in err and err.splitlines()[-1].count("\n") == 0
    )
    assert not (tmp_path / "twice.csv").exists()
    code, _, err = fastres("predict", home / "run", home / "heap", "--kaggle", "--top", 2)
    assert code == 2 and "one class an image" in err


def test_a_pickle_is_predicted_as_before_or_by_name(fastres: Any, home: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "images.pkl").write_bytes(pickle.dumps({"data": images, "ids": [7, 3, 5, 1, 9, 2]}))
    answers, out = TrainedModel.load(home / "run", "cpu")(images, padded=True), tmp_path / "out.csv"
    labels = [str(label) for label in answers.logits.argmax(1).tolist()]
    named = zip("735192", answers, strict=True)
    tops = [[name, answer.label, str(np.float32(answer.probability))] for name, answer in named]
    for options, expected in (
        ([], [["ID", "Labels"], *zip("735192", labels, strict=True)]),
        (["--kaggle"], [["id", "label"], *sorted(zip("735192", answers.labels, strict=True))]),
        (["--top", 1], [["file", "class", "probability"], *tops]),
    ):
        code, printed, err = fastres("predict", home / "run", tmp_path / "images.pkl", "--out", out, *options, "--json")
        assert code == 0, err
        assert table(out) == [list(row) for row in expected]
        assert ("predictions" in json.loads(printed)) == bool(options)
    code, _, err = fastres("predict", home / "run", tmp_path / "images.pkl", home / "heap")
    assert code == 2 and "images.pkl holds no image files but a set of images: predict it alone" in err


def bomb() -> bytes:
    """A PNG file that announces 10⁹ pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (31_623).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def test_photos_that_cannot_be_used_are_named(fastres: Any, home: Path, tmp_path: Path) -> None:
    heap, out = shutil.copytree(home / "heap", tmp_path / "heap"), tmp_path / "out.csv"
    whole = (heap / "5.png").read_bytes()
    damaged = {"bomb.png": bomb(), "empty.png": b"", "half.png": whole[: len(whole) // 2], "text.jpg": b"a cat"}
    for name, data in damaged.items():
        (heap / name).write_bytes(data)
    os.mkfifo(heap / "pipe.jpg")
    code, printed, err = fastres("predict", home / "run", heap, "--out", out)
    assert (code, printed) == (2, "") and "fastres: 5 of 15 images cannot be used:\n" in err
    for name in (*damaged, "pipe.jpg"):
        assert err.count(name) == 1
    assert not out.exists() and "Traceback" not in err
    for number in range(8):
        (heap / f"more{number}.png").write_bytes(b"")
    code, _, err = fastres("predict", home / "run", heap, "--out", out)
    assert code == 2 and "13 of 23 images cannot be used" in err and err.endswith("; and 3 more\n")
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        code, printed, err = fastres("predict", home / "run", tmp_path / name)
        assert (code, printed) == (2, "") and err.count("\n") == 1 and f"{tmp_path / name} " in err


def test_sources_without_photos_and_hostile_ones_are_a_line(fastres: Any, home: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "climbs.tar", "w") as tar:
        tar.add(home / "heap" / "5.png", "a.png")
        member = tarfile.TarInfo("../b.png")
        tar.addfile(member, io.BytesIO())
    (tmp_path / "empty").mkdir()
    (tmp_path / "escape.png\x1b[2J").write_bytes((home / "heap" / "5.png").read_bytes())
    for source, told in (
        (tmp_path / "climbs.tar", "would be written outside its folder"),
        (tmp_path / "empty", "holds no images: expected *.jpg"),
        (tmp_path / "none.jpg", "there is no file or folder"),
        ("/dev/zero", "is no regular file"),
    ):
        code, printed, err = fastres("predict", home / "run", source, "--out", tmp_path / "out.csv")
        assert (code, printed) == (2, "") and told in err and len(err.splitlines()) <= 2
        assert not (tmp_path / "out.csv").exists()
    code, printed, err = fastres("predict", home / "run", tmp_path / "escape.png\x1b[2J")
    assert code == 0 and "escape.png?[2J: " in printed and "\x1b" not in printed


def test_eval_on_other_data_by_the_names_of_its_classes(fastres: Any, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(home / "photos", other)
    code, printed, err = fastres("eval", home / "run", "--json")
    assert code == 0, err
    own = json.loads(printed)
    code, printed, err = fastres("eval", home / "run", "--data", other, "--predictions", tmp_path / "p.csv", "--json")
    assert code == 0, err
    assert json.loads(printed) == own and own["calibrated_error"] is not None
    header, *rows = table(tmp_path / "p.csv")
    assert header == ["file", "label", "class", "probability"] and len(rows) == 30
    assert sum(row[1] == row[2] for row in rows) / 30 == own["accuracy"]
    code, printed, err = fastres("eval", home / "run", "--predictions", tmp_path / "p.csv")
    assert code == 0 and f"predictions {tmp_path / 'p.csv'}" in printed and "with the temperature of the run" in printed
    code, _, err = fastres("eval", home / "run", "--data", other, "--shift")
    assert code == 2 and "leave --data and --predictions out" in err


def test_classes_named_as_formulas_are_mentioned_or_quoted(fastres: Any, home: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for part in ("train", "val"):
        for name in NAMES:
            shutil.copytree(home / "photos" / part / name, photos / part / f"={name}")
    run, out = train_on(photos, tmp_path / "run"), tmp_path / "out.csv"
    for command in (("predict", run, home / "heap", "--out"), ("eval", run, "--predictions")):
        for options in ((), ("--spreadsheet",)):
            code, _, err = fastres(*command, out, *options)
            assert code == 0 and ("would be a formula in a spreadsheet" in err) == (not options)
            column = table(out)[0].index("class")
            assert {row[column][: 1 + bool(options)] for row in table(out)[1:]} == {"'=" if options else "="}


def test_an_encoded_store_and_a_tar_are_named_too(fastres: Any, home: Path, tmp_path: Path) -> None:
    """What `eval --predictions` calls the images does not depend on how they are stored."""
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(home / "photos", ".")
    tables = []
    for name, store in (("photos.tar", "decoded"), ("photos.tar", "encoded"), (home / "photos", "encoded")):
        run = shutil.copytree(home / "run", tmp_path / f"run{len(tables)}")
        recipe = (run / "recipe.toml").read_text().replace(str(home / "photos"), str(tmp_path / name))
        (run / "recipe.toml").write_text(recipe.replace('store = "decoded"', f'store = "{store}"'))
        code, _, err = fastres("eval", run, "--predictions", tmp_path / "p.csv")
        assert code == 0, err
        tables.append(table(tmp_path / "p.csv"))
    code, _, err = fastres("eval", home / "run", "--predictions", tmp_path / "p.csv")
    assert all(each == table(tmp_path / "p.csv") for each in tables)
    picture = Image.open(home / "photos" / tables[0][1][0])
    answer = TrainedModel.load(home / "run", "cpu")(picture, padded=True)
    assert [answer.label, str(np.float32(answer.probability))] == tables[0][1][2:]
