"""data.loader changes speed and nothing else: whole runs, compared by their weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fastres.data import open_dataset
from fastres.data.loaders import choose
from fastres.data.sources import shapes10


def kinds() -> list[str]:
    """The loaders that can be had here."""
    return [kind for kind in choose.KINDS if choose.installed(kind)]


def trained(fastres: Any, tiny: Path, out: Path, *sets: str) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    code, _, said = fastres("train", tiny, "--out", out, *(word for each in sets for word in ("--set", each)))
    assert code == 0, said
    return load_file(out / "checkpoints" / "final.safetensors"), json.loads((out / "summary.json").read_text()), said


def test_every_loader_trains_the_same_weights(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    reference, summary, said = trained(fastres, tiny, tmp_path / "auto")
    assert summary["loader"] == "resident"
    assert "loader resident: 36.9 MB of images fit into 50% of this machine's memory" in said
    assert 0 <= summary["input_stall"] < 1
    rows = [json.loads(line) for line in (tmp_path / "auto" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["input_stall"] < 1 for row in rows)
    for kind in kinds():
        weights, summary, said = trained(fastres, tiny, tmp_path / kind, f"data.loader={kind}")
        assert summary["loader"] == kind
        assert f"loader {kind}: as the recipe says" in said
        assert weights.keys() == reference.keys()
        assert all(np.array_equal(weights[name], reference[name]) for name in reference), kind


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNG files, which every decoder decodes to the same pixels."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 200), ("test", 40)):
        images, labels = shapes10.draw(count, part=part)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / part / shapes10.CLASSES[label] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def test_the_encoded_store_trains_the_same_weights(fastres: Any, tiny: Path, tmp_path: Path, pictures: Path) -> None:
    source = (f"data.source={pictures}", "record.report=true")  # the page draws images, decoded then
    reference, _, _ = trained(fastres, tiny, tmp_path / "decoded", *source)
    for kind in ("auto", *(kind for kind in kinds() if choose.loader_of(kind).reads_encoded)):
        weights, summary, _ = trained(
            fastres, tiny, tmp_path / f"encoded-{kind}", *source, "data.store=encoded", f"data.loader={kind}"
        )
        assert summary["loader"] == (kind if kind != "auto" else summary["loader"]) != "resident"
        assert all(np.array_equal(weights[name], reference[name]) for name in reference), kind
    page = (tmp_path / "encoded-auto" / "report.html").read_text()
    chosen = json.loads((tmp_path / "encoded-auto" / "summary.json").read_text())["loader"]
    assert f"of the time waiting for the {chosen} loader" in page
    code, out, said = fastres("eval", tmp_path / "encoded-auto", "--json")
    assert code == 0, said
    measured = json.loads(out)["accuracy"]
    assert measured == json.loads((tmp_path / "encoded-auto" / "summary.json").read_text())["test_accuracy"]


def test_loaders_that_cannot_be_had_are_told(fastres: Any, tiny: Path, tmp_path: Path) -> None:
    for sets, words in (
        (["data.loader=resident", "data.store=encoded"], ["decoded"]),
        (["data.store=encoded"], ["shapes10", "decoded"]),
        (["data.loader=fast"], ["data.loader", "resident"]),
        (["data.workers=-1"], ["data.workers"]),
    ):
        out = tmp_path / "run"
        code, _, said = fastres("train", tiny, "--out", out, *(word for each in sets for word in ("--set", each)))
        assert code == 2
        assert len(said.strip().splitlines()) <= 2
        assert all(word in said for word in words), said
        assert not out.exists()


@pytest.mark.usefixtures("needs_ffcv")
def test_data_prepare_writes_a_beton(fastres: Any, tmp_path: Path, pictures: Path) -> None:
    root = tmp_path / "root"
    code, out, said = fastres("data", "prepare", pictures, "--format", "beton", "--root", root, "--json")
    assert code == 0, said
    facts = json.loads(out)
    folder = Path(facts["beton"]["path"])
    assert (folder / "train.beton").is_file() and (folder / "test.beton").is_file()
    assert facts["beton"]["bytes"] == sum(path.stat().st_size for path in folder.glob("*.beton"))
    assert fastres("data", "verify", pictures, "--root", root)[0] == 0
    content = bytearray((folder / "train.beton").read_bytes())
    content[-100_000] ^= 1
    (folder / "train.beton").write_bytes(content)
    code, _, said = fastres("data", "verify", pictures, "--root", root)
    assert code == 2
    assert "train.beton was changed" in said
    code, _, said = fastres("data", "prepare", "shapes10", "--format", "beton", "--store", "encoded", "--root", root)
    assert code == 2
    assert "shapes10" in said and "decoded" in said
    assert open_dataset(str(pictures), root=root, quiet=True).train is not None
