"""Labels of additional images in a file: read back, refused where a bit changed, and read from older versions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastres.data.store.extra import read_labels, write
from fastres.errors import UserError

ROWS, PROBABILITIES = np.arange(5), torch.full((5, 3), 1 / 3)


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.safetensors"
    write(path, ROWS, PROBABILITIES)
    rows, probabilities = read_labels(path)
    assert rows.tolist() == ROWS.tolist() and torch.equal(probabilities, PROBABILITIES)
    whole = path.read_bytes()
    for place in range(0, len(whole), 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(UserError, match="holds no labels, or is damaged"):
            read_labels(path)


def test_a_file_of_before_is_read_and_that_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "labels.safetensors"
    save_file({"rows": torch.from_numpy(ROWS), "probabilities": PROBABILITIES}, path)
    assert read_labels(path)[0].tolist() == ROWS.tolist()
    assert f"{path} is of an older version of fastres" in capfd.readouterr().err
    save_file({"rows": torch.from_numpy(ROWS), "probabilities": PROBABILITIES * float("nan")}, path)
    with pytest.raises(UserError, match="damaged"):
        read_labels(path)
