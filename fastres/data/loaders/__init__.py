"""Loaders: each delivers the batches that order.py prescribes, by its own way of getting at the store.

To add one: write its name in recipe/data.py, and a `Loader` that is registered under it in the module of that name in
this package, which is imported when a recipe asks for it.
"""

from fastres.data.loaders.base import Batch, Loader
from fastres.data.loaders.choose import make_loader
from fastres.data.loaders.resident import ResidentLoader, on_device

__all__ = ["Batch", "Loader", "ResidentLoader", "make_loader", "on_device"]
