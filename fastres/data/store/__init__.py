"""Stores: what loaders read, decoded or as image files, with or without a beton."""
