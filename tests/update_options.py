"""Every optimizer, schedule and average there is, by name: the tests of the update derive from these."""

from typing import Any

import torch
from torch import Tensor

from fastres.models import build
from fastres.recipe import Recipe
from fastres.training.step import Step

STEPS_PER_EPOCH = 4
EPOCHS = 2.5

SPEEDNET = {"name": "speednet", "widths": [6, 8]}
RESNET = {"blocks": [1, 1], "channels": [4, 8], "strides": [2, 2]}

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05},
    "nesterov": {
        "name": "sgd",
        "lr": 0.02,
        "nesterov": True,
        "decouple_decay": True,
        "weight_decay": 1e-3,
        "decay_norm_and_bias": False,
        "bias_lr_factor": 4.0,
        "head_lr_factor": 0.5,
        "whiten_bias_lr_factor": 2.0,
        "whiten_bias_epochs": 0.75,
    },
    "adam": {"name": "adam", "lr": 0.005},
    "adamw": {"name": "adamw", "lr": 0.005, "decouple_decay": True, "weight_decay": 1e-4, "bias_lr_factor": 2.0},
    "muon": {"name": "muon", "lr": 0.05, "renormalise_every": 3, "newton_schulz_steps": 3, "momentum": 0.6},
    "muon, adamw": {
        "name": "muon",
        "lr": 0.02,
        "nesterov": False,
        "weight_decay": 1e-3,
        "decouple_decay": True,
        "auxiliary": {"name": "adamw", "lr": 0.005, "whiten_bias_epochs": 1.0},
    },
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"name": "constant"},
    "linear": {"name": "linear", "warmup_epochs": 0.5},
    "cosine": {"name": "cosine", "per": "epoch"},
    "one_cycle": {"name": "one_cycle"},
    "step": {"name": "step", "milestones": [1.5]},
    "knots": {"name": "knots", "points": [[0, 0.2], [0.5, 1], [2.5, 0]]},
}
AVERAGES: dict[str, dict[str, Any]] = {
    "none": {},
    "ema": {"ema": 0.8},
    "lookahead": {"lookahead": {"every": 3}},
    "growing lookahead and ema": {"lookahead": {"every": 2, "decay": 0.8, "power": 3.0}, "ema": 0.8},
}


def recipe(optimizer: str = "sgd", schedule: str = "constant", average: str = "none", **train: Any) -> Recipe:
    """A tiny network (one that whitens, except for `adam`) under the options of these names, in fp32 and eager."""
    return Recipe.model_validate(
        {
            "model": RESNET if optimizer == "adam" else SPEEDNET,
            "optimizer": OPTIMIZERS[optimizer],
            "schedule": SCHEDULES[schedule],
            "train": {"epochs": EPOCHS, "compile": False, "precision": "fp32"} | AVERAGES[average] | train,
        }
    )


def step_for(options: Recipe, device: str = "cpu") -> Step:
    torch.manual_seed(0)
    network = build(options.model, 10, 16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Step(network.to(device), options, STEPS_PER_EPOCH, torch.device(device))


def batch(number: int = 0, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size, 3, 16, 16, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 10, (size,), generator=generator)
