"""Augmentation on a CPU: one pass, compiled by Numba."""
