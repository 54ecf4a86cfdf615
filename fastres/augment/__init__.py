"""Augmentation: a recipe's policy applied to batches of a store, or in a loop of your own."""

from fastres.augment.pipeline import Augment, AugmentModule, mix_batch
from fastres.augment.spec import Mixed
from fastres.recipe import AugmentConfig, MixConfig

__all__ = ["Augment", "AugmentConfig", "AugmentModule", "MixConfig", "Mixed", "mix_batch"]
