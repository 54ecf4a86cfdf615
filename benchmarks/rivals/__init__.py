"""Training as one writes it without fastres."""
