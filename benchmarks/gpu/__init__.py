"""Measurements that need a GPU, in one command that ends in time."""
