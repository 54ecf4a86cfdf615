"""A grid or a search over recipes."""
