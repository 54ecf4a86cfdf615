"""Augmentation and mixing on a GPU: kernels alone, which fastres/augment/gpu.py launches."""
