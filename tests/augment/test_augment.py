"""Augment and its module: the Numba twin against the reference bit for bit, and what a training loop relies on."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import EVERYTHING, MEAN, REPORT, SEEDS, SIZES, STD, noise_images, policies

from fastres import recipe
from fastres.augment import Augment, AugmentModule, mix_batch, reference
from fastres.augment.draws import CUTMIX, MIXUP, NO_MIX, check_mix, draw_mix
from fastres.errors import UserError
from fastres.recipe.recipe import Recipe

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MIXES = [
    recipe.MixConfig(),
    recipe.MixConfig(mixup_alpha=0.3),
    recipe.MixConfig(cutmix_alpha=1.0),
    recipe.MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.8),
]


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    size=SIZES,
    seed=SEEDS,
    epoch=st.integers(0, 1000),
    dtype=st.sampled_from(DTYPES),
    channels_last=st.booleans(),
    mix=st.sampled_from(MIXES),
    rows=st.lists(st.integers(0, 5), max_size=9),
)
def test_numba_has_the_references_bits(
    data: st.DataObject,
    size: tuple[int, int],
    seed: int,
    epoch: int,
    dtype: torch.dtype,
    channels_last: bool,
    mix: recipe.MixConfig,
    rows: list[int],
) -> None:
    policy = data.draw(policies(size))
    augment = Augment(policy, MEAN, STD, mix=mix, seed=seed, dtype=dtype, channels_last=channels_last)
    images, chosen = noise_images(size), torch.tensor(rows, dtype=torch.int64)
    indices = torch.arange(len(rows)) * 1_000_003 + 4_000_000_000
    batch, _, partners, weight = augment(images, torch.arange(len(rows)), indices, epoch, 5, chosen)
    mixing = augment.draw_mix(epoch, 5, size)
    assert batch.shape == (len(rows), 3, *size) and batch.dtype == dtype
    assert batch.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(batch, reference.augment_batch(augment, images, indices, epoch, chosen, mixing))
    assert weight.tolist() == [float(mixing.weight)]
    if mixing.kind != NO_MIX:
        assert partners.tolist() == [(row - 1) % len(rows) for row in range(len(rows))]
    assert torch.equal(
        augment.augment(images, indices, epoch, chosen),
        reference.augment_batch(augment, images, indices, epoch, chosen),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mix", MIXES[:3])
def test_many_threads_have_the_references_bits(dtype: torch.dtype, mix: recipe.MixConfig) -> None:
    """A batch large enough to be divided, among more threads than processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        augment = Augment(EVERYTHING, MEAN, STD, mix=mix, seed=1, dtype=dtype)
        images, rows = noise_images((32, 32)), torch.arange(151) % 6
        batch, _, _, _ = augment(images, rows, torch.arange(151), 2, 0, rows)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(
        batch, reference.augment_batch(augment, images, torch.arange(151), 2, rows, augment.draw_mix(2, 0, (32, 32)))
    )


def test_halves_are_rounded_as_torch_rounds() -> None:
    """All sizes of result: from below fp16's least number to beyond its largest."""
    for dtype in (torch.bfloat16, torch.float16):
        for std in (1e-6, 1e-3, 1.0, 1e3, 1e6, 1e9):
            policy = recipe.AugmentConfig(translate=0, flip="none")
            images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
            augment = Augment(policy, (0.3, 0.5, 0.7), (std, std * 1.3, std * 1.7), dtype=dtype)
            found = augment.augment(images, torch.tensor([0]), 0)
            assert torch.equal(found, augment.normalize(images))


@pytest.mark.parametrize(
    "policy", [recipe.AugmentConfig(), REPORT, EVERYTHING], ids=["default", "report", "everything"]
)
def test_a_sample_is_the_same_in_any_batch(policy: recipe.AugmentConfig) -> None:
    augment = Augment(policy, MEAN, STD, seed=3, dtype=torch.bfloat16)
    images = torch.randint(0, 256, (50, 32, 32, 3), dtype=torch.uint8)
    everything = augment.augment(images, torch.arange(50), 4)
    for indices in ([7], [49, 7, 0], list(range(49, -1, -1)), [3, 3, 3]):
        chosen = torch.tensor(indices)
        assert torch.equal(augment.augment(images, chosen, 4, chosen), everything[chosen])
        assert torch.equal(augment.augment(images[chosen], chosen, 4), everything[chosen]), (
            "from another loader's buffer"
        )
    assert not torch.equal(augment.augment(images, torch.arange(50), 5), everything)


