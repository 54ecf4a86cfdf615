"""Corrupted test images, one file a group of corruptions."""
