"""Augmentation: a recipe's policy applied to batches of a store."""

from fastres.augment.policy import Augment

__all__ = ["Augment"]
