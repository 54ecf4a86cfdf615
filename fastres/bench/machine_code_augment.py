"""The augmentation kernels compiled ahead of time: which configurations, and how; machine_code.py reads the results."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastres import recipe
from fastres.augment import draws
from fastres.augment.gpu import Launch, kernel_policy, launch
from fastres.kernels.aot import machine_code
from fastres.kernels.augment import kernel as augment
from fastres.kernels.augment import mix

SHIFT = recipe.AugmentConfig(translate=4, flip="random")
PAPER = recipe.AugmentConfig(
    random_resized_crop=recipe.RandomResizedCropConfig(scale=[0.85, 1.0], interpolation="bicubic"),
    translate=0,
    color_jitter=recipe.ColorJitterConfig(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1, p=0.3),
    autocontrast=0.2,
    grayscale=0.2,
)
EVERYTHING = recipe.AugmentConfig(
    **PAPER.model_dump(exclude={"translate", "padding", "cutout", "erasing", "noise"}),
    translate=4,
    padding="zero",
    cutout=8,
    erasing=recipe.ErasingConfig(),
    noise=0.05,
)
POLICIES = {"shift": SHIFT, "report": PAPER, "everything": EVERYTHING}
MIXED = recipe.MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0)
KERNELS = {
    "direct_kernel": augment.direct_kernel,
    "tile_kernel": augment.tile_kernel,
    "measure_kernel": augment.measure_kernel,
    "mix_kernel": mix.mix_kernel,
}
_TYPES = {
    "*u8": ("images",),
    "*i64": ("rows", "indices", "labels", "partners", "seed", "epoch", "step"),
    "*i32": ("taps_across", "taps_down", "statistics"),
    "*fp32": ("weights", "tables", "factors"),
}
"""Types of the kernels' arguments by name; every other one points to values of the configuration's type."""


@dataclass(frozen=True)
class Configuration:
    """A kernel for a policy and a size of images."""

    kernel: str
    dtype: str
    """`bf16`, `fp16` or `fp32`: of the batch."""
    policy: str
    """Of POLICIES."""
    mixes: bool
    size: tuple[int, int]

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        return " ".join((self.kernel, self.dtype, self.policy, "mixed" if self.mixes else "unmixed", size))

    @property
    def launch(self) -> Launch:
        """Route, tile and warps, as they are chosen for a batch."""
        policy = POLICIES[self.policy]
        return launch(kernel_policy(policy, MIXED if self.mixes else recipe.MixConfig(), draws.plan(policy, self.size)))

    def build(self, target: str) -> Any:
        """Compile for a target: see `aot.machine_code`."""
        kernel, plan, mixing = KERNELS[self.kernel], self.launch, self.kernel == "mix_kernel"
        fixed = {
            "POLICY": plan.policy,
            "ROWS": plan.rows,
            "COLUMNS": plan.columns,
            "BLOCK": mix.BLOCK if mixing else plan.columns,
            "CHANNELS": 3,
        }
        absent = [] if self.mixes else ["labels", "partners", "weights", "step"]
        absent += [] if plan.policy.taps else ["taps_across", "taps_down"]
        absent += [] if plan.measures else ["statistics"]
        constants = {name: value for name, value in (fixed | dict.fromkeys(absent)).items() if name in kernel.arg_names}
        options = {"num_warps": 4 if mixing else plan.warps, **augment.OPTIONS}
        return machine_code(kernel, target, constants, _TYPES, f"*{self.dtype}", options)


def configurations() -> Iterator[Configuration]:
    """All kernels at 32×32, 64×64 and 96×96 pixels, in bf16; the shift in the other types too."""
    for side in (32, 64, 96):
        for policy in POLICIES:
            for mixes in (False, True):
                plan = Configuration("", "bf16", policy, mixes, (side, side)).launch
                for kernel in (plan.kernel, *(["measure"] if plan.measures and not mixes else [])):
                    yield Configuration(f"{kernel}_kernel", "bf16", policy, mixes, (side, side))
    for dtype in ("fp16", "fp32"):
        yield Configuration("direct_kernel", dtype, "shift", False, (32, 32))
    yield Configuration("mix_kernel", "bf16", "shift", True, (32, 32))


def representative() -> list[Configuration]:
    """One configuration a kernel: bf16, mixed where it can mix, the report's policy where there is a choice."""
    return [
        Configuration("direct_kernel", "bf16", "shift", True, (32, 32)),
        Configuration("tile_kernel", "bf16", "report", True, (32, 32)),
        Configuration("measure_kernel", "bf16", "report", False, (96, 96)),
        Configuration("mix_kernel", "bf16", "shift", True, (32, 32)),
    ]
