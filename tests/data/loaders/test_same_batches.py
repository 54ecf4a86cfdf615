"""Every loader delivers the batches of the order, whichever store it reads: indices, labels and pixels, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fastres
from fastres.data import Dataset
from fastres.data.loaders import Batch, choose, make_loader
from fastres.data.order import epoch_rows
from fastres.data.sources import shapes10

TRAIN, TEST, CLASSES = 203, 31, 5  # no multiple of any batch size or number of ranks below
KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            not choose.installed(kind), reason=f"{kind} is not installed: pip install 'fastres[{kind}]'"
        ),
    )
    for kind in choose.KINDS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings as PNG files, which every decoder decodes to the same pixels."""
    root = tmp_path_factory.mktemp("drawings")
    for part, count in (("train", TRAIN), ("test", TEST)):
        images, _ = shapes10.draw(count, part=part)
        for index, image in enumerate(images):
            path = root / part / f"class {index % CLASSES}" / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def check(batches: list[Batch], dataset: Dataset, expected: np.ndarray, size: int) -> None:
    """The batches are those of the rows `expected`, with the pixels and labels of the decoded set."""
    assert dataset.train is not None and dataset.train.labels is not None
    assert [len(batch.rows) for batch in batches] == [
        len(expected[at : at + size]) for at in range(0, len(expected), size)
    ]
    for step, batch in enumerate(batches):
        rows = expected[step * size : (step + 1) * size]
        assert np.array_equal(batch.indices.numpy(), rows)
        assert np.array_equal(batch.labels.numpy(), dataset.train.labels[rows])
        assert np.array_equal(batch.source[batch.rows].numpy(), dataset.train.images[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_three_epochs_of_four_ranks_from_any_step(kind: str, decoded: Dataset) -> None:
    """Whole epochs of each rank, disjoint and equally long; and each resumed at a step drawn at random."""
    subset, random = np.arange(5, TRAIN), np.random.default_rng(0)
    delivered: list[list[np.ndarray]] = [[] for _ in range(3)]
    for rank in range(4):
        options = {"batch_size": 16, "subset": subset, "seed": 7, "rank": rank, "ranks": 4}
        with make_loader(decoded, loader=kind, **options) as loader:  # type: ignore[arg-type]
            assert len(loader) == 4  # 198 // 4 = 49 images: three whole batches and one
            for epoch in range(3):
                expected = epoch_rows(subset, 7, epoch, rank, 4)
                check(list(loader.batches(epoch)), decoded, expected, 16)
                first = int(random.integers(0, 5))
                check(list(loader.batches(epoch, first)), decoded, expected[first * 16 :], 16)
                delivered[epoch].append(expected)
    for shards in delivered:
        rows = np.concatenate(shards)
        assert len({len(shard) for shard in shards}) == 1
        assert len(np.unique(rows)) == len(rows) == len(subset) // 4 * 4


@pytest.mark.parametrize("kind", [kind for kind in KINDS if choose.loader_of(kind.values[0]).reads_encoded])
def test_the_encoded_store_gives_the_same_batches(kind: str, decoded: Dataset, encoded: Dataset) -> None:
    with make_loader(encoded, loader=kind, batch_size=32, seed=3) as loader:
        for epoch in range(2):
            check(list(loader.batches(epoch)), decoded, epoch_rows(np.arange(TRAIN), 3, epoch), 32)


@pytest.mark.parametrize("kind", KINDS)
def test_in_order_and_without_the_partial_batch(kind: str, decoded: Dataset) -> None:
    with make_loader(decoded, loader=kind, batch_size=50, drop_last=True) as loader:
        check(list(loader.batches()), decoded, np.arange(200), 50)
    with make_loader(decoded, "test", loader=kind, batch_size=50) as loader:
        (batch,) = loader.batches()
        assert len(batch.rows) == TEST


@pytest.mark.parametrize("kind", KINDS)
def test_batches_stay_as_they_were_delivered(kind: str, decoded: Dataset) -> None:
    """All batches of two epochs are held while later ones are read."""
    with make_loader(decoded, loader=kind, batch_size=8, seed=1) as loader:
        held = [list(loader.batches(epoch)) for epoch in range(2)]
        for epoch, batches in enumerate(held):
            check(batches, decoded, epoch_rows(np.arange(TRAIN), 1, epoch), 8)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_into_a_batch_stays_in_it(kind: str, seed: int | None, folder: Path) -> None:
    """In the order of the subset too, where what a loader delivers could be its own list of rows, or the caller's."""
    dataset, subset = fastres.data.open_dataset(str(folder), quiet=True), np.arange(5, TRAIN)
    with make_loader(dataset, loader=kind, batch_size=16, seed=seed, subset=subset) as loader:
        for epoch in range(2):
            expected = epoch_rows(np.arange(5, TRAIN), seed, epoch)
            for step, batch in enumerate(loader.batches(epoch)):
                check([batch], dataset, expected[step * 16 : (step + 1) * 16], 16)
                parts = [batch.rows, batch.labels, batch.indices]
                for number, part in enumerate(parts):
                    others = parts[:number] + parts[number + 1 :]
                    before = [other.clone() for other in others]
                    part.fill_(-1)
                    assert all(map(torch.equal, others, before))
                if kind != "resident":
                    batch.source.fill_(7)
    assert np.array_equal(subset, np.arange(5, TRAIN))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_into_a_source_stays_in_this_process(kind: str, folder: Path) -> None:
    """The store's file, another loader of the same set and a part of it are as they were."""
    dataset = fastres.data.open_dataset(str(folder), quiet=True)
    assert dataset.train is not None
    with make_loader(dataset, loader=kind, batch_size=8) as loader, make_loader(dataset, batch_size=8) as other:
        batch = next(iter(loader))
        before = batch.source.clone()
        batch.source[:] = 255 - batch.source
        check([next(iter(other))], dataset, np.arange(8), 8)
        assert np.array_equal(dataset.train.images[:8], before[batch.rows])
    with make_loader(fastres.data.open_dataset(str(folder), quiet=True), batch_size=8) as again:
        check([next(iter(again))], dataset, np.arange(8), 8)


@pytest.mark.parametrize("kind", KINDS)
def test_iterated_a_loader_delivers_epoch_after_epoch(kind: str, decoded: Dataset) -> None:
    with make_loader(decoded, loader=kind, batch_size=64, seed=1) as loader:
        for epoch in range(3):
            check(list(loader), decoded, epoch_rows(np.arange(TRAIN), 1, epoch), 64)
            check(list(loader.batches(7)), decoded, epoch_rows(np.arange(TRAIN), 1, 7), 64)


@pytest.mark.parametrize("kind", KINDS)
def test_two_iterators_of_one_loader_do_not_mix(kind: str, decoded: Dataset) -> None:
    with make_loader(decoded, loader=kind, batch_size=64, seed=1) as loader:
        pairs = list(zip(loader.batches(0), loader.batches(1), strict=True))
    for epoch in range(2):
        check([pair[epoch] for pair in pairs], decoded, epoch_rows(np.arange(TRAIN), 1, epoch), 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_loader_is_closed(kind: str, decoded: Dataset) -> None:
    loader = make_loader(decoded, loader=kind, batch_size=8)
    iterator = loader.batches()
    next(iterator)
    loader.close()
    loader.close()
    assert list(iterator) == []
    with pytest.raises(ValueError, match="closed"):
        loader.batches()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_subset_batch_rank_and_step(kind: str, decoded: Dataset, data: st.DataObject) -> None:
    subset = np.array(data.draw(st.lists(st.integers(0, TRAIN - 1), min_size=1, max_size=40)))  # repeats are allowed
    size, ranks = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 3))
    rank, seed = data.draw(st.integers(0, ranks - 1)), data.draw(st.none() | st.integers(0, 9))
    drop_last, epoch = data.draw(st.booleans()), data.draw(st.integers(0, 3))
    with make_loader(
        decoded, loader=kind, batch_size=size, subset=subset, seed=seed, rank=rank, ranks=ranks, drop_last=drop_last
    ) as loader:
        first = data.draw(st.integers(0, len(loader)))
        expected = epoch_rows(subset, seed, epoch, rank, ranks)
        whole = len(expected) // size * size if drop_last else len(expected)
        check(list(loader.batches(epoch, first)), decoded, expected[first * size : whole], size)


def test_shards_together_are_a_batch_of_one_rank(decoded: Dataset) -> None:
    """Four ranks at batch 8 see at each step the images of one rank at batch 32."""
    single = make_loader(decoded, loader="resident", batch_size=32, seed=2)
    shards = [make_loader(decoded, loader="resident", batch_size=8, seed=2, rank=rank, ranks=4) for rank in range(4)]
    for whole, *parts in zip(single.batches(1), *(shard.batches(1) for shard in shards), strict=False):
        if len(whole.rows) == 32:
            assert np.array_equal(np.sort(whole.indices), np.sort(np.concatenate([part.indices for part in parts])))


def test_the_loop_of_the_readme() -> None:
    """The README's second example for libraries, from the opened set on."""
    text = (Path(__file__).parents[3] / "README.md").read_text()
    start = text.index("dataset = fastres.data.open_dataset")
    names = {"fastres": fastres, "recipe": fastres.Recipe()}
    exec(text[start : text.index("```", start)], names)
    assert names["images"].shape == (10_000 % 512, 3, 32, 32)  # type: ignore[attr-defined]


def test_arguments_that_no_set_could_have(decoded: Dataset) -> None:
    for wrong in (
        {"loader": "fast"},
        {"part": "unlabelled"},
        {"subset": np.array([TRAIN])},
        {"batch_size": 0},
        {"rank": 2},
    ):
        with pytest.raises(ValueError):
            make_loader(decoded, **{"batch_size": 4, "loader": "resident", **wrong})  # type: ignore[arg-type]
