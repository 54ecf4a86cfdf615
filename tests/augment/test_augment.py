"""Philox against its published vectors; the policy against a loop over pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastres import recipe
from fastres.augment import Augment
from fastres.augment.philox import philox_4x32, uniforms
from fastres.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


def test_philox_gives_the_published_words() -> None:
    """The known answers that the authors publish with their library, for philox 4x32 with ten rounds."""
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones, ones), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        assert tuple(philox_4x32(counter, key).tolist()) == expected
    together = philox_4x32(tuple(np.array([counter[i] for counter, _, _ in cases[:1]]) for i in range(4)), (0, 0))  # type: ignore[arg-type]
    assert tuple(together[:, 0].tolist()) == cases[0][2]


def test_uniforms_are_uniform_and_keyed() -> None:
    draws = uniforms(1, 2, np.arange(50_000), 0)
    assert draws.min() >= 0
    assert draws.max() < 1
    # The standard error of the mean of 50,000 uniforms is 0.29/224 = 0.0013; 0.006 is more than four of them.
    assert np.abs(draws.mean(axis=1) - 0.5).max() < 0.006
    for other in (uniforms(2, 2, np.arange(9), 0), uniforms(1, 3, np.arange(9), 0), uniforms(1, 2, np.arange(9), 1)):
        assert not np.array_equal(other, draws[:, :9])


def slow(image: np.ndarray, down: int, right: int, flip: bool, padding: str) -> np.ndarray:
    """Shift, then mirror, a pixel at a time."""
    size = image.shape[0]
    shifted = np.zeros_like(image)
    for y in range(size):
        for x in range(size):
            from_y, from_x = y - down, x - right
            if padding == "reflect":
                from_y = -from_y if from_y < 0 else 2 * (size - 1) - from_y if from_y >= size else from_y
                from_x = -from_x if from_x < 0 else 2 * (size - 1) - from_x if from_x >= size else from_x
            if 0 <= from_y < size and 0 <= from_x < size:
                shifted[y, x] = image[from_y, from_x]
    return shifted[:, ::-1] if flip else shifted


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(2, 12),
    reach=st.integers(0, 11),
    padding=st.sampled_from(["zero", "reflect"]),
    flip=st.sampled_from(["none", "random"]),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
)
def test_the_policy_is_shift_and_flip(size: int, reach: int, padding: str, flip: str, seed: int, epoch: int) -> None:
    reach = min(reach, size - 1)
    policy = recipe.Augment(translate=reach, padding=padding, flip=flip)  # type: ignore[arg-type]
    augment = Augment(policy, MEAN, STD, seed=seed)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, size, size, 3), dtype=np.uint8))
    rows, indices = torch.tensor([3, 3, 19, 0]), torch.tensor([10, 11, 12, 4_000_000_000])
    batch = augment(images, indices, epoch, rows)
    assert batch.shape == (4, 3, size, size)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    down, right, mirrored = augment.draw(indices, epoch, (size, size))
    assert down.abs().max() <= reach
    assert right.abs().max() <= reach
    if flip == "none":
        assert not mirrored.any()
    for row in range(4):
        image = images[rows[row]].numpy()
        pixels = slow(image, int(down[row]), int(right[row]), bool(mirrored[row]), padding) / 255
        expected = ((pixels - MEAN) / STD).transpose(2, 0, 1)
        # fp32 rounds scale, offset and result by 6e-8 of values up to 10 each.
        assert np.allclose(batch[row].numpy(), expected, atol=4e-6)


def test_draws_cover_their_range_evenly() -> None:
    augment = Augment(recipe.Augment(translate=2), MEAN, STD, seed=7)
    down, right, flip = augment.draw(torch.arange(50_000), 0, (32, 32))
    for shifts in (down, right):
        counts = torch.bincount(shifts + 2, minlength=5)
        # 10,000 expected in each; five standard deviations are 5·√(50,000·0.2·0.8) = 447.
        assert (counts - 10_000).abs().max() < 447
    # 25,000 expected; five standard deviations are 559.
    assert abs(int(flip.sum()) - 25_000) < 559


def test_a_sample_is_the_same_in_any_batch() -> None:
    augment = Augment(recipe.Augment(), MEAN, STD, seed=3, dtype=torch.bfloat16)
    images = torch.randint(0, 256, (50, 32, 32, 3), dtype=torch.uint8)
    everything = augment(images, torch.arange(50), 4)
    for indices in ([7], [49, 7, 0], list(range(49, -1, -1))):
        chosen = torch.tensor(indices)
        assert torch.equal(augment(images, chosen, 4, chosen), everything[chosen])
    assert not torch.equal(augment(images, torch.arange(50), 5), everything)


def test_plain_only_normalises_and_restore_undoes_it() -> None:
    augment = Augment(recipe.Augment(), MEAN, STD, channels_last=False)
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    batch = augment.plain(images, torch.tensor([4, 2]))
    assert batch.is_contiguous()
    # Back to whole grey levels: an error of half a level would be 0.002.
    assert torch.allclose(augment.restore(batch), images[[4, 2]].float() / 255, atol=1e-6)


def test_a_constant_channel_is_centred_not_divided_by_zero() -> None:
    augment = Augment(recipe.Augment(), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    assert augment.plain(torch.zeros(1, 4, 4, 3, dtype=torch.uint8)).eq(0).all()


def test_a_shift_as_large_as_the_image() -> None:
    augment = Augment(recipe.Augment(translate=8), MEAN, STD)
    with pytest.raises(UserError, match="below 8"):
        augment(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.tensor([0]), 0)
