"""Augmentation: a recipe's policy applied to batches of a store, or in a loop of your own."""

from fastres.augment.policy import Augment, AugmentModule

__all__ = ["Augment", "AugmentModule"]
