"""Random draws of the augmentation: the specification, in NumPy, that the Numba and Triton twins follow bit for bit.

**Random bits.** Philox-4x32-10 (philox.py) with key (seed, 0) and counter (dataset index, epoch, stream, block), all
below 2³². Each concern has its own stream, so that switching one on or off leaves the others' draws alone:

    stream     block             the four words
    GEOMETRY   0                 shift down, shift right, flip, –
    CROP       attempt 0 … 9     area, ratio, top, left
    COLOUR     0                 jitter or not, order, autocontrast or not, grayscale or not
    COLOUR     1                 brightness, contrast, saturation, hue
    ERASE      0                 erase or not, cutout's centre row, centre column, –
    ERASE      1 + attempt       area, ratio, top, left
    NOISE      y·W + x           red, green, blue, – of that pixel of the result
    MIX        0                 mix or not, CutMix or MixUp, λ, –
    MIX        1                 centre column, centre row, –, –

MIX has the counter (step within the epoch, epoch, MIX, block) instead: one draw for a batch. The alternating flip
reads GEOMETRY at epoch 0, whatever the epoch.

**From words to numbers.** There are three ways only:

- chance: `u < p` with u = (word >> 8)·2⁻²⁴, exact in fp32, and p rounded to fp32;
- an integer below n ≤ 2¹⁶: ⌊u·n⌋, one fp32 product, which cannot reach n;
- one of 4,096 levels of a table (tables.py): word >> 20.

After that there are integers, single fp32 products and one fp32 division, all correctly rounded; nothing for a fused
multiply-add to change. The factors of brightness, contrast and saturation are integers in units of 2⁻¹⁴: factors of at
most 14 fractional bits make Pillow's own fp32 blend exact, so that it can be done in integers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastres import recipe
from fastres.augment.philox import philox_4x32
from fastres.augment.tables import BoxTables, box_tables, mix_tables
from fastres.errors import UserError

GEOMETRY, CROP, COLOUR, ERASE, NOISE, MIX = range(6)
"""Philox streams."""

ATTEMPTS = 10
"""Boxes that are tried before the fallback, as in torchvision."""
UNIT = 14
"""Fractional bits of the factors of brightness, contrast and saturation."""
HUE_BITS = 8
"""Fractional bits of the drawn hue shift, in 255ths of a turn."""
NO_MIX, MIXUP, CUTMIX = range(3)
"""Kinds of mixing."""

Size = tuple[int, int]
RandomBits = NDArray[np.uint32]
Integers = NDArray[np.int32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Plan:
    """All constants of a policy for images of one size: what a kernel needs besides seed, epoch and indices."""

    size: Size
    """H, W."""
    crop: BoxTables | None
    """None: no random_resized_crop."""
    crop_fallback: tuple[int, int, int, int]
    """Top, left, height, width of the central crop after ten boxes that do not fit."""
    translate: int
    """Pixels."""
    flip: str
    """`none`, `random` or `alternating`."""
    jitter_p: np.float32
    """0 where there is no color_jitter."""
    factor_low: tuple[int, int, int]
    """Least factor of brightness, contrast and saturation, in units of 2⁻¹⁴."""
    factor_levels: tuple[int, int, int]
    """Number of factors from there on, 1 … 2¹⁶; an operation with one level, which is 1.0, does nothing."""
    hue_reach: int
    """Largest hue shift in units of 2⁻⁸/255 turns."""
    autocontrast_p: np.float32
    grayscale_p: np.float32
    cutout: int
    """Side in pixels."""
    erase: BoxTables | None
    """`widen` is for the height here, as in torchvision; None: no erasing."""
    erase_p: np.float32
    """0 where there is no erasing."""

    @property
    def chances(self) -> dict[str, np.float32]:
        """The probability of each operation that is drawn, in the order of the fields above, by its name."""
        return {name.removesuffix("_p"): value for name, value in vars(self).items() if name.endswith("_p")}


@dataclass(frozen=True, eq=False)
class Draws:
    """Drawn operations on each of N samples; every array has N entries."""

    top: Integers
    """First row of the crop; with left, height and width the whole image where there is no random_resized_crop."""
    left: Integers
    height: Integers
    width: Integers
    down: Integers
    """Pixels by which the content moves; the resized crop is what moves."""
    right: Integers
    flip: Flags
    jitter: Flags
    order: Integers
    """Index into the 24 permutations of (0 brightness, 1 contrast, 2 saturation, 3 hue) in lexicographic order."""
    brightness: Integers
    """Factors in units of 2⁻¹⁴, drawn whether `jitter` or not."""
    contrast: Integers
    saturation: Integers
    hue: Integers
    """Added to Pillow's 8-bit hue, modulo 256: 0 … 255."""
    autocontrast: Flags
    grayscale: Flags
    cutout: Integers
    """[4, N]: top, left, bottom, right, exclusive, within the image; all 0 where there is none."""
    erase: Integers
    """[4, N], likewise."""


