"""Loaders: each delivers the batches that order.py prescribes, by its own way of getting at the store."""

from fastres.data.loaders.resident import Batch, ResidentLoader, on_device

__all__ = ["Batch", "ResidentLoader", "on_device"]
