"""Augmentation: a recipe's policy applied to batches of a store, or in a loop of your own."""

from fastres.augment.policy import Augment, AugmentModule, Mixed, mix_batch

__all__ = ["Augment", "AugmentModule", "Mixed", "mix_batch"]
