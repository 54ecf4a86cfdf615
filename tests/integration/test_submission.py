"""The challenge's end: a pickle of images without labels goes in, a valid submission.csv comes out, and it says what
`fastres eval` measured."""

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fastres.data import open_dataset


def check_submission(fastres: Any, recipe: Path, source: str, count: int, folder: Path) -> None:
    """Train `recipe`, predict the first `count` test images of `source` in the form of the challenge's file: rows of
    channels, ids in an order of their own."""
    code, _, err = fastres("train", recipe, "--out", folder / "run", "--quiet")
    assert code == 0, err
    test = open_dataset(source, quiet=True).test
    assert test is not None and test.labels is not None
    images, labels = np.array(test.images[:count]), np.array(test.labels[:count])
    ids = np.random.default_rng(0).permutation(count)
    rows = images.transpose(0, 3, 1, 2).reshape(count, -1)
    assert rows.shape == (count, 3072) and rows.dtype == np.uint8
    unlabelled, out = folder / "cifar_test_nolabels.pkl", folder / "submission.csv"
    unlabelled.write_bytes(pickle.dumps({b"data": rows, b"ids": ids}))
    code, printed, err = fastres("predict", folder / "run", unlabelled, "--out", out)
    assert (code, printed) == (0, f"{count:,} predictions in {out}\n"), err
    assert out.read_bytes().startswith(b"ID,Labels\n")
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert sorted(int(line["ID"]) for line in lines) == list(range(count))
    predicted = {int(line["ID"]): int(line["Labels"]) for line in lines}
    assert set(predicted.values()) <= set(range(10)) and len(set(predicted.values())) > 1
    right = sum(predicted[number] == label for number, label in zip(ids.tolist(), labels.tolist(), strict=True))
    code, printed, err = fastres("eval", folder / "run", "--json")
    assert code == 0, err
    # The same weights, pixels and batches: the same bits, and one division.
    assert right / count == json.loads(printed)["accuracy"]


def test_a_submission_of_drawn_images(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    check_submission(fastres, tiny, "shapes10", 100, tmp_path)


def test_a_submission_of_the_real_images(fastres: Any, tiny: Path, real_images: Path, tmp_path: Path) -> None:
    """All 10,000 test images of CIFAR-10 (JPEG), after ten epochs of four steps."""
    text = tiny.read_text().replace('"shapes10"', f'"{real_images}"').replace("test_images = 100\n", "")
    tiny.write_text(text.replace("epochs = 2", "epochs = 10"))
    check_submission(fastres, tiny, str(real_images), 10_000, tmp_path)