def test_the_same_step_mixes_the_same() -> None:
    """In another process's object, after other steps: what is mixed depends on (seed, epoch, step) alone."""
    images, labels = torch.randint(0, 256, (20, 16, 16, 3), dtype=torch.uint8), torch.arange(20)

    def run(steps: list[int]) -> list[tuple[torch.Tensor, ...]]:
        augment = Augment(REPORT, MEAN, STD, mix=MIXES[3], seed=9)
        return [augment(images, labels, labels, 1, step) for step in steps]

    whole = run([0, 1, 2, 3, 4, 5])
    for found, expected in zip(run([4, 2]), (whole[4], whole[2]), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    kinds = {Augment(REPORT, MEAN, STD, mix=MIXES[3], seed=9).draw_mix(1, step, (16, 16)).kind for step in range(40)}
    assert kinds == {NO_MIX, MIXUP, CUTMIX}


def test_two_threads_at_once() -> None:
    """As a prefetching thread beside a training loop does."""
    augment = Augment(EVERYTHING, MEAN, STD)
    images = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8)  # enough for two threads each
    expected = augment.augment(images, torch.arange(64), 0)
    found: list[bool] = []

    def work() -> None:
        found.extend(torch.equal(augment.augment(images, torch.arange(64), 0), expected) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 60


CHILD = """
import os, sys, time
import torch
from fastres import recipe
from fastres.augment import Augment
augment = Augment(recipe.AugmentConfig(), (0.5,) * 3, (0.2,) * 3)
images, rows = torch.zeros(256, 32, 32, 3, dtype=torch.uint8), torch.arange(256)
began = time.process_time()  # another process may take the core meanwhile
torch.set_num_threads(2)
expected = augment.augment(images, rows, 0)
print(time.process_time() - began)
child = os.fork()
if not child:
    # Compared by NumPy: torch's OpenMP hangs in a child whose parent has used it.
    os._exit(0 if (augment.augment(images, rows, 0).numpy() == expected.numpy()).all() else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.serial
def test_a_new_process_starts_fast_and_may_fork() -> None:
    """Compiled code comes from the cache on disk: 2 s leave room for a slow machine, compiling takes ten at least."""
    Augment(recipe.AugmentConfig(), MEAN, STD).augment(
        torch.zeros(64, 32, 32, 3, dtype=torch.uint8), torch.arange(64), 0
    )
    result = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 2


def test_a_read_only_package_compiles_into_numbas_folder(tmp_path: Path) -> None:
    code = "import fastres.augment.cpu.draws as d, sys; d._uniform(1); print(d._uniform._cache.cache_path)"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100)
    assert result.stdout.startswith(str(tmp_path)), result.stderr
    assert list(tmp_path.rglob("*.nbc"))


def test_plain_only_normalises_and_restore_undoes_it() -> None:
    augment = Augment(recipe.AugmentConfig(), MEAN, STD, channels_last=False)
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    batch = augment.normalize(images, torch.tensor([4, 2]))
    assert batch.is_contiguous()
    expected = (images[[4, 2]].double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    # fp32 rounds scale, offset and result by 6e-8 of values up to 10 each.
    assert torch.allclose(batch.double(), expected.permute(0, 3, 1, 2), atol=4e-6)
    # Back to whole grey levels: an error of half a level would be 0.002.
    assert torch.allclose(augment.restore(batch), images[[4, 2]].float() / 255, atol=1e-6)


def test_a_constant_channel_is_centred_not_divided_by_zero() -> None:
    augment = Augment(recipe.AugmentConfig(), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    assert augment.normalize(torch.zeros(1, 4, 4, 3, dtype=torch.uint8)).eq(0).all()


def test_noise_has_its_deviation_and_stays_within_the_range() -> None:
    augment = Augment(recipe.AugmentConfig(translate=0, flip="none", noise=0.1), MEAN, STD)
    values = augment.restore(
        augment.augment(torch.full((1, 200, 200, 3), 128, dtype=torch.uint8), torch.tensor([0]), 0)
    )
    # Deviations: 0.1/√40,000 = 0.0005 of a mean, 0.1/√80,000 = 0.00035 of a standard deviation.
    assert (values.mean(dim=(0, 1, 2)) - 128 / 255).abs().max() < 0.003
    assert (values.std(dim=(0, 1, 2)) - 0.1).abs().max() < 0.002
    black = Augment(recipe.AugmentConfig(translate=0, flip="none", noise=0.1), MEAN, STD)
    batch = black.augment(torch.zeros(1, 50, 50, 3, dtype=torch.uint8), torch.tensor([0]), 0)
    assert batch.amin(dim=(0, 2, 3)).tolist() == black.normalization[1].tolist()


def test_arguments_that_do_not_fit() -> None:
    augment = Augment(recipe.AugmentConfig(translate=1), MEAN, STD)
    images = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8"):
        augment.augment(images.float(), torch.arange(3), 0)
    with pytest.raises(ValueError, match="2 indices for 3 images"):
        augment.augment(images, torch.arange(2), 0)
    for row in (-1, 3):
        with pytest.raises(IndexError, match="3 images"):
            augment.augment(images, torch.tensor([0]), 0, torch.tensor([row]))


def test_policies_that_do_not_fit_the_images() -> None:
    images = torch.zeros(1, 8, 12, 3, dtype=torch.uint8)
    for policy, message in (
        (recipe.AugmentConfig(translate=8), "augment.translate = 8 is too large for 8-pixel images: set it below 8"),
        (recipe.AugmentConfig(translate=0, cutout=9), "augment.cutout = 9 is larger than 8-pixel images"),
    ):
        with pytest.raises(UserError, match=message):
            Augment(policy, MEAN, STD).augment(images, torch.tensor([0]), 0)


def test_mixing_needs_classes_and_neighbours() -> None:
    mix = recipe.MixConfig(mixup_alpha=1.0)
    check_mix(mix, 2, 2)
    check_mix(recipe.MixConfig(), 1, 1)
    with pytest.raises(UserError, match="two classes"):
        check_mix(mix, 1, 20)
    with pytest.raises(UserError, match=r"train\.batch_size"):
        check_mix(mix, 10, 1)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mix.mixup_alpha=0", ["mix.mixup_alpha", "greater than 0"]),
        ("mix.cutmix_alpha=-1.0", ["mix.cutmix_alpha", "greater than 0"]),
        ("mix.prob=1.5", ["mix.prob", "less than or equal to 1"]),
        ("mix.cutmix_alfa=1.0", ["did you mean 'mix.cutmix_alpha'"]),
        ("augment.random_resized_crop.scale=[0.0, 1.0]", ["0 < least <= largest <= 1"]),
        ("augment.random_resized_crop.scale=[0.5, 1.1]", ["0 < least <= largest <= 1"]),
        ("augment.random_resized_crop.scale=[0.9, 0.5]", ["0 < least <= largest <= 1"]),
        ("augment.erasing.ratio=[2.0, 1.0]", ["the smaller one first"]),
        ("augment.color_jitter.hue=0.6", ["augment.color_jitter.hue", "less than or equal to 0.5"]),
        ("augment.color_jitter.contrast=-0.1", ["augment.color_jitter.contrast"]),
        ("augment.padding=constant", ["set fill"]),
        ("augment.fill=[1, 2, 3]", ["padding = 'constant'"]),
        ("augment.flip=alternatin", ["did you mean 'alternating'"]),
        ("augment.autocontrast=-1", ["augment.autocontrast"]),
        ("augment.noise=-0.1", ["augment.noise"]),
    ],
)
def test_bad_policies_are_recipe_errors(tmp_path: Path, override: str, expected: list[str]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("")
    with pytest.raises(UserError) as error:
        Recipe.load(path, [override])
    assert len(str(error.value).splitlines()) <= 2
    for part in expected:
        assert part in str(error.value)


def test_the_reports_policy_is_in_its_recipes() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    policy = Recipe.load(recipes / "report_best.toml").augment
    assert policy.model_copy(update={"mean": None, "std": None}) == REPORT
    compared = [Recipe.load(recipes / "augment" / f"{name}.toml") for name in ("none", "shift", "report", "mixed")]
    none, shift, report, mixed = (each.augment for each in compared)
    assert none == recipe.AugmentConfig(translate=0, flip="none") and shift == recipe.AugmentConfig()
    assert report == mixed == REPORT
    assert [each.mix.active for each in compared] == [False, False, False, True]
    rest = [each.model_dump(exclude={"augment", "mix"}) for each in compared]
    assert all(each == rest[0] for each in rest), "recipes that are compared differ in nothing else"


def test_the_module_counts_and_resumes() -> None:
    images = torch.randint(0, 256, (3, 10, 16, 16, 3), dtype=torch.uint8)
    labels = torch.arange(10)

    def module() -> AugmentModule:
        return AugmentModule(Augment(REPORT, MEAN, STD, mix=recipe.MixConfig(mixup_alpha=1.0)))

    first = module()
    first.start_epoch(2)
    batches = [first(batch, labels=labels) for batch in images]
    positions = torch.arange(10, 20)
    expected: Any = first.augment(images[1], labels, positions, 2, 1)
    assert all(torch.equal(one, other) for one, other in zip(batches[1], expected, strict=True))
    resumed, stopped = module(), module()
    stopped.start_epoch(2)
    stopped(images[0], labels=labels)
    resumed.load_state_dict(stopped.state_dict())
    for found, other in zip(resumed(images[1], labels=labels), batches[1], strict=True):
        assert torch.equal(found, other)
    # Given indices decide the draws, either layout will do, and without labels nothing is mixed.
    given = torch.tensor([5, 3])
    assert torch.equal(
        resumed(images[0][:2].permute(0, 3, 1, 2), given), resumed.augment.augment(images[0][:2], given, resumed.epoch)
    )
    resumed.eval()
    assert torch.equal(resumed(images[0]), resumed.augment.normalize(images[0]))
    _, _, partners, weight = resumed(images[0], labels=labels)
    assert torch.equal(partners, labels) and weight.item() == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_float_batch_is_mixed(dtype: torch.dtype) -> None:
    batch, labels = torch.randn(5, 3, 8, 6).to(dtype), torch.arange(5)
    before, kinds = batch.clone(), set()
    for step in range(30):
        found, own, partners, weight = mix_batch(batch, labels, MIXES[3], seed=2, epoch=1, step=step)
        mixing = draw_mix(MIXES[3], 2, 1, step, (8, 6))
        kinds.add(mixing.kind)
        expected = reference.mix(batch.permute(0, 2, 3, 1).float().numpy(), mixing)
        assert torch.equal(found, torch.from_numpy(expected).permute(0, 3, 1, 2).to(dtype))
        assert torch.equal(own, labels) and weight.item() == float(mixing.weight)
        assert torch.equal(partners, labels.roll(1) if mixing.kind else labels)
    assert kinds == {NO_MIX, MIXUP, CUTMIX} and torch.equal(batch, before)


def test_the_readmes_loop() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = [part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "AugmentModule" in part]
    images, labels = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8), torch.arange(6)
    losses: list[torch.Tensor] = []
    given: dict[str, Any] = {"mean": MEAN, "std": STD, "epochs": 2, "loader": [(images, labels)] * 3}
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    exec(block + "        losses.append(loss)\n", {**given, "network": network, "losses": losses})
    assert len(losses) == 6 and all(loss.isfinite().all() for loss in losses)


def test_memory_maps_are_read_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "store.npy", noise_images((32, 32)).numpy())
    store = np.load(tmp_path / "store.npy", mmap_mode="c")
    augment = Augment(EVERYTHING, MEAN, STD)
    rows = torch.tensor([5, 0, 2])
    assert torch.equal(
        augment.augment(torch.from_numpy(store), rows, 1, rows), augment.augment(noise_images((32, 32)), rows, 1, rows)
    )