@dataclass(frozen=True)
class Mixing:
    """Drawn mixing of a batch: sample b is mixed with sample b - 1, the first with the last."""

    kind: int
    """NO_MIX, MIXUP or CUTMIX."""
    weight: np.float32
    """λ, the share of the sample's own label; for CutMix after the edges have clipped the box. 1 for NO_MIX."""
    box: tuple[int, int, int, int]
    """Top, left, bottom, right, exclusive: where CutMix shows the partner; zeros otherwise."""


UNMIXED = Mixing(NO_MIX, np.float32(1), (0, 0, 0, 0))


def check(policy: recipe.AugmentConfig, size: Size) -> None:
    """Raise UserError where the policy does not fit images of `size` (H, W)."""
    side = min(size)
    if policy.translate >= side:
        raise UserError(
            f"augment.translate = {policy.translate} is too large for {size[0]}-pixel images: set it below {side}"
        )
    if policy.cutout > side:
        raise UserError(f"augment.cutout = {policy.cutout} is larger than {side}-pixel images: set it to less")


def check_mix(mix: recipe.MixConfig, classes: int, batch_size: int) -> None:
    """Raise UserError where batches of `batch_size` images of `classes` classes cannot be mixed."""
    if mix.mixup_alpha is None and mix.cutmix_alpha is None:
        return
    if classes < 2:
        raise UserError("mixing needs at least two classes: leave mix.mixup_alpha and mix.cutmix_alpha out")
    if batch_size < 2:
        raise UserError("mixing needs a neighbour in the batch: set train.batch_size to at least 2, or leave out [mix]")


def plan(policy: recipe.AugmentConfig, size: Size) -> Plan:
    """The constants of `policy` for images of `size` (H, W). Raises UserError where they do not fit each other."""
    check(policy, size)
    crop, erasing, jitter = policy.random_resized_crop, policy.erasing, policy.color_jitter
    strengths = (0.0, 0.0, 0.0) if jitter is None else (jitter.brightness, jitter.contrast, jitter.saturation)
    lows = tuple(round(max(0.0, 1 - strength) * 2**UNIT) for strength in strengths)
    highs = tuple(round((1 + strength) * 2**UNIT) for strength in strengths)
    return Plan(
        size=size,
        crop=None if crop is None else box_tables(size, _pair(crop.scale), _pair(crop.ratio)),
        crop_fallback=(0, 0, *size) if crop is None else _central(size, _pair(crop.ratio)),
        translate=policy.translate,
        flip=policy.flip,
        jitter_p=np.float32(0 if jitter is None else jitter.p),
        factor_low=(lows[0], lows[1], lows[2]),
        factor_levels=(highs[0] - lows[0] + 1, highs[1] - lows[1] + 1, highs[2] - lows[2] + 1),
        hue_reach=0 if jitter is None else round(jitter.hue * 255 * 2**HUE_BITS),
        autocontrast_p=np.float32(policy.autocontrast),
        grayscale_p=np.float32(policy.grayscale),
        cutout=policy.cutout,
        erase=None if erasing is None else box_tables(size, _pair(erasing.scale), _pair(erasing.ratio)),
        erase_p=np.float32(0 if erasing is None else erasing.p),
    )


def draw(plan: Plan, seed: int, epoch: int, indices: NDArray[np.int64]) -> Draws:
    """The draws of the samples with dataset `indices` [N] at `epoch`."""

    def random_bits(stream: int, block: int = 0, at: int = epoch) -> RandomBits:
        return philox_4x32((indices, at, stream, block), (seed, 0))

    count = len(indices)
    geometry, colour, factors, erase = (
        random_bits(GEOMETRY),
        random_bits(COLOUR),
        random_bits(COLOUR, 1),
        random_bits(ERASE),
    )
    flip = np.zeros(count, dtype=bool)
    if plan.flip == "random":
        flip = chance(geometry[2], np.float32(0.5))
    elif plan.flip == "alternating":
        flip = chance(random_bits(GEOMETRY, at=0)[2], np.float32(0.5)) ^ bool(epoch & 1)

    crop = np.tile(np.array(plan.crop_fallback, dtype=np.int32)[:, None], (1, count))
    if plan.crop is not None:
        attempts = [random_bits(CROP, attempt) for attempt in range(ATTEMPTS)]
        crop = _first_box(plan.crop, plan.size, attempts, crop, erasing=False)
    erased = np.zeros((4, count), dtype=np.int32)
    if plan.erase is not None:
        attempts = [random_bits(ERASE, 1 + attempt) for attempt in range(ATTEMPTS)]
        box = _first_box(plan.erase, plan.size, attempts, erased, erasing=True)
        box[2:] += box[:2]
        erased = np.where(chance(erase[0], plan.erase_p), box, 0).astype(np.int32)
    height, width = plan.size
    return Draws(
        top=crop[0],
        left=crop[1],
        height=crop[2],
        width=crop[3],
        down=below(geometry[0], 2 * plan.translate + 1) - np.int32(plan.translate),
        right=below(geometry[1], 2 * plan.translate + 1) - np.int32(plan.translate),
        flip=flip,
        jitter=chance(colour[0], plan.jitter_p),
        order=below(colour[1], 24),
        brightness=below(factors[0], plan.factor_levels[0]) + np.int32(plan.factor_low[0]),
        contrast=below(factors[1], plan.factor_levels[1]) + np.int32(plan.factor_low[1]),
        saturation=below(factors[2], plan.factor_levels[2]) + np.int32(plan.factor_low[2]),
        hue=_hue_shift(below(factors[3], 2 * plan.hue_reach + 1) - np.int32(plan.hue_reach)),
        autocontrast=chance(colour[2], plan.autocontrast_p),
        grayscale=chance(colour[3], plan.grayscale_p),
        cutout=_square(below(erase[1], height), below(erase[2], width), plan.cutout, plan.size),
        erase=erased,
    )


