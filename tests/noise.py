"""Folders of images that show nothing."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_noise(folder: Path, images: int) -> None:
    """`images` of 8×8 pixels of each of two classes, cat and dog, in each of the parts train and test."""
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            place = folder / part / name
            place.mkdir(parents=True)
            for index in range(images):
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{index}.png")
