"""The training loop of one file learns shapes10, and a folder of images, at sizes that take seconds."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import train_cifar

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_learns_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = train_cifar.main(["--epochs", "1", "--width", "8", "--device", "cpu"])
    # Chance is 10% of 2,000 images, with a standard deviation of 0.7 points.
    assert accuracy > 0.2
    line = r"epoch 1/1  loss ([\d.]+)  test accuracy ([\d.]+)%  [\d,]+ images/s\n"
    found = re.fullmatch(line, capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) < math.log(10)  # what equal probabilities of ten classes cost
    assert float(found[2]) == pytest.approx(100 * accuracy, abs=0.005)


def test_it_learns_a_folder_with_mixed_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = generator.integers(0, 128, (32, 32, 3), dtype=np.uint8)
                image[:, :, channel] += 64
                Image.fromarray(image).save(folder / f"{number}.png")
    options = ["--epochs", "6", "--batch-size", "20", "--width", "8", "--cutmix", "1", "--device", "cpu"]
    # Chance is a third of 60 images, with a standard deviation of 6 points. Half brighter in one channel is easy.
    assert train_cifar.main([str(tmp_path), *options]) > 0.8