def draw_mix(mix: recipe.MixConfig, seed: int, epoch: int, step: int, size: Size) -> Mixing:
    """How the batch of `step`, counted within `epoch`, is mixed; images of `size` (H, W)."""
    mixup, cutmix = mix.mixup_alpha, mix.cutmix_alpha
    if (mixup is None and cutmix is None) or 0 < mix.until <= epoch:
        return UNMIXED
    random_bits, centre = (philox_4x32((step, epoch, MIX, block), (seed, 0)) for block in (0, 1))
    if not chance(random_bits[0], np.float32(mix.prob)):
        return UNMIXED
    level = int(random_bits[2]) >> 20
    if cutmix is None or (mixup is not None and not chance(random_bits[1], np.float32(mix.switch_prob))):
        assert mixup is not None
        return Mixing(MIXUP, mix_tables(mixup).weight[level], (0, 0, 0, 0))
    height, width = size
    half = mix_tables(cutmix).half_side[level]
    half_height, half_width = int(half * np.float32(height)), int(half * np.float32(width))
    column, row = int(below(centre[0], width)), int(below(centre[1], height))
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    remaining = height * width - (bottom - top) * (right - left)
    return Mixing(CUTMIX, np.float32(remaining) / np.float32(height * width), (top, left, bottom, right))


def chance(word: RandomBits, p: np.float32) -> Flags:
    """Whether each word's uniform is below p: never for 0, always for 1."""
    return _uniform(word) < p


def below(word: RandomBits, bound: int) -> Integers:
    """⌊u·bound⌋ for a bound up to 2¹⁶."""
    return (_uniform(word) * np.float32(bound)).astype(np.int32)


def _uniform(word: RandomBits) -> NDArray[np.float32]:
    """The top 24 bits as a number in [0, 1), which fp32 holds exactly."""
    return (word >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _first_box(
    tables: BoxTables, size: Size, attempts: list[RandomBits], otherwise: Integers, *, erasing: bool
) -> Integers:
    """Top, left, height and width [4, N] of the first attempt that fits, else those of `otherwise`.

    A crop may be as large as the image but not empty; an erased box may be empty, and must be smaller than the image on
    both axes: torchvision's conditions.
    """
    boxes, undecided = otherwise.copy(), np.ones(otherwise.shape[1], dtype=bool)
    for random_bits in attempts:
        side = tables.twice_side[random_bits[0] >> np.uint32(20)]
        ratio = random_bits[1] >> np.uint32(20)
        wide = ((side * tables.widen[ratio]).astype(np.int32) + 1) >> 1
        narrow = ((side * tables.narrow[ratio]).astype(np.int32) + 1) >> 1
        height, width = (wide, narrow) if erasing else (narrow, wide)
        if erasing:
            fits = (height < size[0]) & (width < size[1])
        else:
            fits = (height > 0) & (height <= size[0]) & (width > 0) & (width <= size[1])
        # Where the box does not fit, the bound is not positive and what comes out is not used.
        top, left = (
            (_uniform(word) * np.maximum(whole - side + 1, 1).astype(np.float32)).astype(np.int32)
            for word, whole, side in ((random_bits[2], size[0], height), (random_bits[3], size[1], width))
        )
        boxes = np.where(undecided & fits, np.stack([top, left, height, width]), boxes)
        undecided &= ~fits
    return boxes.astype(np.int32)


def _central(size: Size, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """torchvision's fallback: the largest central crop whose ratio is allowed, as top, left, height, width."""
    height, width = size
    if width / height < ratio[0]:
        height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        width = max(1, round(height * ratio[1]))
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def _hue_shift(shift: Integers) -> Integers:
    """Towards zero to whole 255ths, then modulo 256, as torchvision does it on Pillow images."""
    whole = np.where(shift < 0, -(-shift >> HUE_BITS), shift >> HUE_BITS)
    return (whole & 255).astype(np.int32)


def _square(row: Integers, column: Integers, side: int, size: Size) -> Integers:
    """The square around a pixel, clipped: top, left, bottom, right [4, N], zeros where the side is 0."""
    if side == 0:
        return np.zeros((4, len(row)), dtype=np.int32)
    top, left = row - side // 2, column - side // 2
    corners = np.stack([top, left, top + side, left + side])
    limits = np.array([size[0], size[1], size[0], size[1]], dtype=np.int32)[:, None]
    return np.clip(corners, 0, limits).astype(np.int32)


def _pair(values: list[float]) -> tuple[float, float]:
    return values[0], values[1]
