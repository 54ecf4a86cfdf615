"""Loaders: each delivers the batches that order.py prescribes, by its own way of getting at the store."""

from fastres.data.loaders.base import Batch, Loader
from fastres.data.loaders.choose import make_loader
from fastres.data.loaders.resident import ResidentLoader, on_device

__all__ = ["Batch", "Loader", "ResidentLoader", "make_loader", "on_device"]
