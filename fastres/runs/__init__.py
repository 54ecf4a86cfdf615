"""A run directory: made, written, read."""
